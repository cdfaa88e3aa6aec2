"""Perplexity: how surprised a model is by a text that it has not seen.

The tokens of a split come in, losses summed over all of them go out. A model looks at no more tokens than its
context, so a longer text is read through windows that overlap, and each token is counted once: in the first window
that holds it, where it is predicted from the most tokens before it (the "strided" evaluation of Hugging Face's page
"Perplexity of fixed-length models").
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2x.config.option import ConfigError
from gpt2x.data.text import TextCorpus
from gpt2x.errors import UserError
from gpt2x.model.gpt import GPT
from gpt2x.tokenizer.base import Tokenizer

_ROWS = 512  # logits (rows, vocabulary) in memory at once: 100 MB with GPT-2's vocabulary in float32
_PIECE = 1 << 24  # tokens searched at once for the ends of documents


class Perplexity:
    """The perplexity of `model`; see PerplexityConfig for the settings.

    "strided" takes a split as one row of tokens. Windows of `context_length` tokens start every `stride` of them, and
    every token but the very first is predicted once. A `stride` as long as the context makes windows that lie end to
    end: then the loss is the val/loss of training. Hugging Face's recipe does not use its windows' last prediction,
    so its numbers for n tokens a window are those of `context_length` n - 1 here, save that it averages the windows'
    means, weighted nearly by their tokens, where here every token weighs the same.

    "documents" predicts every token of every document, its closing end-of-text included, from an end-of-text token on
    and from nothing of the document before it. Only documents longer than the context need several windows. A corpus
    that has no end-of-text tokens is a single document.

    `autocast()` is the context to compute in. `reference()` gives the same model in fp32, to compare with where
    `against_fp32` asks for it.
    Raises ConfigError if the windows do not fit the model.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        *,
        autocast: Callable[[], contextlib.AbstractContextManager],
        reference: Callable[[], GPT],
        mode: str,
        context_length: int | None,
        stride: int | None,
        batch_size: int,
        against_fp32: bool,
    ):
        self.model, self.tokenizer, self.autocast = model, tokenizer, autocast
        self.mode, self.batch_size = mode, batch_size
        self.context_length = context_length or model.context_length
        self.stride = stride or max(1, self.context_length // 2)
        if self.context_length > model.context_length:
            problem, remedy = f"the model's context holds {model.context_length}", f"use at most {model.context_length}"
            raise ConfigError("evaluation.context_length", self.context_length, problem, remedy)
        if self.stride > self.context_length:
            problem = f"windows hold {self.context_length} tokens, so some would be left out"
            raise ConfigError("evaluation.stride", self.stride, problem, f"use at most {self.context_length}")
        self.reference = reference() if against_fp32 else None

    def evaluate(self, corpus: TextCorpus, split: str) -> dict:
        """Losses in nats over all of a split: what was counted, the results, and how long it all took.

        "loss" is the mean per token, "bpb" the same in bits per byte of text. With a reference, "against_fp32" holds
        the share of positions where both find the same token likeliest, the mean Kullback-Leibler divergence
        KL(fp32 || model) in nats, and the loss of fp32 with the difference to it.
        Raises UserError if the split has nothing to predict, or the loss is not finite.
        """
        row = self._row(corpus.tokens(self.tokenizer)[split])
        if row.n_predictions < 1:
            raise UserError(f"split={split}: data={corpus.name} has too little text there: there is no token to predict")
        windows = row.windows(self.context_length, self.stride)
        sums, seconds = self._sums(row, windows)
        loss = sums.nats / sums.tokens
        if not math.isfinite(loss):
            raise UserError(f"the loss is {loss}: this checkpoint's weights are no good; choose another by which=STEP")
        results = {
            "evaluation": "perplexity",
            "mode": self.mode,
            "context_length": self.context_length,
            "stride": self.stride,
            "documents": len(row.begins) if self.mode == "documents" else None,
            "windows": len(windows),
            "tokens": sums.tokens,
            "bytes": sums.bytes,
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "bpb": sums.nats / math.log(2) / sums.bytes if sums.bytes else None,
            "seconds": seconds,
            "tokens_per_s": sums.tokens / seconds,
        }
        if self.reference is not None:
            results["against_fp32"] = {
                "top1_agreement": sums.agreed / sums.tokens,
                "kl": sums.kl / sums.tokens,
                "loss_fp32": sums.nats_fp32 / sums.tokens,
                "loss_difference": (sums.nats - sums.nats_fp32) / sums.tokens,
            }
        return results

    def _row(self, tokens: np.ndarray) -> Row:
        if self.mode == "strided":
            return Row(tokens, np.array([0]), np.array([max(0, len(tokens) - 1)]))
        ends = _document_ends(tokens, self.tokenizer.end_of_text)
        return Row(tokens, np.array([0, *ends[:-1]]), ends, before=self.tokenizer.end_of_text)

    @torch.inference_mode()
    def _sums(self, row: Row, windows: np.ndarray) -> tuple[_Sums, float]:
        """What adds up over all windows, and the seconds it took."""
        from tqdm import tqdm

        sums, lengths, started = _Sums(), self.tokenizer.token_lengths(), time.perf_counter()
        device = next(self.model.parameters()).device
        with tqdm(total=row.n_predictions, unit="tok", unit_scale=True, desc="evaluating", disable=None) as bar:
            for inputs, counted, targets in row.batches(windows, self.batch_size):
                sums.tokens += len(targets)
                sums.bytes += int(lengths[targets.numpy()].sum())
                self._add(sums, *(part.to(device) for part in (inputs, counted, targets)))
                bar.update(len(targets))
        return sums, time.perf_counter() - started

    def _add(self, sums: _Sums, inputs_BT: Tensor, counted_BT: Tensor, targets_N: Tensor) -> None:
        """Add the losses of one batch. Logits are made for what is counted alone, and for few rows at a time."""
        with self.autocast():
            states_NC = self.model.hidden(inputs_BT)[counted_BT]
        exact_NC = None if self.reference is None else self.reference.hidden(inputs_BT)[counted_BT]
        for start in range(0, len(targets_N), _ROWS):
            rows = slice(start, start + _ROWS)
            with self.autocast():
                logits_NV = self.model.logits(states_NC[rows]).float()
            sums.nats += _nats(logits_NV, targets_N[rows])
            if exact_NC is not None:
                exact_NV = self.reference.logits(exact_NC[rows])
                sums.nats_fp32 += _nats(exact_NV, targets_N[rows])
                sums.agreed += int((logits_NV.argmax(-1) == exact_NV.argmax(-1)).sum())
                p, q = exact_NV.double().log_softmax(-1), logits_NV.double().log_softmax(-1)
                sums.kl += F.kl_div(q, p, reduction="sum", log_target=True).item()


@torch.inference_mode()
def token_losses(
    model: GPT,
    rows: Sequence[np.ndarray],
    *,
    batch_size: int,
    autocast: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
) -> list[np.ndarray]:
    """The loss in nats of each token but the first of each row (T,) of token ids: (T - 1,) for each row.

    A row that is longer than the model's context is read through windows that overlap by half, as in Perplexity.
    Raises UserError if a loss is not finite.
    """
    lengths = np.array([len(row) for row in rows])
    ends = np.cumsum(lengths) - 1
    row = Row(np.concatenate(rows), ends - lengths + 1, ends)
    windows = row.windows(model.context_length, max(1, model.context_length // 2))
    windows = windows[np.argsort(windows[:, 0] - windows[:, 2], kind="stable")]  # in the order in which they come below
    losses = []
    device = next(model.parameters()).device
    for inputs, counted, targets in row.batches(windows, batch_size):
        with autocast():
            states_NC = model.hidden(inputs.to(device))[counted.to(device)]
        for start in range(0, len(targets), _ROWS):
            part = slice(start, start + _ROWS)
            with autocast():
                logits_NV = model.logits(states_NC[part]).float()
            losses.append(F.cross_entropy(logits_NV, targets[part].to(device), reduction="none").double().cpu().numpy())
    nats = np.empty(len(row.tokens))
    nats[np.concatenate([np.arange(first, end) for _, first, end in windows])] = np.concatenate(losses)
    found = [nats[begin:end] for begin, end in zip(row.begins, row.ends)]
    if not all(np.isfinite(values).all() for values in found):
        raise UserError("a loss is not finite: this checkpoint's weights are no good; choose another by which=STEP")
    return found


@dataclass
class _Sums:
    """Sums over the tokens counted so far; Python's floats, in float64."""

    tokens: int = 0
    bytes: int = 0
    nats: float = 0.0
    nats_fp32: float = 0.0
    agreed: int = 0
    kl: float = 0.0


def _nats(logits_NV: Tensor, targets_N: Tensor) -> float:
    return F.cross_entropy(logits_NV, targets_N, reduction="none").double().sum().item()


@dataclass(frozen=True)
class Row:
    """A row of token ids (tokens,), and what is to be predicted in it.

    Prediction i is made at token i, of token i + 1. Document d is made of the predictions from begins[d] to ends[d].
    With `before`, that id stands before the first token, so that prediction i is of tokens[i].
    """

    tokens: np.ndarray
    begins: np.ndarray
    ends: np.ndarray
    before: int | None = None

    @property
    def n_predictions(self) -> int:
        return int((self.ends - self.begins).sum())

    def windows(self, context_length: int, stride: int) -> np.ndarray:
        """Windows (n, 3) over the documents: the predictions from the first number to the third are made, and those
        from the second on are counted. They start every `stride` predictions until the document's end is reached."""
        counts = 1 + np.maximum(0, -(-(self.ends - self.begins - context_length) // stride))
        document = np.repeat(np.arange(len(counts)), counts)
        number = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)  # within its document
        starts = self.begins[document] + number * stride
        firsts = np.where(number == 0, starts, starts + context_length - stride)
        return np.stack([starts, firsts, np.minimum(starts + context_length, self.ends[document])], axis=1)

    def batches(self, windows: np.ndarray, batch_size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Windows as (inputs (B, T), whether each prediction is counted (B, T), the tokens predicted by those (N,)).

        Windows of about one length come together, the longest first; the shorter ones in a batch are filled up at
        their end, where no earlier position sees it.
        """
        order = np.argsort(windows[:, 0] - windows[:, 2], kind="stable")
        for i in range(0, len(order), batch_size):
            starts, firsts, ends = windows[order[i : i + batch_size]].T[..., None]
            places = starts + np.arange((ends - starts).max() + 1)
            tokens = self._read(np.minimum(places, ends))
            places = places[:, :-1]
            counted = (firsts <= places) & (places < ends)
            yield tuple(map(torch.from_numpy, (tokens[:, :-1], counted, tokens[:, 1:][counted])))

    def _read(self, places: np.ndarray) -> np.ndarray:
        if self.before is None:
            return self.tokens[places].astype(np.int64)
        tokens = self.tokens[np.maximum(places - 1, 0)].astype(np.int64)
        return np.where(places == 0, self.before, tokens)


def _document_ends(tokens: np.ndarray, end_of_text: int) -> np.ndarray:
    """Where each document ends, one past its end-of-text token (the last may lack one), in ascending order."""
    ends = [
        start + 1 + np.flatnonzero(tokens[start : start + _PIECE] == end_of_text) for start in range(0, len(tokens), _PIECE)
    ]
    last = [] if len(tokens) == 0 or tokens[-1] == end_of_text else [len(tokens)]
    return np.concatenate([*ends, last]).astype(np.int64)
