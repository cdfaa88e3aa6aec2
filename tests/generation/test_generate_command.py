"""gpt2x-generate as a whole, with a small model that was just trained: where prompts come from and where texts go."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from gpt2x.commands import generate, train
from gpt2x.config.compose import change, compose
from gpt2x.config.option import ConfigError
from gpt2x.config.schema import GenerateConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("generate") / "run"
    small = ["model.n_layer=1", "model.n_head=2", "model.n_embd=16", "model.context_length=16", "sampling.max_new_tokens=5"]
    where = [f"hydra.run.dir={folder}", f"paths.outputs={folder.parent}"]
    more = ["trainer.max_steps=2", "logger=none", "data.val_fraction=0.01", "device.threads=1", "tokenizer.vocab_size=300"]
    assert train([*small, *where, *more]) == 0
    return folder


@pytest.fixture
def made(run, capsys, tmp_path, monkeypatch):
    """Run gpt2x-generate: `made("prompt=a")` gives its standard output; the exit code must be 0."""
    monkeypatch.chdir(tmp_path)

    def made(*arguments: str) -> str:
        code = generate([f"checkpoint={run}", "device.threads=1", "sampling.max_new_tokens=8", *arguments])
        out, err = capsys.readouterr()
        assert (code, err) == (0, "")
        return out

    return made


def test_each_prompt_of_a_file_gets_the_text_it_would_get_alone(made, tmp_path):
    prompts = ["The cat", "A", "", "Once upon a time there was a lantern that nobody lit", "é"]
    lines = [json.dumps({"prompt": text, "id": f"p{number}"}) for number, text in enumerate(prompts)]
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    assert made("prompt_file=p.jsonl", "format=jsonl", "output=o.jsonl", "generation.batch_size=2") == ""
    records = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(record["id"], record["prompt"]) for record in records] == [(f"p{n}", text) for n, text in enumerate(prompts)]
    for text, record in zip(prompts, records, strict=True):
        assert record["text"]
        assert made(f"prompt='{text}'") == f"{text}{record['text']}\n"
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".jsonl"] in ([], ["outputs"])


def test_a_prompt_of_a_file_may_have_a_seed_of_its_own(made, tmp_path):
    lines = [{"prompt": "The", "seed": 5}, {"prompt": "The"}, {"prompt": "The", "seed": 5}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    records = [json.loads(line) for line in made("prompt_file=p.jsonl", "format=jsonl", "seed=2").splitlines()]
    assert [record["seed"] for record in records] == [5, 2, 5]
    assert records[0]["text"] == records[2]["text"] != records[1]["text"]
    assert made("prompt=The", "seed=5") == f"The{records[0]['text']}\n"


def test_samples_are_numbered_and_differ(made):
    records = [json.loads(line) for line in made("prompt=The", "format=jsonl", "sampling.samples=3").splitlines()]
    assert [(record["id"], record["sample"]) for record in records] == [(1, 0), (1, 1), (1, 2)]
    assert len({record["text"] for record in records}) == 3
    text = made("prompt=The", "sampling.samples=3")
    assert text == "\n".join(f"=== 1, sample {n + 1} ===\nThe{record['text']}\n" for n, record in enumerate(records))


def test_prompts_from_a_pipe(made, monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"The\nA\n")))
    out = made("prompt_file=-")
    assert out.startswith("=== 1 ===\nThe")
    assert "\n\n=== 2 ===\nA" in out


def test_a_stop_string_ends_the_text(made):
    whole = json.loads(made("prompt=The", "format=jsonl", "sampling.max_new_tokens=30"))["text"]
    stop = whole[10:12]
    record = json.loads(made("prompt=The", "format=jsonl", "sampling.max_new_tokens=30", f"sampling.stop=['{stop}']"))
    assert record["text"] == whole[: whole.index(stop)]
    assert record["finish"] == "stop"


def test_without_a_prompt_it_begins_with_a_line_end(made):
    assert made() == made("prompt='\n'")


def start(run: Path, cwd: Path, *arguments: str, **pipes) -> subprocess.Popen:
    code = "import sys; from gpt2x.commands import generate; sys.exit(generate(sys.argv[1:]))"
    command = [sys.executable, "-c", code, f"checkpoint={run}", "device.threads=1", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, **pipes)


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT for one process")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interruption_loses_no_finished_text(run, tmp_path, number):
    lines = [f'{{"prompt": "The", "id": {n}}}' for n in range(100_000)]
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    files = ["prompt_file=p.jsonl", "format=jsonl", "output=o.jsonl", "generation.batch_size=1"]
    process = start(run, tmp_path, *files, "sampling.max_new_tokens=3")
    partial = tmp_path / "o.jsonl.partial"
    deadline = time.monotonic() + 100
    while not partial.exists() or partial.read_text().count("\n") < 5:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    assert out == b""
    if number == signal.SIGINT:
        assert err.decode().splitlines() == ["what was made until now is in o.jsonl.partial", "gpt2x-generate: interrupted"]
        assert [json.loads(line)["id"] for line in partial.read_text().splitlines()][:5] == [0, 1, 2, 3, 4]
    assert not (tmp_path / "o.jsonl").exists()


@pytest.mark.skipif(os.name == "nt", reason="no head")
def test_a_reader_that_leaves_early_is_no_error(run, tmp_path):
    process = start(run, tmp_path, "prompt=The", "sampling.max_new_tokens=100000", "sampling.temperature=1")
    assert process.stdout.read(3) == b"The"
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert process.stderr.read() == b""


@pytest.mark.skipif(os.name == "nt", reason="no pipes like these")
def test_an_interactive_session_through_a_pipe(run, tmp_path):
    process = start(run, tmp_path, "interactive=true", "sampling.max_new_tokens=5", stdin=subprocess.PIPE)
    out, err = process.communicate(b"The cat\n/sampling greedy\n/max_new_tokens 4\n/again\n", timeout=100)
    assert process.returncode == 0
    assert out.decode().count("The cat") == 2
    assert "temperature=0.0 " in err.decode()
    assert "max_new_tokens=4 " in err.decode()


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("prompt=a prompt_file=b", "prompt_file=b: prompt is given too"),
        ("prompt=a interactive=true", "interactive=true: prompt is given too"),
        ("prompt_file=a interactive=true", "interactive=true: prompt_file is given too"),
        ("interactive=true output=a", "output=a: interactive=true shows text"),
        ("interactive=true format=jsonl", "format=jsonl: interactive=true shows text"),
        ("interactive=true sampling.samples=2", "sampling.samples=2: interactive=true shows one text at a time"),
        ("interactive=true sampling.top_logprobs=2", "sampling.top_logprobs=2: interactive=true shows text alone"),
        ("prompt=a sampling.top_logprobs=2", "sampling.top_logprobs=2: log-probabilities are not part of format=text"),
        ("prompt_file=a output=a", "output=a: this is prompt_file, which it would replace"),
        ("format=json", "format=json: expected one of null, text, jsonl, csv; did you mean jsonl?"),
    ],
)
def test_settings_that_exclude_each_other(given, problem):
    with pytest.raises(ConfigError) as error:
        compose("generate", GenerateConfig, ["checkpoint=run", *given.split()])
    assert str(error.value).startswith(problem)


def test_change_is_one_override_more():
    config = compose("generate", GenerateConfig, ["checkpoint=run", "prompt=a ${b}", "sampling.top_k=7", "seed=4"])
    changed = change("generate", config, "sampling.temperature=0.1")
    assert (changed.sampling.temperature, changed.sampling.top_k) == (0.1, 7)
    assert (changed.prompt, changed.seed, changed.device) == ("a ${b}", 4, config.device)
    assert config.sampling.temperature != 0.1
    greedy = change("generate", changed, "sampling=greedy")
    assert (greedy.sampling.temperature, greedy.sampling.top_k, greedy.prompt) == (0.0, None, "a ${b}")
    with pytest.raises(ConfigError, match="did you mean sampling.top_k"):
        change("generate", config, "sampling.topk=3")


def test_settings_of_generation_reach_the_model(made, tmp_path, monkeypatch):
    """Which of them change nothing in a text is told elsewhere: here, that each arrives."""
    from gpt2x.generation import run as module

    told, batches = {}, []

    class Spy(module.TextGenerator):
        def __init__(self, model, tokenizer, **settings):
            super().__init__(model, tokenizer, **settings)
            told.update(settings)

        def generate(self, prompts, **settings):
            batches.append(len(prompts))
            return super().generate(prompts, **settings)

    prepared = []
    monkeypatch.setattr("gpt2x.device._cpu_has_bf16", lambda: True)  # without such instructions it is slow, no more
    monkeypatch.setattr(module, "TextGenerator", Spy)
    monkeypatch.setattr("gpt2x.model.prepared.prepare", lambda model, **settings: prepared.append(settings) or model)
    (tmp_path / "p.txt").write_text("a\nb\nc\nd\ne\n")
    settings = {"cache": True, "past_context": "stop", "prefill_chunk": 3, "lookup": 2}
    made("prompt_file=p.txt", "generation.batch_size=2", *(f"generation.{name}={value}" for name, value in settings.items()))
    assert told == settings and batches == [2, 2, 1]
    made("prompt_file=p.txt", "generation.batch_size=4", "generation.weights=int8", "sampling.samples=2")
    assert batches[3:] == [2, 2, 1]
    made("prompt_file=p.txt", "generation.batch_size=2", "sampling.samples=5")
    assert batches[6:] == [1] * 15  # five prompts, each with samples 0-1, 2-3 and 4
    made("prompt=a", "device.precision=bf16")
    assert [(p["weights"], p["precision"]) for p in prepared] == [
        ("fp32", "fp32"),
        ("int8", "fp32"),
        ("fp32", "fp32"),
        ("fp32", "bf16"),
    ]


def test_a_prompt_that_does_not_fit_is_named_before_anything_is_made(run, tmp_path, capsys):
    (tmp_path / "p.txt").write_text("short\n" + "long " * 50 + "\n")
    output = tmp_path / "o.txt"
    arguments = [f"checkpoint={run}", f"prompt_file={tmp_path / 'p.txt'}", f"output={output}", "generation.past_context=stop"]
    assert generate([*arguments, f"paths.cache={tmp_path}"]) == 1
    assert "prompt 2: a prompt of " in capsys.readouterr().err
    assert not output.exists() and not Path(f"{output}.partial").exists()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["output=."], "this is a folder"),
        (["output=/dev/null"], "this is no ordinary file"),
        (["prompt_file=p.txt", "output=./p.txt"], "this is prompt_file"),
        (["generation.cache=false", "generation.prefill_chunk=2"], "with generation.cache=false"),
        (["sampling=beam", "generation.lookup=2"], "beam search keeps several"),
        (["sampling=beam", "sampling.stop=[a]"], "beam search compares whole ones"),
        (["sampling=beam", "sampling.length_penalty=1000"], "at most 10"),
        (["-m", "seed=1,2", "output=o.txt"], "several runs would write this one file"),
        (["-m", "seed=1,2", "interactive=true"], "one session at a time"),
    ],
)
def test_what_cannot_be_is_refused(arguments, problem, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("a\n")
    assert generate([f"checkpoint={run}", *arguments]) != 0
    assert problem in capsys.readouterr().err
    assert (tmp_path / "p.txt").read_text() == "a\n"
