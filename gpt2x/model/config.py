"""Settings of the model group."""

from __future__ import annotations

from dataclasses import dataclass

from gpt2x.config.option import ConfigError, option


@dataclass(kw_only=True)
class GPTConfig:
    """The shape of a GPT-2; the vocabulary comes from the tokenizer."""

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
        "gpt2", "gpt2: small normal weights; torch: torch's defaults for its layers, as in the book", choices=("gpt2", "torch")
    )
    position: str = option(
        "learned",
        "how the order of the tokens is known; learned: a trained vector a position, as in GPT-2; rope: queries and keys are "
        "turned (RoFormer); alibi: scores fall with the distance; none: by nothing but what a token may see",
        choices=("learned", "rope", "alibi", "none"),
    )
    attention: str = option("sdpa", "sdpa is fast; manual computes every matrix in the open", choices=("sdpa", "manual"))

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
