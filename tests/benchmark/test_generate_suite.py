"""suite=generate: real contestants end to end, and every way to fail with contestants of our own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from statistics import median

import psutil
import pytest

from gpt2x import commands
from gpt2x.benchmark import generate
from gpt2x.benchmark.generate_contestants import CONTESTANTS, Contestant, Stopwatch
from gpt2x.tracking.console import size

SMALL = [
    "model.n_layer=1", "model.n_head=2", "model.n_embd=32", "model.context_length=32", "suite.prompt_tokens=5",
    "suite.new_tokens=4", "device.threads=1",
]  # fmt: skip
# Plays the contestants: each time the same number of seconds a token, and what its name stands for here.
ACTOR = """
import json, sys, time
job = json.loads(sys.stdin.readline())
print(json.dumps({"load_seconds": 1.0}), flush=True)
for turn, line in enumerate(sys.stdin):
    name, batch = job["contestant"], json.loads(line)["batch_size"]
    assert len(job["prompts"]) >= batch and {len(prompt) for prompt in job["prompts"]} == {5}
    if name == "gpt2x-bf16" and turn == 2:
        sys.exit("no more")
    if name == "gpt2x-int8":
        time.sleep(60)
    tokens = batch * job["new_tokens"] - (name == "gpt2x-eager")
    step = {"gpt2x-fp32": 0.25}.get(name, 0.5) + 0.01 * turn
    seconds = step * job["new_tokens"]
    answer = {"seconds": seconds, "first_token_seconds": step, "decode_seconds": seconds - step, "tokens": tokens}
    print(json.dumps(answer | {"peak_memory_bytes": 10**9 + turn}), flush=True)
"""


def installed(name: str) -> bool:
    try:
        return all(metadata.version(package) for package in CONTESTANTS[name].requires)
    except metadata.PackageNotFoundError:
        return False


def cells(output: str) -> list[list[str]]:
    """The printed table without its head."""
    lines = [line.strip("| ").split(" | ") for line in output.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines[2:]]


@pytest.fixture
def actors(monkeypatch):
    monkeypatch.setattr(generate, "_COMMAND", [sys.executable, "-c", ACTOR])
    monkeypatch.setattr(generate, "memory_bandwidth", lambda: 1e8)


def test_real_contestants_end_to_end(tmp_path, monkeypatch, capsys):
    """The ones that are installed; a missing one is skipped and named."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(CONTESTANTS, "missing", Contestant("missing", None, 4, requires=("no-such-package",)))
    names = ["gpt2x-int8", "gpt2x-bf16-compute", "transformers-fp32", "llama.cpp-q8_0"]
    chosen = f"suite.contestants=[{','.join([*names, 'missing'])}]"
    assert commands.benchmark([*SMALL, chosen, "suite.rounds=1", "suite.batch_sizes=[1,2]", "output=report.json"]) == 0
    output = capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    assert "skipped  missing: not installed: pip install no-such-package" in output

    status = {entry["name"]: entry["status"] for entry in report["contestants"]}
    assert status == {name: "ready" if installed(name) else "skipped" for name in names} | {"missing": "skipped"}
    expected = [(name, batch) for batch in (1, 2) for name in names if installed(name) and (batch, name) != (2, names[-1])]
    assert [(m["contestant"], m["batch_size"]) for m in report["measurements"]] == expected
    for m in report["measurements"]:
        assert m["tokens"] == 4 * m["batch_size"]
        assert 0 < m["first_token_seconds"] < m["seconds"]
        assert 0 < m["decode_seconds"] < m["seconds"]
        assert m["peak_memory_bytes"] > 2e7
    assert [(row[0], int(row[1])) for row in cells(output)] == expected
    assert [row["contestant"] for row in report["summary"]] == [name for name, _ in expected]
    assert report["table"] in output
    assert all(
        "CPU" in entry["system"] for entry in report["contestants"] if entry["name"] == names[-1] and installed(names[-1])
    )
    assert min(report["memory_bandwidths_bytes_per_s"]) > 1e8
    assert {"cpu", "memory_bytes"} <= report["machine"].keys()
    assert report["versions"]["torch"]
    assert report["config"]["suite"]["new_tokens"] == 4
    assert {path.name for path in (tmp_path / "outputs" / "cache").iterdir()} <= {"kernels"}  # the GGUF files are gone


def test_the_table_says_what_was_measured(tmp_path, actors, capsys):
    names = ["gpt2x-fp32", "transformers-fp32", "llama.cpp-q8_0"]
    output = tmp_path / "report.json"
    arguments = [f"suite.contestants=[{','.join(names)}]", "suite.rounds=3", "suite.batch_sizes=[1,2]", f"output={output}"]
    assert commands.benchmark([*SMALL, *arguments, f"paths.cache={tmp_path}"]) == (0 if installed(names[2]) else 1)
    report = json.loads(output.read_text())
    taken = report["measurements"]
    assert [m["contestant"] for m in taken[:6]] == names * 2  # in turns
    assert {m["round"] for m in taken} == {1, 2, 3}
    weights = 12 * 32 * 32 + 50257 * 32
    assert report["weights_per_token"] == weights
    rows = cells(capsys.readouterr().out)
    assert [(row[0], row[1]) for row in rows] == [(name, "1") for name in names] + [(name, "2") for name in names[:2]]
    for name, batch, speed, times, decode, fraction, first, memory in rows:
        mine, base = (
            [m for m in taken if (m["contestant"], str(m["batch_size"])) == (who, batch)] for who in (name, "transformers-fp32")
        )
        speeds = [m["tokens"] / m["seconds"] for m in mine]
        assert speed == f"{median(speeds):.1f} ({min(speeds):.1f}-{max(speeds):.1f})"
        assert times == f"{median(speeds) / median(m['tokens'] / m['seconds'] for m in base):.2f}"
        decoded = median((m["tokens"] - int(batch)) / m["decode_seconds"] for m in mine)
        assert decode == f"{decoded:.1f}"
        limit = 1e8 / (weights * {"llama.cpp-q8_0": 34 / 32}.get(name, 4))
        assert fraction == (f"{decoded / limit:.0%} of {limit:.1f}" if batch == "1" else "")
        assert first == f"{median(m['first_token_seconds'] for m in mine) * 1000:.0f} ms"
        assert memory == size(max(m["peak_memory_bytes"] for m in mine))


def test_who_fails_is_told_and_the_others_go_on(tmp_path, actors, capsys):
    names = ["gpt2x-eager", "gpt2x-bf16", "gpt2x-int8", "gpt2x-fp32"]
    output = tmp_path / "report.json"
    arguments = [f"suite.contestants=[{','.join(names)}]", "suite.rounds=3", "suite.batch_sizes=[1]", "suite.timeout=2"]
    assert commands.benchmark([*SMALL, *arguments, f"output={output}", f"paths.cache={tmp_path}"]) == 1
    captured = capsys.readouterr()
    assert "failed   gpt2x-eager: made 3 tokens instead of 1 x 4" in captured.out
    assert "failed   gpt2x-bf16: ended with exit code 1\nno more" in captured.out
    assert "failed   gpt2x-int8: no answer within 2 s" in captured.out
    assert "gpt2x-benchmark: failed: gpt2x-eager, gpt2x-bf16, gpt2x-int8;" in captured.err
    assert [row[0] for row in cells(captured.out)] == ["gpt2x-fp32"]
    report = json.loads(output.read_text())
    reasons = {entry["name"]: entry["reason"] for entry in report["contestants"] if entry["status"] == "failed"}
    assert reasons["gpt2x-bf16"].endswith("no more")
    assert [m["round"] for m in report["measurements"] if m["contestant"] == "gpt2x-bf16"] == [1]
    assert [m["round"] for m in report["measurements"] if m["contestant"] == "gpt2x-fp32"] == [1, 2, 3]
    assert report["summary"][0]["times_baseline"] is None


def test_a_contestant_that_cannot_load_says_why(tmp_path, monkeypatch, capsys):
    """A real process that ends with a traceback, and a GGUF file that cannot be written."""
    monkeypatch.setitem(CONTESTANTS, "broken", Contestant("broken", None, 4))  # the process does not know it
    arguments = ["suite.contestants=[broken,llama.cpp-q8_0]", "suite.rounds=1", "suite.batch_sizes=[1]", "model.n_embd=48"]
    monkeypatch.setattr(generate, "memory_bandwidth", lambda: 1e8)
    output = tmp_path / "report.json"
    assert commands.benchmark([*SMALL, *arguments, f"output={output}", f"paths.cache={tmp_path}"]) == 1
    printed = capsys.readouterr().out
    assert "failed   broken: ended with exit code 1" in printed
    assert "KeyError: 'broken'" in printed
    if installed("llama.cpp-q8_0"):
        assert "failed   llama.cpp-q8_0: GGUF: q8_0 needs a width that 32 divides" in printed
    assert json.loads(output.read_text())["measurements"] == []


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])
def test_a_signal_leaves_no_process_and_no_file(tmp_path, number, code):
    root = Path(__file__).parents[2]
    program = (
        "import sys; from gpt2x import commands; from gpt2x.benchmark import generate\n"
        "generate._COMMAND, generate.memory_bandwidth = [sys.executable, '-c', sys.argv.pop(1)], lambda: 1e8\n"
        "sys.exit(commands.benchmark())"
    )
    arguments = ["suite.contestants=[gpt2x-fp32,gpt2x-int8]", f"output={tmp_path / 'r.json'}", f"paths.cache={tmp_path / 'c'}"]
    announcing = ACTOR.replace("time.sleep(60)", f"open({str(tmp_path / 'busy')!r}, 'w').close(), time.sleep(60)")
    command = [sys.executable, "-c", program, announcing, *SMALL, *arguments]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(root)}, cwd=tmp_path, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not (tmp_path / "busy").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    children = psutil.Process(process.pid).children()
    assert len(children) == 2
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == code
    assert not any(child.is_running() for child in children)
    assert list((tmp_path / "c").iterdir()) == []
    assert not (tmp_path / "r.json").exists()


def test_llama_cpp_takes_part_with_one_prompt(tmp_path, actors, capsys):
    arguments = ["suite.contestants=[gpt2x-fp32,llama.cpp-f32]", "suite.rounds=1", "suite.batch_sizes=[8]"]
    assert commands.benchmark([*SMALL, *arguments, f"output={tmp_path / 'r.json'}", f"paths.cache={tmp_path}"]) == 0
    assert "skipped  llama.cpp-f32: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("suite.contestants=[gpt2x-fp32,gpt3]", "suite.contestants=[gpt2x-fp32,gpt3]: gpt3 is none of gpt2x-eager,"),
        ("suite.contestants=[]", "must name at least one, and each once"),
        ("suite.batch_sizes=[1,1]", "must name at least one, and each once"),
        ("suite.batch_sizes=[0]", "suite.batch_sizes=[0]: must be at least 1"),
        ("suite.rounds=0", "suite.rounds=0: must be at least 1"),
        ("suite.new_tokens=1", "must be at least 2"),
        ("suite.new_tokens=1000", "more than model.context_length=1024"),
        ("suite.timeout=0", "must be above 0"),
        ("suite.rouns=2", "did you mean suite.rounds?"),
        ("suite=learning", "suite=learning: no such choice"),
        ("device.precision=bf16", "the precision is part of what each contestant is"),
        ("device=cuda", "what is measured is the processor"),
        ("device.compile=true", "no contestant is compiled"),
        ("device.kernels=true", "device.kernels=true: is for training, and this suite does not"),
        ("model.position=rope", "model.position=rope: the other contestants are GPT-2 alone"),
    ],
)
def test_a_wrong_setting_is_refused(argument, message, capsys):
    assert commands.benchmark([argument]) == 2
    assert message in capsys.readouterr().err


def test_settings_are_checked_without_torch():
    root = Path(__file__).parents[2]
    code = "import sys; from gpt2x.commands import benchmark; print(benchmark(sys.argv[1:]), 'torch' in sys.modules)"
    for argument, expected in (("suite.rounds=0", "2 False"), ("--help", "0 False")):
        done = subprocess.run(
            [sys.executable, "-c", code, argument], env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, text=True
        )
        assert done.stdout.splitlines()[-1] == expected


def test_weights_per_token_of_gpt2_by_hand():
    shape = dict(n_layer=12, n_head=12, n_embd=768, context_length=1024)
    assert generate.weights_per_token(50257, shape) == 12 * (3 + 1 + 4 + 4) * 768**2 + 50257 * 768
    assert generate.weights_per_token(50257, shape | {"tied_head": False}) == generate.weights_per_token(50257, shape)


def test_the_stopwatch(monkeypatch):
    times = iter([10.0, 11.0, 13.0, 14.0, 20.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    watch = Stopwatch()
    for _ in range(3):
        watch.step(2)
    assert watch.result() == {"seconds": 10.0, "first_token_seconds": 1.0, "decode_seconds": 3.0, "tokens": 6}
