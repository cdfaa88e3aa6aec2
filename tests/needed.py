"""What a choice of a group needs beside it, so that a test can compose any file under configs/."""

from __future__ import annotations

from dataclasses import fields

import yaml

from gpt2x.config.compose import CONFIG_DIR
from gpt2x.config.option import show
from gpt2x.config.schema import GROUPS
from gpt2x.model.config import GPT2, Variant

_TASKS = {"text": "lm", "table": "classifier", "instructions": "instruct"}
_EVALUATED = {"classification": "classifier", "rouge": "instruct", "judge": "instruct"}
_NEEDED = {
    "data/text": ["data.path=/"],
    "data/table": ["data.path=/x.csv"],
    "data/records": ["data.path=/x.jsonl"],
    "data/summaries": ["data.path=/x.jsonl"],
    "task/classifier": ["data=spam_sample"],
    "task/instruct": ["data=instructions_sample"],
    "init/run": ["init.path=run"],
    "init/openai": ["init.size=124M"],
    "init/hf": ["init.path=."],  # no name, which would be looked for in the network
    "finetune/head": ["model.tied_head=false"],
}
_GPT2 = [f"model.{field.name}={show(getattr(GPT2, field.name))}" for field in fields(Variant)]


def needed(group: str, choice: str, root: str = "train") -> list[str]:
    """Overrides that make `root` compose with this choice: a file of one's own, data that fit the task, ..."""
    more = _NEEDED.get(f"{group}/{choice}", [])
    if group == "data" and root == "train":
        target = yaml.safe_load((CONFIG_DIR / "data" / f"{choice}.yaml").read_text())["_target_"]
        kind = next(cls.kind for cls in GROUPS["data"] if cls._target_ == target)
        return [*more, f"task={_TASKS[kind]}"]
    if group == "evaluation" and root == "train":  # of the run when it has ended
        return [f"task={_EVALUATED.get(choice, 'lm')}", *_NEEDED.get(f"task/{_EVALUATED.get(choice)}", [])]
    if group == "judge":
        return ["evaluation=judge", *needed("evaluation", "judge", root)]
    if group == "sampling" and root == "evaluate":  # no other evaluation draws anything
        return [*more, "evaluation=samples"]
    if group == "model" and root == "benchmark":  # whatever its context; its peers are GPT-2 alone
        return [*more, "suite.new_tokens=2", *_GPT2]
    return more
