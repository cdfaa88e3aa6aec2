"""suite=load: real models of every form, and every way to fail with actors."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from gpt2x import commands
from gpt2x.benchmark import load
from gpt2x.benchmark.load_contestants import CONTESTANTS, measure

SMALL = ["suite=load", "model.n_layer=1", "model.n_head=2", "model.n_embd=8", "suite.rounds=1", "device.threads=1"]
# Plays the contestants: loads nothing, and says that it took what their names stand for here.
ACTOR = """
import json, os, sys
job = json.loads(sys.stdin.readline())
form = {"run": "run", "openai": "openai"}[job["contestant"]]
assert os.listdir(os.path.join(job["folder"], form))
logits = json.load(open(os.environ["LOGITS"]))
if job["contestant"] == "openai":
    logits[3] += 0.01
size = os.path.getsize(os.path.join(job["folder"], "run", "checkpoints", "step-00000000", "model.safetensors"))
answer = {"load_seconds": 0.25, "ready_seconds": 0.5, "held_bytes": 1000, "peak_memory_bytes": 1000 + 2 * size}
print(json.dumps(answer | {"logits": logits}))
"""


def run(tmp_path: Path, *arguments: str) -> tuple[int, dict]:
    """The command's exit code and its report."""
    output, cache = tmp_path / "report.json", tmp_path / "cache"
    code = commands.benchmark([*SMALL, *arguments, f"output={output}", f"paths.cache={cache}"])
    assert list(cache.iterdir()) == []
    return code, json.loads(output.read_text())


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in text.splitlines() if line.startswith("| ")]


SHAPE = dict(n_layer=1, n_head=2, n_embd=8, context_length=8, dropout=0.0, attention="sdpa", tied_head=True)


@pytest.fixture(scope="module")
def forms(tmp_path_factory) -> tuple[Path, list[float]]:
    """A model in every form, and its logits."""
    folder = tmp_path_factory.mktemp("forms")
    return folder, load.write_forms(folder, {c.form for c in CONTESTANTS.values()}, SHAPE, seed=1, tokens=[1, 2])


@pytest.mark.parametrize("name", CONTESTANTS)
def test_every_form_is_loaded(forms, name):
    for package in CONTESTANTS[name].requires:
        pytest.importorskip(package)
    folder, logits = forms
    answer = measure({"contestant": name, "folder": str(folder), "threads": 1, "tokens": [1, 2]})
    assert answer["logits"] == pytest.approx(logits, abs=1e-5)
    assert 0 < answer["load_seconds"] < answer["ready_seconds"]
    assert 0 < answer["held_bytes"] <= answer["peak_memory_bytes"]
    numbers = 8 * (50257 + 8) + 12 * 8 * 8 + 13 * 8 + 2 * 8
    size = (folder / CONTESTANTS[name].form / load._WEIGHTS[CONTESTANTS[name].form]).stat().st_size
    assert 4 * numbers <= size < 4.1 * numbers


@pytest.mark.slow
def test_all_contestants_take_part(tmp_path, capsys):
    pytest.importorskip("transformers")
    code, report = run(tmp_path)
    printed = capsys.readouterr()
    assert code == 0, printed.out + printed.err
    assert [(entry["name"], entry["status"]) for entry in report["contestants"]] == [(name, "ready") for name in CONTESTANTS]
    turns = report["measurements"]
    assert [(m["round"], m["contestant"]) for m in turns] == [(round, name) for round in range(2) for name in CONTESTANTS]
    assert all(m["ready_seconds"] < m["seconds"] for m in turns)
    assert report["table"] in printed.out
    assert [row[0] for row in cells(printed.out)] == ["loading", *CONTESTANTS]


def test_the_table_says_what_was_measured_and_another_model_has_failed(tmp_path, monkeypatch, capsys):
    write_forms = load.write_forms

    def noting(*args, **settings) -> list[float]:
        (tmp_path / "logits").write_text(json.dumps(logits := write_forms(*args, **settings)))
        return logits

    monkeypatch.setattr(load, "write_forms", noting)
    monkeypatch.setenv("LOGITS", str(tmp_path / "logits"))
    monkeypatch.setattr(load, "_COMMAND", [sys.executable, "-c", ACTOR])
    code, report = run(tmp_path, "suite.contestants=[openai,run]", "suite.rounds=3")
    assert code == 1
    printed = capsys.readouterr().out
    assert "failed   openai: it has loaded another model" in printed
    assert cells(printed)[1] == ["run", "2 MB", "0.25 (0.25-0.25)", "0.50 (0.50-0.50)", "3 MB", "2.00"]
    (row,) = report["summary"]
    assert row["peak_above_bytes"]["median"] == 2 * row["file_bytes"]


def test_a_head_of_its_own_is_in_no_file_of_openai(tmp_path, capsys):
    code, report = run(tmp_path, "suite.contestants=[openai,run]", "model.tied_head=false")
    assert code == 0
    assert "skipped  openai: OpenAI's files hold no head of its own: use model.tied_head=true" in capsys.readouterr().out
    assert [row["contestant"] for row in report["summary"]] == ["run"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("suite.contestants=[run,tensorflow]", "tensorflow is none of run, openai, hf-safetensors, hf-bin, transformers"),
        ("suite.contestants=[]", "must name at least one, and each once"),
        ("suite.rounds=0", "suite.rounds=0: must be at least 1"),
    ],
)
def test_a_wrong_setting_is_refused(argument, message, capsys):
    assert commands.benchmark([*SMALL, argument]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_form_that_is_not_asked_for_is_not_written(tmp_path):
    load.write_forms(tmp_path, {"bin"}, SHAPE, seed=1, tokens=[1, 2])
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]
    assert not (tmp_path / "bin" / "model.safetensors").exists()
