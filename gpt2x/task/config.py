"""Settings of the task group."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True)
class LanguageModelingConfig:
    """Predict the next token of a text."""

    _target_: str = "gpt2x.task.lm.LanguageModeling"
