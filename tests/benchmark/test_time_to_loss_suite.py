"""suite=time_to_loss: a recipe from end to end, and what is made of its metrics."""

from __future__ import annotations

import itertools
import json
import sys

import pytest

from gpt2x import commands
from gpt2x.benchmark import time_to_loss
from gpt2x.benchmark.time_to_loss_contestants import evaluations

# Plays gpt2x-train: seed 1 reaches 2.0 after 20 steps, seed 2 after 10, seed 3 never does; "broken" fails.
ACTOR = """
import json, sys
job = json.loads(sys.stdin.readline())
if job["experiment"] == "broken":
    sys.exit("out of order")
losses = {1: [4, 2.5, 1.9], 2: [4, 2.0, 1.5], 3: [4, 3, 2.1]}[job["seed"]]
print(json.dumps({"evaluations": [
    {"step": 10 * i, "loss": loss, "seconds": 5.0 + 10 * i + job["seed"], "evaluating": 1.0 + i}
    for i, loss in enumerate(losses)
]}), flush=True)
"""


def run(tmp_path, *arguments: str) -> tuple[int, dict]:
    output = tmp_path / "report.json"
    code = commands.benchmark(["suite=time_to_loss", *arguments, f"output={output}", f"paths.cache={tmp_path / 'cache'}"])
    return code, json.loads(output.read_text())


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in text.splitlines() if line.startswith("| ")]


@pytest.mark.timeout(300)
def test_a_recipe_runs_from_start_to_end(tmp_path, mirror, capsys):
    small = ["model.n_layer=1", "model.n_embd=16", "model.context_length=32", "trainer.max_steps=12", "trainer.eval_every=5"]
    quick = ["schedule.warmup_steps=2", "trainer.log_every=5", "data.val_fraction=0.01"]
    settings = ",".join(f'"{setting}"' for setting in small + quick)
    code, report = run(tmp_path, f"suite.settings=[{settings}]", "suite.seeds=[4]", "suite.target=4.19", "device.threads=1")
    printed = capsys.readouterr()
    assert code == 0, printed.out + printed.err
    (measured,) = report["measurements"]
    found = measured["evaluations"]
    assert [e["step"] for e in found] == [0, 5, 10, 12]
    assert found[0]["loss"] > 4.15 > found[-1]["loss"]
    times = [time for e in found for time in (e["seconds"] - e["evaluating"], e["seconds"])]
    assert times[0] > 0.3  # Python and torch have to start
    assert found[-1]["seconds"] < measured["seconds"]
    assert all(0 < a["evaluating"] < b["evaluating"] for a, b in itertools.pairwise(found))
    without = [e["seconds"] - e["evaluating"] for e in found]
    assert without == sorted(without)
    assert not list((tmp_path / "cache").glob("tmp*"))  # the run's folder is gone
    assert report["table"] in printed.out


def test_the_table_says_what_was_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(time_to_loss, "_COMMAND", [sys.executable, "-c", ACTOR])
    monkeypatch.setattr(time_to_loss, "compose", lambda *asked: None)
    code, report = run(tmp_path, "suite.experiments=[fine,broken]", "suite.target=2.0", "suite.seeds=[1,2,3]")
    assert code == 1
    printed = capsys.readouterr().out
    assert "failed   broken: ended with exit code 1\nout of order" in printed
    (row,) = cells(printed)[1:]
    assert row[:6] == [
        "fine", "2 of 3", "21.5 (17.0-26.0) s", "19.0 (15.0-23.0) s", "15 (10-20)", "1.9000 (1.5000-2.1000)",
    ]  # fmt: skip
    assert [(m["contestant"], m["seed"]) for m in report["measurements"]] == [("fine", seed) for seed in (1, 2, 3)]
    assert list((tmp_path / "cache").iterdir()) == []  # the runs' folders are gone


def test_a_target_that_no_run_reaches_has_no_time(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(time_to_loss, "_COMMAND", [sys.executable, "-c", ACTOR])
    monkeypatch.setattr(time_to_loss, "compose", lambda *asked: None)
    code, report = run(tmp_path, "suite.experiments=[fine]", "suite.target=1.0")
    assert (code, report["summary"][0]["seconds"]) == (0, None)
    assert cells(capsys.readouterr().out)[1][:5] == ["fine", "0 of 3", "", "", ""]


def test_evaluation_time_is_what_lies_between_a_step_and_its_row():
    """The loop began at second 3; evaluations took 2, 1.5 and 0.5 seconds, the steps one each."""
    rows = [
        {"step": 0, "seconds": 2.0, "val/loss": 4.0},
        {"step": 1, "seconds": 3.0, "train/loss": 3.9},
        {"step": 2, "seconds": 5.5, "val/loss": 3.0, "train/loss": 3.5},
        {"step": 3, "seconds": 7.0, "val/loss": 2.5},
    ]
    found = evaluations(rows, 3.0, [6.0, 7.0, 9.5])
    assert [e["step"] for e in found] == [0, 2, 3]
    assert [e["loss"] for e in found] == [4.0, 3.0, 2.5]
    assert [e["seconds"] for e in found] == pytest.approx([5.0, 8.5, 10.0])
    assert [e["evaluating"] for e in found] == pytest.approx([2.0, 3.5, 4.0])


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("suite.experiments=[]", "must name at least one, and each once"),
        ("suite.seeds=[1,1]", "must name at least one, and each once"),
        ("suite.target=0", "suite.target=0: must be above 0"),
        ("suite.experiments=[shakespeare_char_fast,shakespear]", "experiment=shakespear: no such choice"),
        ('suite.settings=["trainer.max_stepz=3"]', "trainer.max_stepz=3: no such setting; did you mean trainer.max_steps?"),
        ("device=cpu_bf16", """device.precision=bf16: is a setting of the runs use 'suite.settings=["device=cpu_bf16"]'"""),
        ("seed=2", "seed=2: this suite has a run with each of suite.seeds"),
        ("model=nano", "say which model; none is chosen beside"),
        ("suite.rounds=3", "suite.rounds=3: this choice of suite has no such setting"),
    ],
)
def test_a_wrong_setting_is_refused(argument, message, capsys):
    assert commands.benchmark(["suite=time_to_loss", argument]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
