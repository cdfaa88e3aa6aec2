"""Settings of the sampling group."""

from __future__ import annotations

from dataclasses import dataclass

from gpt2x.config.option import option


@dataclass(kw_only=True)
class SamplingConfig:
    """How the next token is chosen from the model's distribution."""

    max_new_tokens: int = option(100, "tokens to generate", minimum=1)
    temperature: float = option(1.0, "divides the logits; 0 takes the likeliest token (greedy)", minimum=0)
    top_k: int | None = option(None, "sample only among the k likeliest tokens; null: among all", minimum=1)
    stop: list[str] = option([], "texts that end the generation and are not part of what is made")
    samples: int = option(1, "texts for each prompt", minimum=1)
    top_logprobs: int | None = option(None, "with log-probabilities, also of so many likeliest tokens; null: none", minimum=0)


@dataclass(kw_only=True)
class GenerationConfig:
    """How it is computed."""

    batch_size: int = option(8, "texts that are made at once", minimum=1)
