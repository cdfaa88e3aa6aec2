"""Settings of the task group."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import ClassVar

from gpt2x.config.option import ConfigError, option

TEMPLATES = ("alpaca", "stanford", "phi3")  # those that ship


@dataclass(kw_only=True)
class LanguageModelingConfig:
    """Predict the next token of a text."""

    data_kind: ClassVar[str] = "text"
    _target_: str = "gpt2x.task.lm.LanguageModeling"


@dataclass(kw_only=True)
class ClassifierConfig:
    """Tell which class a text belongs to: a linear head over one of GPT-2's states."""

    data_kind: ClassVar[str] = "table"
    _target_: str = "gpt2x.task.classifier.Classification"
    pooling: str = option(
        "last_token",
        "which state the head reads: the last token's, the mean of all, the first token's, or (padded_last, the book's) the "
        "last position of texts that are all filled up to one length",
        choices=("last_token", "mean", "first_token", "padded_last"),
    )
    class_weights: str = option(
        "none", "balanced: a row weighs the more the rarer its class is in training", choices=("none", "balanced")
    )


@dataclass(kw_only=True)
class InstructionTuningConfig:
    """Follow instructions: predict each next token of the response to a prompt."""

    _target_: str = "gpt2x.task.instruct.InstructionTuning"
    data_kind: ClassVar[str] = "instructions"
    template: str = option(
        "alpaca",
        f"how instruction and input become a prompt: {', '.join(TEMPLATES)}, or a YAML file of your own",
        verbatim=True,
    )
    mask_prompt: bool = option(True, "only the response is learned; false: its prompt too, as in the book")
    too_long: str = option(
        "cut_end",
        "what to do where prompt and response exceed the context: cut the response's end (it then has no end-of-text), "
        "cut the input's end so that the whole response fits, or drop the example; what does not fit even so is dropped",
        choices=("cut_end", "cut_input", "drop"),
    )
    answers: int = option(3, "validation records that are answered at each evaluation, to be looked at", minimum=0)
    packing: bool = option(False, "training rows hold several examples, as many as fit the context, of which none sees another")

    def check_available(self) -> None:
        """Raise ConfigError if there is no such template; what is in a file is read later."""
        if self.template not in TEMPLATES and not os.path.isfile(os.path.expanduser(self.template)):
            remedy = f"use one of {', '.join(TEMPLATES)}, or the path of a file (looked from {os.getcwd()})"
            raise ConfigError("template", self.template, "no such template or file", remedy)
