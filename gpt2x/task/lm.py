"""Language modelling: predict each next token."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2x.data.batch import IGNORED, Batch


class LanguageModeling:
    """Cross-entropy over every next token; targets that are IGNORED are none.

    `token_lengths` (vocab_size,) says how many bytes each token stands for, so that losses of different
    tokenizers can be compared as bits per byte.
    """

    metric = "val/loss"  # what "best" means; lower is better

    def __init__(self, *, token_lengths: np.ndarray):
        self.token_lengths = torch.from_numpy(np.asarray(token_lengths, dtype=np.int64))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Summed (not averaged) cross-entropy of the batch, in nats: the caller knows over how many tokens it averages."""
        logits_BTV = _logits(model, batch)
        return F.cross_entropy(logits_BTV.flatten(0, 1).float(), batch.targets.flatten(), reduction="sum")

    @torch.no_grad()
    def evaluate(
        self, model: nn.Module, batches: Iterable[Batch], stop: Callable[[], bool] = lambda: False
    ) -> dict[str, float] | None:
        """Loss per token (nats), perplexity and bits per byte over all `batches`; None if `stop` said so.

        Losses are computed token by token and summed in float64, so the result does not depend on how the
        windows were grouped into batches, and IGNORED targets add nothing.
        """
        nats, tokens, length = 0.0, 0, 0
        for batch in batches:
            if stop():
                return None
            logits_BTV = _logits(model, batch)
            losses = F.cross_entropy(
                logits_BTV.flatten(0, 1).float(), batch.targets.flatten(), reduction="none"
            )  # 0 where IGNORED
            nats += losses.double().sum().item()
            tokens += batch.weight
            targets = batch.targets.cpu()
            length += self.token_lengths[targets[targets != IGNORED]].sum().item()
        loss = nats / tokens
        return {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "bpb": nats / math.log(2) / length if length else float("nan"),
        }


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    """Logits (B, T, V); where a row holds several documents, none of them sees another."""
    return model(batch.inputs) if batch.documents is None else model(batch.inputs, documents=batch.documents)
