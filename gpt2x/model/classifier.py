"""GPT-2 with a head that tells classes instead of tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gpt2x.model.gpt import GPT, Below

POOLINGS = ("last_token", "mean", "first_token", "padded_last")


class Classifier(nn.Module):
    """A linear layer over one state a text, made by `gpt`, whose own output head is not used and taken away.

    pooling says which state:
    last_token   that of the last token, the only one that has seen the whole text; padding changes nothing
    mean         the mean of all tokens' states
    first_token  that of the first, which has seen nothing but itself: a baseline
    padded_last  that of the last position, where texts are filled up to one length with end-of-text tokens that the
                 others do not know from text (LLMs-from-scratch, chapter 6; its figures can be had with this alone)
    """

    def __init__(self, gpt: GPT, *, n_classes: int, pooling: str, generator: torch.Generator | None = None):
        super().__init__()
        self.gpt, self.pooling = gpt, pooling
        gpt.lm_head = None
        self.score = nn.Linear(gpt.wte.embedding_dim, n_classes)
        bound = 1 / math.sqrt(self.score.in_features)  # what torch does by itself, drawn from our stream
        for parameter in self.score.parameters():
            nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def forward(self, tokens_BT: Tensor, lengths_B: Tensor, below: Below | None = None) -> Tensor:
        """Logits (B, classes) of texts (B, T), of which the first `lengths_B` tokens count; the others stand behind them."""
        if self.pooling == "mean":
            x_BTC = self.gpt.hidden(tokens_BT, below=below)
            counted_BT = torch.arange(tokens_BT.shape[1], device=tokens_BT.device) < lengths_B[:, None]
            return self.score((x_BTC * counted_BT[..., None]).sum(1) / lengths_B[:, None])
        at_B = torch.zeros_like(lengths_B) if self.pooling == "first_token" else lengths_B - 1
        return self.score(self.gpt.hidden(tokens_BT, below=below, at_B=at_B)[:, 0])

    def __str__(self) -> str:
        n = sum(parameter.numel() for parameter in self.parameters())
        return f"{n:,} parameters: {self.gpt.shape}, {self.score.out_features} classes"


def parts(model: nn.Module) -> tuple[GPT, nn.Linear | None]:
    """A model's transformer, and its head unless that is tied to the token embedding."""
    return (model.gpt, model.score) if isinstance(model, Classifier) else (model, model.lm_head)
