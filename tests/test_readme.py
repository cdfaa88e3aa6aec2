"""Every command in the README does what it says, with a model small enough for a test."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from joblib.externals.loky import get_reusable_executor
from scripted_judge import scripted_judge

from gpt2x import commands

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line for block in re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL) for line in block.splitlines() if line.strip()
]
SMALL = {
    "gpt2x-train": [
        "model.n_layer=1", "model.n_head=2", "model.n_embd=16", "model.context_length=16", "sampling.max_new_tokens=5",
        "logger=none", "trainer.eval_every=100",
    ],
    "gpt2x-generate": ["sampling.max_new_tokens=5"],
    "gpt2x-evaluate": [],
    "gpt2x-export": [],
    "gpt2x-compare": [],
    "gpt2x-benchmark": [
        "model.n_layer=1", "model.n_head=2", "model.n_embd=32", "suite.contestants=[gpt2x-eager]", "suite.rounds=1",
        "suite.prompt_tokens=4", "suite.new_tokens=3", "device.threads=1",
    ],
}  # fmt: skip


RUNS = {  # what the README calls a run -> how it is made
    "RUN": ["data.val_fraction=0.01", "model.context_length=128"],
    "CLASSIFIER": ["task=classifier", "data=spam_sample"],
    "ANSWERING": ["task=instruct", "data=instructions_sample", "model.context_length=128"],
    "ADAPTED": ["task=instruct", "data=instructions_sample", "finetune=lora", "model.context_length=128"],
    "SWEEP": ["data.val_fraction=0.01", "optimizer.lr=1e-3,3e-3", "seeds=2"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """A finished run of each kind."""
    where = tmp_path_factory.mktemp("readme")
    for name, settings in RUNS.items():
        folder = f"hydra.{'sweep' if name == 'SWEEP' else 'run'}.dir={where / name}"
        arguments = [*settings, "trainer.max_steps=2", folder, f"paths.outputs={where}"]
        assert commands.train([*SMALL["gpt2x-train"], *arguments]) == 0
    assert commands.export([f"checkpoint={where / 'RUN'}", "format=openai", f"output={where / 'GPT2'}"]) == 0
    return {name: where / name for name in [*RUNS, "GPT2"]}


@pytest.fixture
def judge(monkeypatch):
    """The address of a server that judges, where Ollama would be."""
    with scripted_judge() as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        yield server.url


def test_the_readme_has_its_commands():
    assert len(COMMANDS) >= 12
    assert COMMANDS[0] == "pip install -e . && python scripts/train.py"
    assert COMMANDS[1] == "pip install -e '.[test]' && python -m pytest -n auto --dist loadfile"


@pytest.mark.parametrize("line", [c for c in COMMANDS if "gpt2x-" in c])
def test_a_command_of_the_readme(line, runs, tmp_path, monkeypatch, capsys, request):
    if any(name in line for name in ("shakespeare", "verdict", "instruct_book")):
        request.getfixturevalue("mirror")
    monkeypatch.chdir(tmp_path)
    if "init.size=124M" in line:  # which is half a gigabyte, from the network: what would be run is looked at
        assert commands.train([*shlex.split(line, comments=True)[1:], "--cfg", "job"]) == 0
        assert "n_embd: 768" in capsys.readouterr().out
        return
    if "joblib" in line:  # workers that an earlier test left behind would go on in its folder
        get_reusable_executor().shutdown(wait=True)
    (tmp_path / "notes.txt").write_text("These are my own notes. They are about nothing much.\n" * 100)
    (tmp_path / "prompts.txt").write_text("Once\nThe old man\n")
    messages = "".join(f"Win prize {i},spam\nSee you at {i},ham\n" for i in range(20))
    (tmp_path / "messages.csv").write_text(f"text,label\n{messages}")
    records = [{"instruction": f"Say {i}.", "input": "", "output": str(i)} for i in range(40)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Once upon a time\n")))
    command, *arguments = shlex.split(line.removeprefix('echo "Once upon a time" | '), comments=True)
    if "evaluation=judge" in arguments:
        url = request.getfixturevalue("judge")
        arguments = [a.replace("http://127.0.0.1:8080", url) for a in arguments]
        (tmp_path / "answers.json").write_text(json.dumps([record | {"model_response": "Hm."} for record in records[:2]]))
        arguments += ["evaluation.max_examples=2", *["evaluation.max_new_tokens=5"] * ("answers=" not in line)]
    for name, run in runs.items():
        arguments = [re.sub(rf"\b{name}$", str(run), argument) for argument in arguments]
    if command == "gpt2x-compare":
        if not arguments:  # all runs under outputs
            shutil.copytree(runs["SWEEP"], tmp_path / "outputs" / "sweeps" / "one")
        arguments.append("html=page.html")
    elif command == "gpt2x-train" and not any(a.startswith("resume=") for a in arguments):
        small = SMALL[command] + ["data.val_fraction=0.01"] * ("task=" not in line)
        if "init=run" in arguments or "init=openai" in arguments:  # the shape is the other model's
            small = [setting for setting in small if not setting.startswith("model.")]
        arguments += small
        if "--help" not in arguments:
            arguments = [a for a in arguments if not a.startswith("trainer.max_steps=")]
            steps = ["trainer.max_epochs=null"] * any(
                f"experiment={name}" in arguments for name in ("verdict_124m", "instruct_book")
            )
            steps += ["schedule.warmup_steps=0"] * ("experiment=shakespeare_char_fast" in arguments)
            searched = ["sweep.n_trials=3"] * any(s in line for s in ("sweep=random", "sweep=optuna"))
            arguments = [a for a in arguments if not a.startswith("sweep.n_trials=")]
            arguments += [*steps, *searched, "trainer.max_steps=2"]
    elif command == "gpt2x-train":
        arguments = [a.replace("trainer.max_steps=1000", "trainer.max_steps=4") for a in arguments]
    elif "suite=load" in arguments:
        arguments += ["model.n_layer=1", "model.n_head=2", "model.n_embd=32", "suite.contestants=[hf-safetensors]"]
        arguments += ["suite.rounds=1", "device.threads=1"]
    else:
        arguments += SMALL[command]
        if "evaluation=samples" in arguments:
            arguments += ["evaluation.texts=3", "sampling.max_new_tokens=5"]
    assert getattr(commands, command.removeprefix("gpt2x-"))(arguments) == 0
    output = capsys.readouterr().out
    if "output=predictions.csv" in arguments:
        assert (tmp_path / "predictions.csv").read_text().startswith("text,label,predicted,confidence,probability ham,")
    elif "CLASSIFIER" in line and command == "gpt2x-generate":
        assert re.fullmatch(r"(spam|ham) [\d.]+ %, (spam|ham) [\d.]+ %\n", output)
    elif "evaluation=classification" in arguments:
        assert "TF-IDF + logistic regression" in output
    elif "evaluation=judge" in arguments:
        assert f"2 {'pairs' if 'against=' in line else 'answers'} judged by " in output
    elif "evaluation=rouge" in arguments:
        assert "ROUGE-L" in output
    elif "evaluation=samples" in arguments:
        assert output.count("\nreal text ") == output.count("\ntemperature=") + output.startswith("temperature=")
    elif command == "gpt2x-export":
        assert output.startswith("wrote ")
    elif "ANSWERING" in line:
        assert "###" not in output
    elif "output=texts.jsonl" in arguments:
        assert len((tmp_path / "texts.jsonl").read_text().splitlines()) == 2
    elif "format=jsonl" in arguments:
        assert len(json.loads(output)["logprobs"]) == 5
    elif "sampling.samples=3" in arguments:
        assert output.count("\nOnce") == 3
    elif command == "gpt2x-generate":
        assert output.startswith(("Once", "The old man"))
    elif command == "gpt2x-evaluate":
        assert re.search(r"^perplexity +[\d.]+$", output, flags=re.MULTILINE)
    elif "--help" in arguments:
        assert "Examples:" in output
    elif "suite=load" in arguments:
        assert "| hf-safetensors |" in output
    elif command == "gpt2x-benchmark":
        assert "| gpt2x-eager | 1 |" in output
    elif "--cfg" in arguments:
        assert "n_layer: 1" in output
    elif command == "gpt2x-compare":
        assert "val/loss" in output
    elif "sweep.csv" in output:
        rows = list(csv.DictReader(Path(re.search(r"^table +(.+)$", output, flags=re.MULTILINE)[1]).read_text().splitlines()))
        assert {row["status"] for row in rows} <= {"finished", "pruned"}
        if "sweep.n_trials=3" in arguments:
            assert len(rows) == 3
        elif arguments[0].startswith("resume="):
            assert len(rows) == 4
        else:
            seeds = 3 if "seeds=3" in arguments else 1
            lists = [len(a.split(",")) for a in arguments if "," in a and "[" not in a]
            assert len(rows) == (5 if "sweep=lr" in arguments else math.prod(lists) * seeds)
    else:
        assert "finished at step" in output


def test_the_message_in_the_readme_is_the_one_that_is_printed(capsys):
    assert commands.train(["optimizer.lrr=1"]) == 2
    assert capsys.readouterr().err.strip() in README


def test_every_folder_that_the_readme_names_exists():
    root = Path(__file__).parent.parent
    for name in re.findall(r"^\| `((?:gpt2x|configs)[\w/]*)` \|", README, flags=re.MULTILINE):
        assert (root / name).is_dir(), name
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (root / target).is_file(), target
