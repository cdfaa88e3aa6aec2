"""README.md of an exported model: what it is, how to use it, what it was trained on and how well it does."""

from __future__ import annotations

import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from gpt2x.config.schema import TrainConfig
from gpt2x.model.classifier import Classifier
from gpt2x.task.instruct import InstructionTuning
from gpt2x.training.load import LoadedRun

_USES = {
    "text": """from transformers import pipeline

generate = pipeline("text-generation", model="{name}")
print(generate("Once upon a time", max_new_tokens=50)[0]["generated_text"])""",
    "instructions": """from transformers import pipeline

answer = pipeline("text-generation", model="{name}")
question = {{"role": "user", "content": "What is to be done."}}  # or a system message says so, and this what it is about
print(answer([question], max_new_tokens=50, do_sample=False)[0]["generated_text"][-1]["content"])""",
    "table": """from transformers import pipeline

classify = pipeline("text-classification", model="{name}", truncation=True)
print(classify("A text to classify."))""",
}
_SHOWN = ("model", "tokenizer", "task", "finetune", "optimizer", "schedule")  # groups whose settings are listed


def model_card(run: LoadedRun, result: dict[str, Any], name: str) -> str:
    """The page's text, in Markdown. `result` is the run's result.json, `name` what the model is to be called.

    Nothing in it tells where on this computer anything lies: it is made to be published.
    """
    classifier = isinstance(run.model, Classifier)
    about = {
        "library_name": "transformers",
        "pipeline_tag": "text-classification" if classifier else "text-generation",
        "tags": ["gpt2", "gpt2x"],
    }
    what = f"{'A classifier on a' if classifier else 'A'} GPT-2 of {run.model}"
    trained = run.checkpoint is not None
    parts = [
        f"---\n{yaml.safe_dump(about, sort_keys=False)}---\n",
        f"# {name}\n",
        f"{what}, trained with gpt2x{_beginning(run.config.init)}.\n" if trained else f"{what}, written by gpt2x.\n",
        f"```python\n{_USES[run.config.task.data_kind].format(name=name)}\n```\n",
    ]
    if classifier:
        parts.append(f"It tells {len(run.task.labels)} classes: {', '.join(run.task.labels)}.\n")
    if isinstance(run.task, InstructionTuning):
        parts.append("The tokenizer's chat template makes of such a conversation the prompt that the model was trained with.\n")
    if trained:
        settings = yaml.safe_dump(_settings(run.config), sort_keys=False, allow_unicode=True)
        parts += [
            "| | |\n|---|---|\n" + "".join(f"| {key} | {value} |\n" for key, value in _figures(run, result).items()),
            "Losses are nats a token (a classifier's: a text), bpb is bits a byte of text; of both less is better.\n",
            f"The settings it was trained with:\n\n```yaml\n{settings}```\n",
        ]
    return "\n".join(parts)


def _beginning(init: Any) -> str:
    """What its weights were before."""
    begun = getattr(init, "path", None)
    return "" if begun is None else f", beginning with the weights of {Path(begun).name}"


def _figures(run: LoadedRun, result: dict[str, Any]) -> dict[str, str]:
    state, data = run.checkpoint.state["trainer"], run.config.data
    steps = f"{state['step']:,}"
    if result.get("steps", state["step"]) != state["step"]:
        steps += f" of {result['steps']:,}" + ", after which it did best" * (state["step"] == state["best_step"])
    figures = {"data": data.name, "tokenizer": f"{run.tokenizer.kind}, {run.tokenizer.vocab_size:,} tokens"}
    figures |= {"steps": steps, "tokens read": f"{state['tokens']:,}"}
    if state["evaluated_step"] == state["step"]:
        figures |= {key: f"{value:.4f}" for key, value in state["metrics"].items() if _is_figure(key, value)}
    versions = result.get("versions", {})
    figures["made with"] = ", ".join(f"{name} {versions[name]}" for name in ("gpt2x", "torch") if name in versions) or "gpt2x"
    if "config_hash" in result:
        figures["configuration"] = f"`{result['config_hash'][:16]}`, seed {run.config.seed}"
    return figures


def _is_figure(key: str, value: Any) -> bool:
    """Whether it is a figure of the whole model: those of single classes, such as val/f1/spam, are too many."""
    return re.fullmatch("(val|test)/[^/]+", key) is not None and isinstance(value, (int, float))


def _settings(config: TrainConfig) -> dict[str, Any]:
    """The settings of the groups that decide what is learned, as far as they are set; of a path the last part alone."""
    groups = {}
    for name in _SHOWN:
        settings = {key: value for key, value in asdict(getattr(config, name)).items() if value is not None}
        groups[name] = {key: Path(v).name if isinstance(v, str) and os.sep in v else v for key, v in settings.items()}
    return groups | {"batch_size": config.data.batch_size, "accumulate": config.trainer.accumulate, "seed": config.seed}
