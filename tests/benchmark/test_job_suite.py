"""suite=job: real runs from start to end, the script of plain torch, and every way to fail with actors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import psutil
import pytest
import torch
from torch.nn import functional as F

from gpt2x import commands
from gpt2x.benchmark import job
from gpt2x.benchmark.bare import BareGPT, train
from gpt2x.benchmark.job_contestants import CONTESTANTS
from gpt2x.config.compose import compose, quote
from gpt2x.config.schema import BenchmarkConfig, TrainConfig
from gpt2x.model.gpt import GPT

SMALL = [
    "suite=job", "model.n_layer=1", "model.n_head=2", "model.n_embd=16", "model.context_length=16", "suite.vocab_size=300",
    "suite.batch_size=4", "suite.steps=3", "suite.rounds=1", "device.threads=1",
]  # fmt: skip
CACHE = "the cache, of 'Zoë' {1}"
# Plays the contestants, as what their names stand for here.
ACTOR = """
import json, os, subprocess, sys, time
job = json.loads(sys.stdin.readline())
name = job["contestant"]
os.makedirs(job["folder"])  # what an earlier one left there is gone
assert job["model"]["dropout"] == 0 and job["steps"] == 10
answer = {}
if not name.startswith("two"):
    answer = {"parameters": 7 + (name == "gpt2x-wandb"), "tokens": 640, "first_step_seconds": 0.01, "step_seconds": 0.004}
if name == "gpt2x":
    answer |= {"step_seconds": 0.005, "training_seconds": 0.051}
if name == "two-at-once":
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    open(os.environ["BUSY"], "w").write(str(child.pid))
    time.sleep(60)
print(json.dumps(answer), flush=True)
"""


def run(tmp_path: Path, *arguments: str) -> tuple[int, dict]:
    """The command's exit code and its report; the cache lies in a folder that has to be quoted."""
    output, cache = tmp_path / "report.json", tmp_path / CACHE
    code = commands.benchmark([*SMALL, *arguments, f"output={output}", f"paths.cache={quote(str(cache))}"])
    return code, json.loads(output.read_text())


@pytest.fixture
def actors(monkeypatch):
    monkeypatch.setattr(job, "_COMMAND", [sys.executable, "-c", ACTOR])


def cells(text: str) -> list[list[str]]:
    """The cells of all tables' rows."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]


@pytest.mark.timeout(900)
def test_all_contestants_run_from_start_to_end(tmp_path, capsys):
    code, report = run(tmp_path)
    printed = capsys.readouterr()
    assert code == 0, printed.out + printed.err
    assert [(entry["name"], entry["status"]) for entry in report["contestants"]] == [(name, "ready") for name in CONTESTANTS]
    turns = report["measurements"]
    assert [(m["round"], m["contestant"]) for m in turns] == [(round, name) for round in range(2) for name in CONTESTANTS]
    runs = [m for m in turns if not m["contestant"].startswith("two")]
    assert {(m["parameters"], m["tokens"]) for m in runs} == {(runs[0]["parameters"], 3 * 4 * 16)}
    for m in runs:
        assert m["step_seconds"] > 0
        assert 0 < m["first_step_seconds"] < m["first_step_seconds"] + 2 * m["step_seconds"] < m["seconds"]
        if m["contestant"] != "bare":
            assert 2 * m["step_seconds"] < m["training_seconds"] < m["seconds"]
    assert report["table"] in printed.out
    assert [row[0] for row in cells(printed.out)] == [
        "3 steps of 4 x 16 tokens", "bare", "gpt2x", "gpt2x-wandb", "two runs of 3 steps", "two-in-turn", "two-at-once",
    ]  # fmt: skip
    assert list((tmp_path / CACHE).iterdir()) == []


def test_the_table_says_what_was_measured(tmp_path, actors, capsys):
    names = ["gpt2x", "two-in-turn", "bare"]
    chosen = f"suite.contestants=[{','.join(names)}]"
    code, report = run(tmp_path, "suite.steps=10", "suite.rounds=3", "device.threads=3", chosen)
    assert code == 0
    counted = {name: [m["seconds"] for m in report["measurements"] if m["contestant"] == name and m["round"]] for name in names}
    assert all(len(seconds) == 3 for seconds in counted.values())

    def spread(values: list[float]) -> str:
        return f"{median(values):.2f} ({min(values):.2f}-{max(values):.2f})"

    ratio = median(counted["gpt2x"]) / median(counted["bare"])
    head, gpt2x, bare, second, in_turn = cells(capsys.readouterr().out)
    assert head[0] == "10 steps of 4 x 16 tokens"
    assert gpt2x == [
        "gpt2x", "0.01 (0.01-0.01) s", "5.00 (5.00-5.00)", "1.25", f"{spread(counted['gpt2x'])} s", f"{ratio:.2f}",
        f"{spread([s - 0.05 for s in counted['gpt2x']])} s", "0.00 (0.00-0.00) s",
    ]  # fmt: skip
    assert bare[3:] == ["1.00", f"{spread(counted['bare'])} s", "1.00", f"{spread([s - 0.04 for s in counted['bare']])} s", ""]
    assert second[0] == "two runs of 10 steps"
    assert in_turn == ["two-in-turn", "3", f"{spread(counted['two-in-turn'])} s", "1.00"]


def test_another_training_has_failed(tmp_path, actors, capsys):
    code, report = run(tmp_path, "suite.steps=10", "suite.contestants=[gpt2x-wandb,bare]")
    assert code == 1
    told = "failed   gpt2x-wandb: it trained 8 parameters and 640 tokens, and bare 7 parameters and 640 tokens"
    assert told in capsys.readouterr().out
    assert [row["contestant"] for row in report["summary"]["runs"]] == ["bare"]


def test_without_bare_there_is_no_ratio(tmp_path, actors, capsys):
    code, report = run(tmp_path, "suite.steps=10", "suite.contestants=[gpt2x]")
    (row,) = report["summary"]["runs"]
    assert (code, row["step_seconds_times_baseline"], row["total_seconds_times_baseline"]) == (0, None, None)
    assert [row[0] for row in cells(capsys.readouterr().out)] == ["10 steps of 4 x 16 tokens", "gpt2x"]


@pytest.mark.timeout(900)
def test_a_run_that_fails_says_why(tmp_path, capsys):
    """More context than there is text."""
    code, report = run(tmp_path, "model.context_length=200000", "model.n_embd=2", "suite.contestants=[gpt2x]")
    assert code == 1
    assert "failed   gpt2x: ended with exit code 1" in capsys.readouterr().out
    assert "Use more text" in report["contestants"][0]["reason"]
    assert report["table"] == ""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_signal_leaves_no_process_and_no_file(tmp_path):
    program = (
        "import sys; from gpt2x import commands; from gpt2x.benchmark import job\n"
        "job._COMMAND = [sys.executable, '-c', sys.argv.pop(1)]; sys.exit(commands.benchmark())"
    )
    busy, cache = tmp_path / "busy", tmp_path / "cache"
    arguments = ["suite.steps=10", "suite.contestants=[two-at-once]", f"output={tmp_path / 'r.json'}", f"paths.cache={cache}"]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "BUSY": str(busy)}
    process = subprocess.Popen([sys.executable, "-c", program, ACTOR, *SMALL, *arguments], env=env, cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not (busy.exists() and busy.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    assert int(busy.read_text()) in [child.pid for child in children]
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    _, alive = psutil.wait_procs(children, 30)
    assert not alive
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("suite.contestants=[bare,gpt3]", "gpt3 is none of bare, gpt2x,"),
        ("suite.contestants=[]", "must name at least one, and each once"),
        ("suite.steps=1", "suite.steps=1: must be at least 2"),
        ("suite.vocab_size=256", "suite.vocab_size=256: must be at least 257"),
        ("suite.batch_size=0", "suite.batch_size=0: must be at least 1"),
        ("suite.tokens=5", "suite.tokens=5: this choice of suite has no such setting; suite=finetune or suite=train has"),
        ("model.position=rope", "the other contestants are GPT-2 alone"),
    ],
)
def test_a_wrong_setting_is_refused(argument, message, capsys):
    assert commands.benchmark([*SMALL, argument]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_by_default_it_is_the_first_run():
    ours, first = compose("benchmark", BenchmarkConfig, ["suite=job"]), compose("train", TrainConfig)
    assert ours.model == first.model
    assert (ours.suite.batch_size, ours.suite.vocab_size) == (first.data.batch_size, first.tokenizer.vocab_size)
    assert (
        compose("benchmark", BenchmarkConfig, ["suite=job", "model=mini"]).model
        == compose("train", TrainConfig, ["model=mini"]).model
    )


@pytest.mark.parametrize("tied_head", [True, False])
def test_the_bare_model_is_the_same_function(tied_head):
    """The loss and its gradients, in float64, with weights that leave no bias at zero and no scale at one."""
    shape = dict(vocab_size=50, n_layer=2, n_head=2, n_embd=8, context_length=12, tied_head=tied_head)
    ours, bare = GPT(**shape).double(), BareGPT(**shape).double()
    pairs = list(zip(ours.parameters(), bare.parameters(), strict=True))
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p, q in pairs:
            p.add_(torch.randn(p.shape, generator=draws), alpha=0.3)
            q.copy_(p)
    tokens_BT = torch.randint(50, (3, 12), generator=draws)
    for model in (ours, bare):
        F.cross_entropy(model(tokens_BT)[:, :-1].flatten(0, 1), tokens_BT[:, 1:].flatten()).backward()
    for p, q in pairs:
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-9, atol=1e-12)


def test_the_bare_script_takes_its_steps(monkeypatch):
    seen, entropy = [], F.cross_entropy
    monkeypatch.setattr(F, "cross_entropy", lambda logits, targets: seen.append((logits, targets)) or entropy(logits, targets))
    shape = dict(vocab_size=8, n_layer=1, n_head=2, n_embd=8, context_length=6, tied_head=False)
    short, long = (train(shape=shape, batch_size=5, steps=steps, threads=1, seed=1) for steps in (1, 40))
    assert [(logits.shape, targets.shape) for logits, targets in seen] == [((30, 8), (30,))] * 41
    assert torch.equal(seen[0][1], seen[1][1])  # of one seed
    assert not torch.equal(seen[1][1], seen[2][1])  # another batch in each step
    for p, q in zip(short.parameters(), long.parameters(), strict=True):
        assert q.isfinite().all()
        assert not torch.equal(p, q)
