"""gpt2x-generate with a model that was just tuned to instructions: the template of its run goes around them."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from gpt2x.commands import generate, train

TEMPLATE = "with_input: |\n  Q: {instruction}\n  ({input})\n  A:\nwithout_input: |\n  Q: {instruction}\n  A:\n"


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """A model that was tuned to one answer, and a language model."""
    where = tmp_path_factory.mktemp("instructions")
    (where / "template.yaml").write_text(TEMPLATE)
    rows = [{"instruction": f"Say {word}.", "input": "a" * (n % 3), "output": "Ja."} for n, word in enumerate("abcdefgh" * 8)]
    (where / "records.json").write_text(json.dumps(rows))
    small = ["model.n_layer=1", "model.n_head=2", "model.n_embd=32", "model.context_length=48", "device.threads=1"]
    common = ["logger=none", "tokenizer=bpe", "tokenizer.vocab_size=280", "optimizer.lr=1e-2", f"paths.outputs={where}"]
    data = ["task=instruct", "data=records", f"data.path={where / 'records.json'}", f"task.template={where / 'template.yaml'}"]
    data += ["data.drop_seen=false", "trainer.max_steps=60", "trainer.eval_every=60", f"hydra.run.dir={where / 'instruct'}"]
    assert train([*small, *common, *data]) == 0
    assert train([*small, *common, "trainer.max_steps=1", "data.val_fraction=0.01", f"hydra.run.dir={where / 'lm'}"]) == 0
    (where / "template.yaml").unlink()  # a run keeps its own
    return {"instruct": where / "instruct", "lm": where / "lm"}


@pytest.fixture
def call(runs, capsys, tmp_path, monkeypatch):
    """Run gpt2x-generate on one of the runs: gives the exit code, the standard output and the standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, run: str = "instruct") -> tuple[int, str, str]:
        code = generate([f"checkpoint={runs[run]}", "device.threads=1", "sampling=greedy", *arguments])
        return code, *capsys.readouterr()

    return call


def record(call, *arguments: str) -> dict:
    code, out, _ = call(*arguments, "format=jsonl")
    assert code == 0
    return json.loads(out)


def test_an_instruction_is_answered(call):
    assert call("instruction=Say b.") == (0, "Ja.\n", "")  # and it stops at end-of-text
    assert call("instruction=Say c.", "input=aa", "output=o.txt") == (0, "", "")
    assert Path("o.txt").read_text() == "Ja.\n"


def test_the_template_of_the_run_is_what_the_model_reads(call):
    made = record(call, "instruction=Say {input}, [a] = b.", "input=x, {instruction}")
    assert made["prompt"] == "Q: Say {input}, [a] = b.\n(x, {instruction})\nA:\n"
    assert (made["instruction"], made["input"]) == ("Say {input}, [a] = b.", "x, {instruction}")
    assert record(call, "instruction=Größe?")["prompt"] == "Q: Größe?\nA:\n"
    made = record(call, "instruction=Say b.")
    assert (made["text"], made["finish"]) == ("Ja.", "end_of_text")


def test_the_answer_is_the_continuation_of_the_prompt(call):
    """A prompt is taken as it is, template or not."""
    asked = record(call, "instruction=Say b.", "sampling=creative", "seed=5")
    assert record(call, f"prompt={asked['prompt']}", "sampling=creative", "seed=5")["tokens"] == asked["tokens"]
    code, out, _ = call("prompt=Q: Say b.\nA:\n")
    assert (code, out) == (0, "Q: Say b.\nA:\nJa.\n")


def test_instructions_of_a_file(call, monkeypatch):
    Path("i.txt").write_text("Say b.\n\nSay c.\n")
    assert call("prompt_file=i.txt") == (0, "=== 1 ===\nJa.\n\n=== 3 ===\nJa.\n", "")
    rows = [
        {"instruction": "Say b.", "input": "a", "id": "x"},
        {"instruction": "Say c."},
        {"prompt": "Q: Say d.\nA:\n", "seed": 3},
    ]
    Path("i.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, out, _ = call("prompt_file=i.jsonl", "format=jsonl", "generation.batch_size=2")
    made = [json.loads(line) for line in out.splitlines()]
    prompts = ["Q: Say b.\n(a)\nA:\n", "Q: Say c.\nA:\n", "Q: Say d.\nA:\n"]
    assert [(one["id"], one["prompt"], one["text"]) for one in made] == list(zip(["x", 2, 3], prompts, ["Ja."] * 3))
    assert [one.get("instruction") for one in made] == ["Say b.", "Say c.", None]
    assert call("prompt_file=i.jsonl", "output=o.jsonl") == (0, "", "")  # as its name ends
    assert Path("o.jsonl").read_text() == out
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b'{"instruction": "Say b."}\n')))
    assert call("prompt_file=-")[1] == "Ja.\n"


def test_what_is_typed_is_an_instruction(call, monkeypatch):
    typed = b'/input aa\nSay b.\n/again\n"""Say c."""\n/max_new_tokens 1\nSay d.\n/more\n'
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(typed), isatty=lambda: False))
    code, out, err = call("interactive=true")
    assert code == 0
    assert out.startswith("Ja.\nJa.\nJa.\n") and "Say" not in out
    assert out.splitlines()[3] + out.splitlines()[4] == record(call, "instruction=Say d.", "sampling.max_new_tokens=2")["text"]
    assert "max_new_tokens=1 " in err


def test_an_input_that_is_too_long_loses_its_end(call, caplog):
    long = " ".join(map(str, range(60)))
    given = ["instruction=Say b.", f"input={long}", "sampling.max_new_tokens=10"]
    prompt = record(call, *given)["prompt"]
    assert caplog.messages == ["prompt 1: the input is too long for the model's context of 48 tokens, and its end is cut"]
    kept = prompt.removeprefix("Q: Say b.\n(").removesuffix(")\nA:\n")
    assert long.startswith(kept) and 5 < len(kept) < len(long)
    more = record(call, *given[:2], "sampling.max_new_tokens=20")["prompt"]
    half = record(call, *given[:2], "sampling.max_new_tokens=40")["prompt"]
    assert len(half) < len(more) < len(prompt)  # room for a longer answer, but no more than half the context
    assert half == record(call, *given[:2], "sampling.max_new_tokens=400")["prompt"]


def test_an_instruction_may_fill_the_context_and_no_more(call):
    made = record(call, f"instruction={'x ' * 14}", "sampling.max_new_tokens=40")
    assert made["prompt"] == f"Q: {'x ' * 14}\nA:\n"
    code, out, err = call(f"instruction={'x y ' * 60}")
    assert (code, out) == (1, "")
    assert "tokens, which cannot be cut to 48: shorten the instruction" in err
    Path("i.txt").write_text("Say b.\n" + "x y " * 60)
    code, out, err = call("prompt_file=i.txt", "output=o.txt")
    assert code == 1 and "prompt 2: the prompt has" in err
    assert not Path("o.txt").exists() and not Path("o.txt.partial").exists()


@pytest.mark.parametrize(
    ("run", "arguments", "problem"),
    [
        ("lm", ["instruction=Do"], "instruction=Do: is for a model tuned to instructions; checkpoint="),
        ("lm", ["prompt=a", "text_column=b"], "text_column=b: is for a classifier; checkpoint="),
        ("lm", ["prompt=a", "format=csv"], "format=csv: is for a classifier; checkpoint="),
        ("lm", ["prompt=a", "output=o.csv"], "format=csv: is for a classifier; checkpoint="),
        ("instruct", ["instruction=a", "text_column=b"], "text_column=b: is for a classifier; checkpoint="),
        ("instruct", ["instruction=a", "format=csv"], "format=csv: is for a classifier; checkpoint="),
        ("instruct", [], "is tuned to instructions, and none is given"),
        ("instruct", ["input=a"], "input=a: is what an instruction is about, and none is given"),
        ("instruct", ["prompt=a", "input=b"], "input=b: is what an instruction is about, and none is given"),
        ("instruct", ["instruction= "], "expected words"),
        ("instruct", ["prompt=a", "instruction=b"], "instruction=b: prompt is given too"),
        ("instruct", ["interactive=true", "instruction=b"], "interactive=true: instruction is given too"),
        ("instruct", ["instruction=b", "sampling.top_logprobs=1"], "log-probabilities are not part of format=text"),
    ],
)
def test_what_cannot_be_is_refused(call, run, arguments, problem):
    code, out, err = call(*arguments, run=run)
    assert (code, out) == (2, "")
    assert problem in err


def test_a_file_of_instructions_for_a_language_model_is_refused(call):
    Path("i.jsonl").write_text('{"prompt": "a"}\n{"instruction": "Say b."}\n')
    code, _, err = call("prompt_file=i.jsonl", run="lm")
    assert code == 1
    assert 'prompt_file=i.jsonl, line 2: "instruction" is for a model that was tuned to instructions' in err


def test_a_run_whose_configuration_is_damaged_is_told(call, runs, tmp_path):
    shutil.copytree(runs["lm"], tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text("task: [")
    assert generate([f"checkpoint={tmp_path / 'run'}", "prompt=a"]) == 2
