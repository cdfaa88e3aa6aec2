"""Searches from the command line: killed and gone on with, with two objectives, by several jobs side by side."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpt2x.commands import train

SMALL = {
    "model.n_layer": 1,
    "model.n_head": 2,
    "model.n_embd": 16,
    "model.context_length": 16,
    "tokenizer.vocab_size": 300,
    "data": "text",
    "data.batch_size": 4,
    "trainer.max_steps": 40,
    "trainer.eval_every": 10,
    "device.threads": 1,
    "device.kernels": "true",
    "logger": "none",
    "sample_prompt": "null",
    "sweep.startup_trials": 2,
    "sweep.min_steps": 10,
}


@pytest.fixture
def argv(tmp_path):
    """The arguments of a search of tiny runs in `folder`: `argv(folder, "sweep=random", **{"sweep.n_trials": 3})`."""
    text = Path(__file__).parents[2] / "gpt2x" / "data" / "storybook.txt"
    (tmp_path / "text.txt").write_text(text.read_text()[:12_000])

    def make(folder: Path, *more: str, **changes) -> list[str]:
        paths = {"data.path": tmp_path / "text.txt", "paths.outputs": tmp_path / "outputs", "hydra.sweep.dir": folder}
        return [*more, *(f"{key}={value}" for key, value in (SMALL | paths | changes).items() if value is not None)]

    return make


def rows(folder: Path) -> list[tuple]:
    """What each job was and came to, by its number; times and places left out."""
    table = csv.DictReader((folder / "sweep.csv").read_text().splitlines())
    told = ({k: v for k, v in row.items() if k not in ("minutes", "seconds", "folder")} for row in table)
    return sorted((tuple(row.items()) for row in told), key=lambda row: int(row[0][1]))


def wait_for(condition, process: subprocess.Popen) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() < end
        time.sleep(0.01)


def steps(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def test_a_search_that_is_killed_goes_on_to_the_same_table(argv, tmp_path, capsys):
    space = ["sweep=optuna_tpe", "sweep.n_trials=4"]
    assert train(argv(tmp_path / "whole", *space)) == 0
    killed = tmp_path / "killed"
    command = [sys.executable, "-c", "from gpt2x.commands import train; raise SystemExit(train())", *argv(killed, *space)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    wait_for(lambda: steps(killed / "2") >= 3, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "2" / "result.json").exists()
    before = (killed / "1" / "result.json").read_bytes()
    assert train([f"resume={killed}"]) == 0
    assert rows(killed) == rows(tmp_path / "whole")
    assert (killed / "1" / "result.json").read_bytes() == before
    assert "run 2 (going on)" in capsys.readouterr().out
    assert train([f"resume={killed}", "sweep.n_trials=5"]) == 0
    assert rows(killed)[:4] == rows(tmp_path / "whole")
    assert len(rows(killed)) == 5


def test_the_pareto_optimal_runs_of_two_objectives_are_named(argv, tmp_path, capsys):
    folder = tmp_path / "sweep"
    more = ["sweep=optuna_multi", "sweep.objectives=[val/loss,parameters]", "sweep.n_trials=5"]
    assert train(argv(folder, *more, **{"model.n_layer": None, "model.n_embd": None, "trainer.max_steps": 20})) == 0
    results = [json.loads((folder / str(job) / "result.json").read_text()) for job in range(5)]
    reached = [(result["metric"]["value"], result["parameters"]) for result in results]
    front = [i for i, (a, b) in enumerate(reached) if not any(x <= a and y <= b and (x, y) != (a, b) for x, y in reached)]
    named = [line.rpartition("/")[2] for line in capsys.readouterr().out.splitlines() if line.startswith("pareto ")]
    assert [int(job) for job in named] == front


def test_an_objective_that_no_run_has_is_told_after_the_first(argv, tmp_path, capsys):
    more = ["sweep=random", "optimizer.lr=interval(1e-3,1e-2)", "sweep.objectives=[val/los]"]
    more.append(f"sweep.storage=sqlite:///{tmp_path}/shared.db")
    assert train(argv(tmp_path / "sweep", *more, **{"trainer.max_steps": 1})) == 2
    said = capsys.readouterr().err
    assert "sweep.objectives=val/los: a finished run has no such number" in said
    assert "val/loss" in said
    assert not (tmp_path / "sweep" / "1").exists()


def test_jobs_side_by_side_are_watched_from_their_own_processes(argv, tmp_path):
    folder = tmp_path / "sweep"
    space = [
        "sweep=random",
        "sweep.pruner=median",
        "optimizer.lr=4e-3,1e-7",
        "seed=7",
    ]  # draws the good rate three times, then the bad one
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    assert train(argv(folder, *space, *launcher, **{"sweep.n_trials": 4, "trainer.max_steps": 20})) == 0
    told = [dict(row) for row in rows(folder)]
    assert [row["job"] for row in told] == ["0", "1", "3"]  # trial 2 is known by then
    status = {rate: [row["status"] for row in told if float(row["optimizer.lr"]) == rate] for rate in (4e-3, 1e-7)}
    assert status[1e-7] == ["pruned"]
    assert set(status[4e-3]) == {"finished"}


def test_a_search_without_a_space_is_refused_and_makes_no_folder(argv, tmp_path, capsys):
    assert train(argv(tmp_path / "sweep", "sweep=random")) == 2
    assert "there is nothing to search" in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()
