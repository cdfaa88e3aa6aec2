"""Windows over a long row of tokens, in an order that depends on the seed and the step alone.

Which windows make up micro-batch i is computed, not remembered: a resumed run, a run on another number of
processes, or a look at one batch of long ago needs no state.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from gpt2x.data.batch import Batch
from gpt2x.errors import UserError

_UINT64 = (1 << 64) - 1


class WindowedData:
    """Batches of `context_length` tokens and the tokens that follow each of them.

    Training windows start every `stride` tokens. With `stride` None they lie end to end, and each epoch shifts
    all of them by another random offset, so that no token is always the first of its window. Evaluation
    reads a split once from its beginning to its end, in order, in windows that lie end to end.
    """

    def __init__(
        self,
        splits: dict[str, np.ndarray],
        *,
        context_length: int,
        batch_size: int,
        eval_batch_size: int,
        stride: int | None,
        drop_last: bool,
        shuffle: bool,
        seed: int,
        name: str,
    ):
        self.splits, self.context_length, self.batch_size = splits, context_length, batch_size
        self.eval_batch_size, self.drop_last, self.shuffle, self.seed = eval_batch_size, drop_last, shuffle, seed
        self.name = name
        n_tokens = len(splits["train"])
        room = n_tokens - 1 - context_length  # the last position where a window, and the token after it, still fits
        if room < 0:
            shorter = f", or model.context_length={n_tokens - 1} or less" if n_tokens > 1 else ""
            raise UserError(
                f"data={name}: the training split has {n_tokens:,} tokens, and one window needs "
                f"model.context_length + 1 = {context_length + 1:,}\n"
                f"  Use more text{shorter}."
            )
        self.stride = stride or context_length
        self.n_windows = room // self.stride + 1
        self.largest_shift = 0
        if stride is None:
            if self.n_windows > 1:
                self.n_windows -= 1  # makes room for the shift
            self.largest_shift = room - (self.n_windows - 1) * self.stride  # the last token has its turn too
        if drop_last and self.n_windows < batch_size:
            raise UserError(
                f"data={name}: an epoch has {self.n_windows} windows, less than data.batch_size={batch_size}, "
                f"and data.drop_last=true drops smaller batches\n  Use a smaller batch or data.drop_last=false."
            )

    @property
    def batches_per_epoch(self) -> float:
        """Micro-batches in one pass over the training windows; a fraction unless `drop_last`."""
        return self.n_windows // self.batch_size if self.drop_last else self.n_windows / self.batch_size

    @property
    def batch_shape(self) -> str:
        return f"{self.batch_size} x {self.context_length} tokens"

    def train_batch(self, index: int) -> Batch:
        """Micro-batch number `index` of the endless row of reshuffled epochs."""
        if self.drop_last:
            epoch, batch = divmod(index, int(self.batches_per_epoch))
            epochs = np.full(self.batch_size, epoch)
            places = batch * self.batch_size + np.arange(self.batch_size)
        else:
            epochs, places = np.divmod(index * self.batch_size + np.arange(self.batch_size), self.n_windows)
        starts = np.empty(self.batch_size, dtype=np.int64)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            starts[chosen] = self._starts(int(epoch), places[chosen])
        return self._batch("train", starts, self.context_length, f"epoch {epochs[0]}, windows at tokens {starts.tolist()}")

    def _starts(self, epoch: int, places: np.ndarray) -> np.ndarray:
        """Where the windows at `places` of the epoch's order begin."""
        key = mix((self.seed << 32) + epoch)
        windows = permute(places, self.n_windows, key) if self.shuffle else places
        return windows * self.stride + key % (self.largest_shift + 1)

    def n_eval(self, split: str) -> int:
        """Predictions in one evaluation of the split: every token but the first."""
        return max(0, len(self.splits[split]) - 1)

    def eval_batches(self, split: str, maximum: int | None = None) -> Iterator[Batch]:
        """The whole split in order; with `maximum`, about as many windows spread evenly over it."""
        tokens, T = self.n_eval(split), self.context_length
        starts = np.arange(0, tokens - T + 1, T)
        tail = len(starts) * T
        if maximum is not None and maximum < len(starts):
            starts, tail = starts[np.linspace(0, len(starts) - 1, maximum).astype(int)], tokens
        for i in range(0, len(starts), self.eval_batch_size):
            yield self._batch(split, starts[i : i + self.eval_batch_size], T, split)
        if tail < tokens:
            yield self._batch(split, np.array([tail]), tokens - tail, split)

    def __str__(self) -> str:
        return f"{self.name}: " + " + ".join(f"{len(t):,} {split}" for split, t in self.splits.items() if len(t)) + " tokens"

    def _batch(self, split: str, starts: np.ndarray, length: int, description: str) -> Batch:
        windows = self.splits[split][starts[:, None] + np.arange(length + 1)]
        tokens = torch.from_numpy(windows.astype(np.int64))
        return Batch(tokens[:, :-1], tokens[:, 1:], weight=len(starts) * length, description=description)


def permute(places: np.ndarray, n: int, key: int) -> np.ndarray:
    """Entries `places` of the random permutation of range(n) that `key` chooses, in constant memory.

    A Feistel network (Luby and Rackoff, 1988) of four rounds permutes the smallest range of 4^k numbers that
    holds n; a result outside range(n) is sent through again until it falls inside (cycle walking).
    """
    half = max(1, math.ceil((n - 1).bit_length() / 2))
    mask = np.uint64((1 << half) - 1)
    result = np.asarray(places, dtype=np.uint64).copy()
    outside = np.ones(result.shape, dtype=bool)
    while outside.any():
        left, right = result[outside] >> np.uint64(half), result[outside] & mask
        for turn in range(4):
            left, right = right, left ^ (_mix_array(right, mix(key + turn)) & mask)
        result[outside] = (left << np.uint64(half)) | right
        outside = result >= n
    return result.astype(np.int64)


def mix(x: int) -> int:
    """splitmix64 (Steele, Lea and Flood, 2014): spreads every bit of a number over 64 bits."""
    x = (x + 0x9E3779B97F4A7C15) & _UINT64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _UINT64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _UINT64
    return x ^ (x >> 31)


def _mix_array(x: np.ndarray, key: int) -> np.ndarray:
    """The same for arrays; unsigned arithmetic wraps around by itself."""
    x = x ^ np.uint64(key)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
