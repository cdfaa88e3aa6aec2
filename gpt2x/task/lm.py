"""Language modelling: predict each next token."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2x.data.batch import IGNORED, Batch
from gpt2x.data.text import TextCorpus
from gpt2x.data.windows import WindowedData
from gpt2x.model.gpt import GPT
from gpt2x.task.base import Task
from gpt2x.tokenizer.base import Tokenizer


class LanguageModeling(Task):
    """Cross-entropy over every next token that is asked for.

    The lengths of the tokens in bytes make losses of different tokenizers comparable, as bits per byte.
    """

    def __init__(self, tokenizer: Tokenizer, about: dict[str, Any]):
        super().__init__(tokenizer, about)
        self.token_lengths = torch.as_tensor(tokenizer.token_lengths(), dtype=torch.int64)

    def batches(self, corpus: TextCorpus, *, context_length: int, seed: int) -> WindowedData:
        return corpus.tokenize(self.tokenizer, context_length=context_length, seed=seed)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Summed (not averaged) cross-entropy of the batch, in nats: the caller knows over how many tokens it averages."""
        if not isinstance(model, GPT):  # compiled, say
            return F.cross_entropy(*self._predictions(model, batch), reduction="sum")
        wanted_BT = None if batch.lengths is None else batch.targets != IGNORED  # of windows all are
        given = dict(documents_BT=batch.documents, below=batch.below, wanted_BT=wanted_BT)
        return model.loss(batch.inputs, batch.targets, **given)

    @torch.no_grad()
    def evaluate(
        self, model: nn.Module, batches: Iterable[Batch], stop: Callable[[], bool] = lambda: False
    ) -> dict[str, float] | None:
        """Loss per token (nats), perplexity and bits per byte over all `batches`; None if `stop` said so.

        Losses are computed token by token and summed in float64, so the result does not depend on how the
        windows were grouped into batches.
        """
        nats, tokens, length = 0.0, 0, 0
        for batch in batches:
            if stop():
                return None
            logits_NV, targets_N = self._predictions(model, batch)
            nats += F.cross_entropy(logits_NV, targets_N, reduction="none").double().sum().item()
            tokens += len(targets_N)
            length += self.token_lengths[targets_N.cpu()].sum().item()
        loss = nats / tokens
        return {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "bpb": nats / math.log(2) / length if length else float("nan"),
        }

    def _predictions(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """The logits (N, V) of each token that is to be predicted, and those tokens (N,)."""
        if batch.lengths is None:  # windows: every token is
            return model(batch.inputs).flatten(0, 1).float(), batch.targets.flatten()
        wanted_BT = batch.targets != IGNORED
        logits_NV = model(batch.inputs, documents_BT=batch.documents, below=batch.below, wanted_BT=wanted_BT)
        return logits_NV.float(), batch.targets[wanted_BT]
