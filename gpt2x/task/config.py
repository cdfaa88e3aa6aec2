"""Settings of the task group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gpt2x.config.option import option


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
