"""Settings of the evaluation group: each class is one kind of evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from gpt2x.config.option import ConfigError, option


@dataclass(kw_only=True)
class PerplexityConfig:
    """How well the model predicts a text: loss, perplexity and bits per byte."""

    _target_: str = "gpt2x.evaluation.perplexity.Perplexity"
    mode: str = option(
        "documents",
        "documents: each by itself, after an end-of-text token; strided: the whole split as one row of tokens",
        choices=("documents", "strided"),
    )
    context_length: int | None = option(None, "tokens that a window may hold; null: as many as the model's context", minimum=1)
    stride: int | None = option(
        None,
        "tokens by which a window is moved to the next one in what is longer than the context; null: half the context",
        minimum=1,
    )
    batch_size: int = option(8, "windows computed at once; the result does not depend on it", minimum=1)
    against_fp32: bool = option(
        False, "also compute the same windows in fp32, and tell what generation.weights or device.precision costs"
    )

    def check(self) -> None:
        if None not in (self.stride, self.context_length) and self.stride > self.context_length:
            raise ConfigError(
                "stride",
                self.stride,
                f"windows hold {self.context_length} tokens, so some would be left out",
                f"use at most {self.context_length}",
            )
