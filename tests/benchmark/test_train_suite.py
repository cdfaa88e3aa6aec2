"""suite=train: all contestants end to end, nanoGPT's way of computing, and that ours is the trainer's step."""

from __future__ import annotations

import json
import sys
from statistics import median

import pytest
import torch
from torch.nn import functional as F

from gpt2x import commands
from gpt2x.benchmark import machine, nanogpt, train, train_contestants
from gpt2x.benchmark.train_contestants import CONTESTANTS
from gpt2x.config.option import ConfigError
from gpt2x.device import DeviceConfig
from gpt2x.model.gpt import GPT
from gpt2x.tracking.console import size

SMALL = [
    "suite=train", "model.n_layer=2", "model.n_head=2", "model.n_embd=32", "suite.batch_size=3", "suite.tokens=16",
    "suite.vocab_size=70", "suite.steps=2", "suite.rounds=1", "device.threads=1",
]  # fmt: skip
# Plays the contestants: each time the same seconds a step, by its name.
ACTOR = """
import json, sys
job = json.loads(sys.stdin.readline())
name, turn = job["contestant"], job.get("turn", 0)
assert job["model"]["dropout"] == 0 and job["model"]["context_length"] == job["tokens"] == 16
seconds = {"nanogpt": 2.0, "nanogpt-bf16": 1.0}.get(name, 0.5)
loss = 4.0 + 0.003 * (name == "gpt2x")
print(json.dumps({"step_seconds": [seconds, 9.0, seconds], "cpu_seconds": [1.0], "first_losses": [loss, 3.9], "flops": 10**9,
    "peak_memory_bytes": 10**8}), flush=True)
"""


@pytest.fixture
def actors(monkeypatch):
    monkeypatch.setattr(train, "_COMMAND", [sys.executable, "-c", ACTOR])
    monkeypatch.setattr(machine, "gemm_speed", lambda rows, width, dtype: 4e9)
    monkeypatch.setattr(machine, "memory_bandwidth", lambda: 2e10)


def run(tmp_path, *arguments: str) -> tuple[int, dict]:
    output = tmp_path / "report.json"
    code = commands.benchmark([*SMALL, *arguments, f"output={output}", f"paths.cache={tmp_path}"])
    return code, json.loads(output.read_text())


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in text.splitlines() if line.startswith("| ")]


@pytest.mark.timeout(600)
def test_all_contestants_take_the_same_steps(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(machine, "memory_bandwidth", lambda: 2e10)  # which fills a gigabyte
    code, report = run(tmp_path)
    printed = capsys.readouterr()
    assert code == 0, printed.out + printed.err
    ready = [entry["name"] for entry in report["contestants"] if entry["status"] == "ready"]
    assert [entry["name"] for entry in report["contestants"]] == list(CONTESTANTS)
    assert {"nanogpt", "nanogpt-fused", "gpt2x"} <= set(ready)
    assert [(m["round"], m["contestant"]) for m in report["measurements"]] == [(r, n) for r in range(2) for n in ready]
    rows = {row["contestant"]: row for row in report["summary"]}
    assert list(rows) == ready
    for name, row in rows.items():
        tolerance = 2e-2 if CONTESTANTS[name].bf16 else 2e-4
        assert row["first_losses"] == pytest.approx(rows["nanogpt"]["first_losses"], abs=tolerance)
        assert abs(row["first_losses"][0] - row["first_losses"][1]) > 1e-3  # two batches, or the second would say little
        assert 0 < row["of_limit"] < 1
    for m in report["measurements"]:
        assert len(m["step_seconds"]) == len(m["cpu_seconds"]) == 2
        assert min(m["step_seconds"]) > 0
        assert m["peak_memory_bytes"] > 2e7
    assert len({m["flops"] for m in report["measurements"]}) == 1
    assert report["limits"]["fp32_flops_per_s"] > 1e8
    assert report["table"] in printed.out


def test_the_table_says_what_was_measured(tmp_path, actors, monkeypatch, capsys):
    monkeypatch.setattr(DeviceConfig, "check_available", lambda self: None)
    code, report = run(tmp_path, "suite.rounds=2", "suite.contestants=[nanogpt,nanogpt-bf16,transformers]", "suite.steps=3")
    assert code == 0
    printed = capsys.readouterr().out
    assert "matrix products of a block: fp32 4 GFLOP/s, bf16 4 GFLOP/s; memory: 20 GB/s" in printed
    assert cells(printed) == [
        ["2 layers, 32 wide, 3 x 16 tokens", "ms a step", "tokens/s", "x nanogpt", "x nanogpt-bf16", "of the limit",
         "first losses", "peak memory"],
        ["nanogpt", "2000 (2000-2000)", "24", "1.00", "0.50", "12%", "4.0000 3.9000", size(10**8)],
        ["nanogpt-bf16", "1000 (1000-1000)", "48", "2.00", "1.00", "25%", "4.0000 3.9000", size(10**8)],
        ["transformers", "500.0 (500.0-500.0)", "96", "4.00", "2.00", "50%", "4.0000 3.9000", size(10**8)],
    ]  # fmt: skip
    assert median(report["measurements"][0]["step_seconds"]) == 2.0


def test_another_training_has_failed(tmp_path, actors, capsys):
    code, report = run(tmp_path, "suite.contestants=[gpt2x,nanogpt]")
    assert code == 1
    told = "failed   gpt2x: its first losses are 4.0030 3.9000 and those of nanogpt 4.0000 3.9000"
    assert told in capsys.readouterr().out
    assert [row["contestant"] for row in report["summary"]] == ["nanogpt"]


def test_without_a_peer_there_is_no_ratio(tmp_path, actors):
    code, report = run(tmp_path, "suite.contestants=[gpt2x]")
    (row,) = report["summary"]
    assert (code, row["times_baseline"], row["times_best_peer"]) == (0, None, None)


def test_who_cannot_take_part_is_told(tmp_path, actors, monkeypatch, capsys):
    def check_available(self):
        if self.precision == "bf16":
            raise ConfigError("precision", "bf16", "this processor has none")

    monkeypatch.setattr(DeviceConfig, "check_available", check_available)
    code, report = run(tmp_path, "suite.contestants=[nanogpt,gpt2x-bf16]")
    assert code == 0
    assert "skipped  gpt2x-bf16: this processor has none" in capsys.readouterr().out
    assert "bf16_flops_per_s" not in report["limits"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("suite.contestants=[nanogpt,llm.c]", "llm.c is none of nanogpt, nanogpt-fused,"),
        ("suite.steps=0", "suite.steps=0: must be at least 1"),
        ("suite.vocab_size=1", "suite.vocab_size=1: must be at least 2"),
        ("suite.epochs=5", "suite.epochs=5: this choice of suite has no such setting; suite=finetune has"),
        ("device=cpu_bf16", "the precision is part of what each contestant is"),
    ],
)
def test_a_wrong_setting_is_refused(argument, message, capsys):
    assert commands.benchmark([*SMALL, argument]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("tied_head", [True, False])
def test_nanogpts_way_is_the_same_function(tied_head, monkeypatch):
    """But for its GELU: with GPT-2's the loss and its gradients are the same, in float64."""
    shape = dict(vocab_size=50, n_layer=2, n_head=2, n_embd=8, context_length=12, tied_head=tied_head)
    draws = torch.Generator().manual_seed(1)
    ours = GPT(**shape, generator=draws).double()
    with torch.no_grad():
        for parameter in ours.parameters():  # no bias of zeros and no scale of ones, which could hide a mistake
            parameter.add_(torch.randn(parameter.shape, generator=draws), alpha=0.3)
    theirs = nanogpt.NanoGPT(ours)
    for block in theirs.h:
        block.mlp.gelu.approximate = "tanh"
    tokens_BT, targets_BT = torch.randint(50, (2, 3, 12), generator=draws)
    F.cross_entropy(ours(tokens_BT).flatten(0, 1), targets_BT.flatten()).backward()
    theirs(tokens_BT, targets_BT)[1].backward()
    mine, others = dict(ours.named_parameters()), dict(theirs.named_parameters())
    assert mine.keys() == others.keys()
    for name, parameter in others.items():
        torch.testing.assert_close(parameter.grad, mine[name].grad, rtol=1e-9, atol=1e-12)
        assert parameter is not mine[name]


def test_nanogpts_rate_falls_to_a_tenth():
    rates = [nanogpt.rate(step, peak=1.0, warmup=10, total=110) for step in (0, 9, 10, 60, 110, 1000)]
    assert rates == pytest.approx([1 / 11, 10 / 11, 1.0, 0.55, 0.1, 0.1])


def test_our_steps_train(tmp_path):
    """The losses of the trainer's own step, over batches that come again, fall; and the batches are the suite's."""
    job = dict(seed=3, batch_size=3, tokens=16, vocab_size=70, steps=30, contestant="gpt2x")
    job |= {"model": dict(n_layer=1, n_head=2, n_embd=32, context_length=16)}
    switches = dict(compile=False, deterministic=True, flush_denormals=True, keep_memory=True, kernels=True)
    job |= {"device": dict(type="cpu", threads=1) | switches, "cache": str(tmp_path)}
    model = GPT(vocab_size=70, **job["model"], generator=torch.Generator().manual_seed(3))
    step = CONTESTANTS["gpt2x"].load(job, model)
    first = [F.cross_entropy(model(x).flatten(0, 1), y.flatten()).item() for x, y in train_contestants._batches(job)]
    assert len({round(loss, 5) for loss in first}) == len(first)
    taken = [step(i) for i in range(len(first) + 1)]
    assert taken[0] == pytest.approx(first[0], abs=1e-5)
    assert taken[len(first)] < first[0] - 1e-3


def test_matrix_products_have_a_plausible_speed():
    torch.set_num_threads(1)
    assert 1e8 < machine.gemm_speed(64, 64, torch.float32, seconds=0.01) < 1e13
