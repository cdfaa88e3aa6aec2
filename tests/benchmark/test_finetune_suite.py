"""suite=finetune: all contestants end to end, the book's way of computing, and that ours is the trainer's step."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from importlib import metadata
from statistics import median

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from gpt2x import commands
from gpt2x.benchmark import finetune, finetune_contestants
from gpt2x.benchmark.book import BookClassifier
from gpt2x.benchmark.finetune_contestants import CONTESTANTS, Contestant
from gpt2x.config.instantiate import instantiate
from gpt2x.config.option import ConfigError
from gpt2x.device import DeviceConfig
from gpt2x.model.classifier import Classifier
from gpt2x.model.gpt import GPT
from gpt2x.tokenizer import base as tokenizers
from gpt2x.tracking.console import size
from gpt2x.training.config import FullConfig, LastBlockConfig
from gpt2x.training.finetune import last_block
from gpt2x.training.load import new_model
from gpt2x.training.run import train

SMALL = [
    "suite=finetune", "model.n_layer=3", "model.n_head=2", "model.n_embd=32", "model.context_length=32", "suite.tokens=20",
    "device.threads=1", "suite.rounds=1",
]  # fmt: skip
# Plays the contestants: each time the same seconds a step, and what its name stands for here.
ACTOR = """
import json, sys
job = json.loads(sys.stdin.readline())
name = job["contestant"]
assert len(job["rows"]) == 3 * 4 and {len(row["tokens"]) for row in job["rows"]} == {20}, job["rows"]
assert {row["class"] for row in job["rows"]} == {0, 1} and job["model"]["dropout"] == 0
print(json.dumps({"load_seconds": 1.0}), flush=True)
for turn, line in enumerate(sys.stdin):
    losses = [0.7 - 0.1 * turn - 0.01 * step + 0.002 * (name == "gpt2x") for step in range(3)]
    answer = {"seconds": {"book": 2.0}.get(name, 0.5) + 0.01 * turn, "losses": losses, "peak_memory_bytes": 10**9 + turn}
    if name == "gpt2x-cached":
        answer["states_seconds"] = 1.0 + 0.01 * turn
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def tiny() -> Classifier:
    gpt = GPT(vocab_size=50, n_layer=2, n_head=2, n_embd=8, context_length=12, generator=torch.Generator().manual_seed(1))
    model = Classifier(gpt, n_classes=2, pooling="padded_last", generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        for parameter in model.parameters():  # no bias of zeros and no scale of ones, which could hide a mistake
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)), alpha=0.3)
    last_block(model, blocks=1)
    return model


def test_all_contestants_train_the_same(tmp_path, capsys):
    """From the same weights with the same batches: the losses of the first two steps say so."""
    output = tmp_path / "report.json"
    code = commands.benchmark([*SMALL, f"output={output}", f"paths.cache={tmp_path}"])
    printed = capsys.readouterr()
    assert code == 0, printed.out + printed.err
    report = json.loads(output.read_text())
    status = {entry["name"]: entry["status"] for entry in report["contestants"]}
    assert list(status) == list(CONTESTANTS)
    assert {name for name, what in status.items() if what == "ready"} >= {"book", "gpt2x", "gpt2x-cached", "gpt2x-full"}
    first = {row["contestant"]: row["first_losses"] for row in report["summary"]}
    assert first.keys() == {name for name, what in status.items() if what == "ready"}
    assert abs(first["book"][0] - first["book"][1]) > 1e-3  # two batches, or the second would say little
    for name, losses in first.items():
        assert len(losses) == 2
        if CONTESTANTS[name].same:
            assert losses == pytest.approx(first["book"], abs=1e-4)
        else:
            assert losses[0] == pytest.approx(first["book"][0], abs=1e-4 if name == "gpt2x-full" else 0.02)
    assert abs(first["gpt2x-full"][1] - first["book"][1]) > 1e-4  # more is trained, so it is not the same
    for m in report["measurements"]:
        assert len(m["losses"]) == 2
        assert m["seconds"] > 0
        assert ("states_seconds" in m) == m["contestant"].startswith("gpt2x-cached")
        assert m["peak_memory_bytes"] > 2e7
    assert report["table"] in printed.out
    if "transformers" in first:
        assert report["contestants"][1]["versions"] == {"transformers": metadata.version("transformers")}


def test_the_table_says_what_was_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(finetune, "_COMMAND", [sys.executable, "-c", ACTOR])
    output, names = tmp_path / "report.json", ["gpt2x-cached", "book", "gpt2x-full"]
    arguments = ["suite.steps=3", "suite.batch_size=4", "suite.rounds=3", "suite.epoch_steps=10", "suite.epochs=2"]
    chosen = f"suite.contestants=[{','.join(names)}]"
    assert commands.benchmark([*SMALL, *arguments, chosen, f"output={output}", f"paths.cache={tmp_path}"]) == 0
    report = json.loads(output.read_text())
    assert [(m["round"], m["contestant"]) for m in report["measurements"]] == [(r, n) for r in range(4) for n in names]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert lines[0].startswith("| batches of 4 x 20 tokens ")
    assert "| epoch of 10 steps |" in lines[0]
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines[2:]]
    counted = {name: [m for m in report["measurements"] if m["contestant"] == name and m["round"]] for name in names}
    book = median(m["seconds"] for m in counted["book"])
    for row, name in zip(rows, names, strict=True):
        steps = [m["seconds"] for m in counted[name]]
        states = median(m["states_seconds"] for m in counted[name]) * 10 if name == "gpt2x-cached" else None
        training = median(steps) * 10 * 2 + (states or 0)
        assert row == [
            name,
            f"{median(steps) * 1000:.0f} ({min(steps) * 1000:.0f}-{max(steps) * 1000:.0f})",
            f"{book / median(steps):.2f}",
            f"{median(steps) * 10:.1f} s",
            "" if states is None else f"{states:.1f} s",
            f"{training:.1f} s",
            f"{book * 20 / training:.2f}",
            "0.70000 0.69000",  # of the round that does not count, which is the first
            size(10**9 + 3),
        ]


def test_another_training_has_failed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(finetune, "_COMMAND", [sys.executable, "-c", ACTOR])
    output = tmp_path / "report.json"
    arguments = ["suite.steps=3", "suite.batch_size=4", "suite.contestants=[gpt2x,gpt2x-cached,book]"]
    assert commands.benchmark([*SMALL, *arguments, f"output={output}", f"paths.cache={tmp_path}"]) == 1
    told = "failed   gpt2x: its first losses are 0.70200 0.69200 and those of book 0.70000 0.69000"
    assert told in capsys.readouterr().out
    report = json.loads(output.read_text())
    assert [row["contestant"] for row in report["summary"]] == ["gpt2x-cached", "book"]


def test_without_the_book_there_is_no_ratio(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(finetune, "_COMMAND", [sys.executable, "-c", ACTOR])
    output = tmp_path / "report.json"
    arguments = ["suite.steps=3", "suite.batch_size=4", "suite.contestants=[gpt2x]"]
    assert commands.benchmark([*SMALL, *arguments, f"output={output}", f"paths.cache={tmp_path}"]) == 0
    (row,) = json.loads(output.read_text())["summary"]
    assert (row["epoch_times_baseline"], row["training_times_baseline"]) == (None, None)
    assert "| gpt2x | 510 (510-510) |  | 66.3 s |  | 331.5 s |  |" in capsys.readouterr().out


def test_who_cannot_take_part_is_told(tmp_path, monkeypatch, capsys):
    """Where the processor has no bfloat16 instructions, or a package is missing."""
    monkeypatch.setattr(finetune, "_COMMAND", [sys.executable, "-c", ACTOR])

    def check_available(self):
        if self.precision == "bf16":
            raise ConfigError("precision", "bf16", "this processor has none")

    monkeypatch.setattr(DeviceConfig, "check_available", check_available)
    monkeypatch.setitem(CONTESTANTS, "missing", Contestant("missing", None, requires=("no-such-package",)))
    arguments = ["suite.steps=3", "suite.batch_size=4", "suite.contestants=[book,gpt2x-bf16,missing]"]
    assert commands.benchmark([*SMALL, *arguments, f"output={tmp_path / 'r.json'}", f"paths.cache={tmp_path}"]) == 0
    output = capsys.readouterr().out
    assert "skipped  gpt2x-bf16: this processor has none" in output
    assert "skipped  missing: not installed: pip install no-such-package" in output


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("suite.contestants=[book,gpt2x-eager]", "gpt2x-eager is none of book, transformers,"),
        ("suite.contestants=[book,book]", "must name at least one, and each once"),
        ("suite.contestants=[]", "must name at least one, and each once"),
        ("suite.tokens=33", "suite.tokens=33: more than model.context_length=32"),
        ("suite.steps=0", "suite.steps=0: must be at least 1"),
        ("suite.rounds=0", "suite.rounds=0: must be at least 1"),
        ("suite.new_tokens=5", "suite.new_tokens=5: this choice of suite has no such setting; suite=generate has"),
        ("device.precision=bf16", "the precision is part of what each contestant is"),
    ],
)
def test_a_wrong_setting_is_refused(argument, message, capsys):
    assert commands.benchmark([*SMALL, argument]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_the_books_way_is_the_same_function(tiny):
    """The logits of all positions and the gradients, in float64, with the same parameters trained."""
    tiny = tiny.double()
    book = BookClassifier(tiny)
    tokens_BT = torch.randint(50, (3, 11), generator=torch.Generator().manual_seed(4))
    logits_BTK = book(tokens_BT)
    for t in range(11):
        torch.testing.assert_close(logits_BTK[:, t], tiny(tokens_BT, torch.full((3,), t + 1)), rtol=1e-10, atol=1e-10)
    trained = [[p for p in model.parameters() if p.requires_grad] for model in (tiny, book)]
    assert sum(p.numel() for p in trained[0]) == sum(p.numel() for p in trained[1]) > 0
    targets_B = torch.tensor([0, 1, 1])
    F.cross_entropy(logits_BTK[:, -1, :], targets_B).backward()
    F.cross_entropy(tiny(tokens_BT, torch.full((3,), 11)), targets_B).backward()
    block, theirs = tiny.gpt.h[-1], book.blocks[-1]
    pairs = [
        (tiny.score.weight.grad, book.head.weight.grad),
        (tiny.gpt.ln_f.bias.grad, book.norm.shift.grad),
        (block.ln_1.weight.grad, theirs.norm1.scale.grad),
        (block.mlp.c_fc.weight.grad, theirs.widen.weight.grad),
        (
            block.attn.c_attn.weight.grad,
            torch.cat(
                [theirs.attention.query.weight.grad, theirs.attention.key.weight.grad, theirs.attention.value.weight.grad]
            ),
        ),
    ]
    for ours, of_the_book in pairs:
        torch.testing.assert_close(of_the_book, ours, rtol=1e-9, atol=1e-12)
    assert book.blocks[0].widen.weight.grad is None


def test_the_books_weights_are_its_own(tiny):
    book = BookClassifier(tiny)
    with torch.no_grad():
        before = [p.clone() for p in tiny.parameters()]
        for parameter in book.parameters():
            parameter.zero_()
    assert all(torch.equal(a, b) for a, b in zip(before, tiny.parameters(), strict=True))


@pytest.mark.parametrize("name", ["gpt2x", "gpt2x-cached", "gpt2x-full"])
def test_our_steps_are_those_of_the_trainer(name, small_run, tmp_path, monkeypatch):
    """gpt2x-train with the same rows and weights reports the same losses, step by step."""
    rows = "".join(f"{word} {i} {word * (i % 3)},{word}\n" for i in range(40) for word in ("good", "bad"))
    (tmp_path / "rows.csv").write_text("text,label\n" + rows)
    config = small_run(
        **{
            "data._target_": "gpt2x.data.table.TableCorpus",
            "data.path": str(tmp_path / "rows.csv"),
            "data.shuffle": False,
            "task._target_": "gpt2x.task.classifier.Classification",
            "task.pooling": "padded_last",
            "model.dropout": 0.0,
            "optimizer.lr": finetune_contestants.LEARNING_RATE,
            "optimizer.weight_decay": finetune_contestants.WEIGHT_DECAY,
            "optimizer.betas": [0.9, 0.999],
            "optimizer.decay_all": True,
            "schedule._target_": "gpt2x.training.schedule.Constant",
            "schedule.warmup_steps": 0,
            "trainer.max_steps": 30,
            "trainer.eval_every": 30,
            "trainer.clip_norm": None,
            "device.threads": 1,
        }
    )
    config.finetune = FullConfig() if name == "gpt2x-full" else LastBlockConfig()
    train(config, tmp_path / "run")
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    expected = [row["train/loss"] for row in logged if "train/loss" in row]
    assert len(expected) == 30

    tokenizer = tokenizers.load(tmp_path / "run" / "tokenizer.json")
    corpus = instantiate(config.data, cache=tmp_path / "cache", mirror=None)
    task = instantiate(config.task, tokenizer, corpus.about)
    data = task.batches(corpus, context_length=config.model.context_length, seed=1)
    monkeypatch.setattr(finetune_contestants, "_model", lambda job: new_model(config, tokenizer, task))
    monkeypatch.setattr(finetune_contestants, "_data", lambda job: data)
    device = asdict(config.device)
    device.pop("_target_")
    answer = CONTESTANTS[name].load({"device": device, "cache": str(tmp_path / "cache")})
    got = answer({})["losses"]
    while len(got) < 30:
        got += answer({})["losses"]
    np.testing.assert_allclose(got[:30], expected, rtol=0, atol=2e-6)
