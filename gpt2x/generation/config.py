"""Settings of the sampling group, and of how the model computes when it generates."""

from __future__ import annotations

from dataclasses import dataclass

from gpt2x.config.option import option


@dataclass(kw_only=True)
class SamplingConfig:
    """How the next token is chosen from the model's distribution."""

    max_new_tokens: int = option(100, "tokens to generate", minimum=1)
    temperature: float = option(1.0, "divides the logits; 0 takes the likeliest token (greedy)", minimum=0)
    top_k: int | None = option(None, "sample only among the k likeliest tokens; null: among all", minimum=1)


@dataclass(kw_only=True)
class GenerationConfig:
    """How a trained model computes."""

    weights: str = option(
        "fp32",
        "format of the weight matrices: bf16 and int8 are read faster, at a cost that gpt2x-evaluate measures",
        choices=("fp32", "bf16", "int8"),
    )
