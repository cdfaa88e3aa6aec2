"""Settings of the model group."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from gpt2x.config.option import ConfigError, option


@dataclass(kw_only=True)
class Variant:
    """What a model may do otherwise than GPT-2, which is the default of each; variants.py has the parts and their sources."""

    position: str = option(
        "learned",
        "how the order of the tokens is known; learned: a trained vector a position, as in GPT-2; rope: queries and keys are "
        "turned (RoFormer); alibi: scores fall with the distance; none: by nothing but what a token may see",
        choices=("learned", "rope", "alibi", "none"),
    )
    norm: str = option(
        "layernorm",
        "of what enters a branch or the head; rmsnorm: divided by its root mean square, without weights or biases",
        choices=("layernorm", "rmsnorm"),
    )
    mlp: str = option(
        "gelu",
        "what is between the two layers of the MLP; relu2: max(0, x) squared; swiglu: one half of the numbers lets the other "
        "through, two thirds as wide, for as many parameters",
        choices=("gelu", "relu2", "swiglu"),
    )
    bias: bool = option(True, "linear layers and layer norms have biases, as in GPT-2")
    qk_norm: bool = option(False, "bring each query and key to one length before they meet, so that no score runs away")
    n_kv_head: int | None = option(
        None, "heads of keys and values, each shared by as many heads of queries; null: n_head, each its own", minimum=1
    )
    softcap: float | None = option(None, "bend logits so that they stay within plus and minus this; null: no limit", above=0)
    residual_scalars: bool = option(
        False, "before each block the states are scaled, and the embeddings added once more, as much as two learned numbers say"
    )
    value_embeddings: str = option(
        "none",
        "in every second block each token adds to the values a vector of its own, as far as a gate lets it; table: a trained "
        "one a token; projection: made of its embedding, with fewer parameters",
        choices=("none", "table", "projection"),
    )
    ngram_embeddings: list[int] = option(
        [],
        "to each token's embedding are added those of the last two tokens, of the last three, ..., side by side: how many "
        "there are for each length, among which a run of tokens chooses by hash; []: none",
        minimum=1,
    )

    def changes(self) -> dict[str, Any]:
        """The settings by which this is not GPT-2."""
        mine, default = (
            {field.name: getattr(variant, field.name) for field in fields(Variant)} for variant in (self, Variant())
        )
        return {name: value for name, value in mine.items() if value != default[name]}


GPT2 = Variant()


@dataclass(kw_only=True)
class ShapeConfig:
    """How large a model is, how it starts and how it is computed."""

    _target_: str = "gpt2x.model.gpt.GPT"
    n_layer: int = option(help="transformer blocks", minimum=1)
    n_head: int = option(help="attention heads; divides n_embd", minimum=1)
    n_embd: int = option(help="width of the residual stream", minimum=1)
    context_length: int = option(1024, "positions the model can attend to, in tokens", minimum=1)
    dropout: float = option(
        0.0, "dropout after the embeddings, on the attention weights and before each residual addition", minimum=0, below=1
    )
    tied_head: bool = option(True, "the output head is the token embedding, as in GPT-2; false: a matrix of its own")
    init: str = option(
        "gpt2",
        "gpt2: small normal weights; gpt2_zero: the same, but zero in the projections back into the residual stream; "
        "torch: torch's defaults for its layers, as in the book",
        choices=("gpt2", "gpt2_zero", "torch"),
    )
    attention: str = option("sdpa", "sdpa is fast; manual computes every matrix in the open", choices=("sdpa", "manual"))


@dataclass(kw_only=True)
class GPTConfig(Variant, ShapeConfig):
    """The shape of a GPT-2, and what it does otherwise; the vocabulary comes from the tokenizer."""

    def check(self) -> None:
        if self.n_embd % self.n_head:
            divisors = [h for h in range(1, self.n_embd + 1) if self.n_embd % h == 0]
            nearest = sorted(divisors, key=lambda h: abs(h - self.n_head))[:3]
            raise ConfigError(
                "n_head",
                self.n_head,
                f"the heads must divide the width n_embd={self.n_embd} evenly",
                f"nearest numbers of heads that do: {', '.join(map(str, sorted(nearest)))}",
            )
        if self.n_kv_head is not None and self.n_head % self.n_kv_head:
            divisors = [h for h in range(1, self.n_head + 1) if self.n_head % h == 0]
            problem = f"each head of keys and values is shared by equally many of the n_head={self.n_head} heads of queries"
            raise ConfigError("n_kv_head", self.n_kv_head, problem, f"use one of {', '.join(map(str, divisors))}")
        if self.ngram_embeddings and self.n_embd % len(self.ngram_embeddings):
            fitting = [n for n in range(1, 9) if self.n_embd % n == 0]
            problem = f"the embeddings stand side by side, so their number must divide the width n_embd={self.n_embd} evenly"
            raise ConfigError(
                "ngram_embeddings", self.ngram_embeddings, problem, f"give {', '.join(map(str, fitting))} of them"
            )
        width = self.n_embd // self.n_head
        if self.position == "rope" and width % 2:
            even = [h for h in range(1, self.n_embd + 1) if self.n_embd % (2 * h) == 0]
            nearest = sorted(even, key=lambda h: abs(h - self.n_head))[:3]
            fitting = f"nearest numbers of heads that make it so: {', '.join(map(str, sorted(nearest)))}"
            raise ConfigError(
                "n_head",
                self.n_head,
                f"position=rope turns pairs of numbers, so n_embd / n_head = {width} must be even",
                fitting if even else f"use an even width, such as n_embd={self.n_head * (width + 1)}",
            )
