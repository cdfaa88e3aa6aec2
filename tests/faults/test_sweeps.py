"""Sweeps that are killed, stopped or out of time go on to what an undisturbed one reaches."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from faults.command import ROOT, finish, outcome, rows, wait_for

SMALL = [
    "model.n_layer=2", "model.n_head=2", "model.n_embd=32", "model.context_length=32", "model.dropout=0.1",
    "tokenizer=char", "data=text", "data.batch_size=4", "device.threads=1", "logger=none", "sample_prompt=null",
    "trainer.eval_every=50", "trainer.checkpoint_every=10", "trainer.log_every=1", "device.kernels=true",
]  # fmt: skip


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("The cat sat on the mat, and the dog lay by the log. " * 60)
    return path


@pytest.fixture
def broken(tmp_path):
    """A file that is there, as is checked before a sweep starts, and cannot be read as text."""
    path = tmp_path / "broken.txt"
    path.write_bytes(b"\xff" * 5000)
    return path


def sweep(folder: Path, *overrides: str) -> subprocess.Popen:
    """Start a sweep in a session of its own; the same call again goes on with it."""
    first = [] if overrides[0].startswith("resume=") else ["-m", *SMALL, f"paths.outputs={folder.parent / 'outputs'}"]
    first += [f"hydra.sweep.dir={folder}"] if first else []
    command = [sys.executable, str(ROOT / "scripts/train.py"), *first, *overrides]
    environment = os.environ | {"WANDB_MODE": "disabled", "COLUMNS": "120"}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen(command, env=environment, start_new_session=True, **pipes)


def result(run: Path) -> dict:
    path = run / "result.json"
    return json.loads(path.read_text()) if path.exists() else {}


def statuses(folder: Path) -> dict[int, str]:
    with open(folder / "sweep.csv", newline="") as file:
        return {int(row["job"]): row["status"] for row in csv.DictReader(file)}


def contents(folder: Path) -> dict:
    """The bytes and the time of each file of a run."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.relative_to(folder): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def members(session: int) -> list[str]:
    """The processes of a session that still run, by their command lines."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except (ProcessLookupError, psutil.Error):
            continue
    return found


def all_gone(session: int, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while left := members(session):
        assert time.monotonic() < end, left
        time.sleep(0.1)


def test_twelve_runs_one_failing_killed_halfway_and_started_again(tmp_path, text, broken):
    """Under joblib: the sweep's own process gets a kill -9, which it cannot pass on to those of its runs."""
    folder = tmp_path / "sweep"
    paths = [str(text)] * 12
    paths[2] = str(broken)
    asked = [
        "sweep=paired", f"seed={','.join(map(str, range(1, 13)))}", f"data.path={','.join(paths)}", "trainer.max_steps=200",
        "hydra/launcher=joblib", "hydra.launcher.n_jobs=2",
    ]  # fmt: skip
    process = sweep(folder, *asked)

    def halfway() -> bool:
        done = [result(folder / str(n)).get("status") for n in range(12)]
        inside = [n for n in range(12) if 20 < rows(folder / str(n)) < 150 and done[n] is None]
        return done.count("finished") >= 4 and done.count("failed") == 1 and bool(inside)

    wait_for(halfway, process)
    process.kill()
    process.communicate()
    begun = [n for n in range(12) if (folder / str(n) / "config.yaml").exists()]
    killed = [n for n in begun if result(folder / str(n)).get("status") not in ("finished", "failed")]
    finished = {n: contents(folder / str(n)) for n in range(12) if result(folder / str(n)).get("status") == "finished"}
    assert not (folder / "sweep.csv").exists()

    output = (again := sweep(folder, f"resume={folder}")).communicate(timeout=240)[0]
    assert again.returncode == 1, output
    assert statuses(folder) == {n: "failed" if n == 2 else "finished" for n in range(12)}
    assert {n: contents(folder / str(n)) for n in finished} == finished
    assert re.search(r"^ +2  .* failed", output, re.MULTILINE)
    assert "run 2 failed:" in output and "broken.txt" in output
    log = (folder / "2/run.log").read_text()
    assert (log.count("INFO run "), log.count("ERROR Traceback")) == (2, 2)  # both attempts
    gone_on = [n for n in killed if "going on from step" in (folder / str(n) / "run.log").read_text()]
    assert gone_on
    order = [int(match[1]) for match in re.finditer(r"^ +(\d+)  .*  finished  ", output, re.MULTILINE)]
    values = [result(folder / str(n))["metric"]["value"] for n in order]
    assert len(values) == 11
    assert values == sorted(values)

    for number in gone_on[:1]:  # as if it had never been disturbed
        alone = tmp_path / "alone"
        arguments = [f"seed={number + 1}", f"data.path={text}", "trainer.max_steps=200"]
        command = [sys.executable, str(ROOT / "scripts/train.py"), *SMALL, *arguments]
        command += [f"paths.outputs={tmp_path / 'outputs'}", f"hydra.run.dir={alone}"]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        assert outcome(alone) == outcome(folder / str(number))


@pytest.mark.parametrize(
    ("number", "code", "whole_group"),
    [
        (signal.SIGTERM, 143, False),
        (signal.SIGINT, 130, True),  # as a terminal sends it
        pytest.param(signal.SIGINT, 130, False, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143, True, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_all_processes_in_order(tmp_path, text, number, code, whole_group):
    folder = tmp_path / "sweep"
    asked = [f"data.path={text}", "trainer.checkpoint_every=100000", "trainer.eval_every=100000"]
    process = sweep(
        folder, "seed=1,2,3", "trainer.max_steps=100000", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *asked
    )
    wait_for(lambda: all(rows(folder / str(n)) > 5 for n in range(2)), process)
    (os.killpg if whole_group else os.kill)(process.pid, number)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == code, output
    all_gone(process.pid)
    assert statuses(folder) == {0: "interrupted", 1: "interrupted", 2: "not run"}
    for n in range(2):
        steps = result(folder / str(n))["steps"]
        assert [path.name for path in (folder / str(n) / "checkpoints").iterdir()] == [f"step-{steps:08d}"]
    assert f"go on    gpt2x-train resume={folder}" in output
    assert "[0] stopped and saved at step" in output
    assert not (folder / ".stop").exists()


def test_a_signal_to_a_sweep_in_one_process(tmp_path, text):
    folder = tmp_path / "sweep"
    process = sweep(folder, "seed=1,2", "trainer.max_steps=200", f"data.path={text}")
    wait_for(lambda: rows(folder / "0") > 15, process)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 143, output
    assert "Traceback" not in output
    assert statuses(folder) == {0: "interrupted", 1: "not run"}
    output = finish(sweep(folder, f"resume={folder}"))
    assert "run 0 (going on)" in output
    assert statuses(folder) == {0: "finished", 1: "finished"}


def test_joblib_with_a_single_worker_makes_its_runs_in_this_process(tmp_path, text):
    folder = tmp_path / "sweep"
    joblib = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=1"]
    process = sweep(folder, "seed=1,2", "trainer.max_steps=200", f"data.path={text}", *joblib)
    wait_for(lambda: rows(folder / "0") > 15, process)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 143, output
    assert statuses(folder) == {0: "interrupted", 1: "not run"}
    finish(sweep(folder, f"resume={folder}"))
    assert statuses(folder) == {0: "finished", 1: "finished"}


@pytest.mark.slow
def test_no_run_begins_after_a_failure_side_by_side(tmp_path, text, broken):
    folder = tmp_path / "sweep"
    asked = ["sweep=paired", "sweep.on_error=stop", "seed=1,2,3,4,5,6", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    process = sweep(folder, *asked, f"data.path={broken},{','.join([str(text)] * 5)}", "trainer.max_steps=300")
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 1, output
    found = statuses(folder)
    assert found[0] == "failed"
    assert found[1] in ("finished", "not run")  # it may have begun before the other one failed
    assert [found[n] for n in range(2, 6)] == ["not run"] * 4


def test_a_job_that_is_out_of_time_is_queued_again_and_goes_on(tmp_path, text):
    """With submitit's own executor for this machine, which starts a job again as a cluster does."""
    pytest.importorskip("submitit")
    folder = tmp_path / "sweep"
    process = sweep(folder, "seed=1", "trainer.max_steps=200", f"data.path={text}", "hydra/launcher=submitit_local")
    wait_for(lambda: rows(folder / "0") > 50, process)
    (task,) = [p for p in psutil.Process(process.pid).children(recursive=True) if "submitit.core._submit" in p.cmdline()]
    before = rows(folder / "0")
    task.send_signal(signal.SIGUSR2)
    output = process.communicate(timeout=240)[0]
    log = (folder / "0/run.log").read_text()
    assert process.returncode == 0, output + log
    stopped = int(re.search(r"stopped and saved at step (\d+)", log)[1])
    assert before - 1 <= stopped < 200
    assert f"going on from step {stopped}" in log  # nothing was lost, although it was between two checkpoints
    assert statuses(folder) == {0: "finished"}
