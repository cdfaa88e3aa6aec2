"""README.md of an exported model: what it is, how to use it, what it was trained on and how well it does."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from gpt2x.model.classifier import Classifier
from gpt2x.task.instruct import InstructionTuning
from gpt2x.training.load import LoadedRun

_USES = {
    "text": """from transformers import pipeline

generate = pipeline("text-generation", model="{name}")
print(generate("Once upon a time", max_new_tokens=50)[0]["generated_text"])""",
    "instructions": """from transformers import pipeline

answer = pipeline("text-generation", model="{name}")
asked = [{{"role": "user", "content": "What is to be done.", "input": "What it is about, if anything."}}]
print(answer(asked, max_new_tokens=50, do_sample=False)[0]["generated_text"][-1]["content"])""",
    "table": """from transformers import pipeline

classify = pipeline("text-classification", model="{name}", truncation=True)
print(classify("A text to classify."))""",
}
_SHOWN = ("model", "tokenizer", "task", "finetune", "optimizer", "schedule")  # groups whose settings are listed


def model_card(run: LoadedRun, result: dict[str, Any], name: str) -> str:
    """The page's text, in Markdown. `result` is the run's result.json, `name` what the model is to be called.

    Nothing in it tells where on this computer anything lies: it is made to be published.
    """
    config, state = run.config, run.checkpoint.state["trainer"]
    classifier = isinstance(run.model, Classifier)
    about = {
        "library_name": "transformers",
        "pipeline_tag": "text-classification" if classifier else "text-generation",
        "tags": ["gpt2", "gpt2x"],
    }
    steps = f"{state['step']:,}"
    if result.get("steps", state["step"]) != state["step"]:
        steps += f" of {result['steps']:,}, after which it did best" * (state["step"] == state["best_step"])
    rows = {"data": config.data.name, "tokenizer": f"{run.tokenizer.kind}, {run.tokenizer.vocab_size:,} tokens"}
    rows |= {"steps": steps, "tokens read": f"{state['tokens']:,}"}
    if state["evaluated_step"] == state["step"]:
        rows |= {key: f"{value:.4f}" for key, value in state["metrics"].items() if _is_figure(key, value)}
    versions = result.get("versions", {})
    rows["made with"] = ", ".join(f"{name} {versions[name]}" for name in ("gpt2x", "torch") if name in versions) or "gpt2x"
    if result.get("config_hash"):
        rows["configuration"] = f"`{result['config_hash'][:16]}`, seed {config.seed}"
    settings = {group: _settings(getattr(config, group)) for group in _SHOWN}
    settings |= {"batch_size": config.data.batch_size, "accumulate": config.trainer.accumulate, "seed": config.seed}
    parts = [
        f"---\n{yaml.safe_dump(about, sort_keys=False)}---\n",
        f"# {name}\n",
        f"{'A classifier on a' if classifier else 'A'} GPT-2 of {run.model}. It was trained with gpt2x"
        f" on {config.data.name}{_beginning(config.init)}.\n",
        f"```python\n{_USES[config.task.data_kind].format(name=name)}\n```\n",
    ]
    if classifier:
        parts.append(f"It tells {len(run.task.labels)} classes: {', '.join(run.task.labels)}.\n")
    if isinstance(run.task, InstructionTuning):
        parts.append("`apply_chat_template` makes the prompt that it was trained with; `input` may be left out.\n")
    parts += [
        "| | |\n|---|---|\n" + "".join(f"| {key} | {value} |\n" for key, value in rows.items()),
        "Losses are nats a token (a classifier's: a text), bpb is bits a byte of text, both lower is better.\n",
        f"The settings it was trained with:\n\n```yaml\n{yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)}```\n",
    ]
    return "\n".join(parts)


def _is_figure(key: str, value: Any) -> bool:
    """Whether it is a figure of the whole model: those of single classes, such as val/f1/spam, are too many."""
    return re.fullmatch("(val|test)/[^/]+", key) is not None and isinstance(value, (int, float))


def _beginning(init: Any) -> str:
    """What its weights were before."""
    kind = init._target_.rsplit(".", 1)[1]
    return "" if kind == "scratch" else f", beginning with the weights of {Path(init.path).name}"


def _settings(group: Any) -> dict[str, Any]:
    """A group's settings that are set; of a path the last part alone."""
    settings = {key: value for key, value in asdict(group).items() if value is not None}
    return {
        key: Path(value).name if isinstance(value, str) and key != "_target_" and "/" in value else value
        for key, value in settings.items()
    }
