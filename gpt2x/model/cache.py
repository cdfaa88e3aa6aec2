"""The keys and values of tokens already seen, kept so that a new token costs one step and not the whole text again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class KVCache:
    """Memory for `capacity` positions of several texts (rows), allocated once; all are empty at first.

    Each row fills from position 0 on, whatever the length of the others, so a row computes what it would alone.
    A forward pass of T tokens is announced with `begin(T)`; `lengths` says how many positions of each row count, and
    whoever finds that some of the new ones were padding or a wrong guess sets it back.

    Letters in names of shapes: B rows, N heads, H width of a head, T new tokens, L positions kept so far.
    """

    def __init__(self, *, n_layer: int, n_head: int, head_width: int, rows: int, capacity: int, like: Tensor):
        """Of the dtype and on the device of `like`."""
        shape = (n_layer, rows, n_head, capacity, head_width)
        # Zeros: a masked position counts for nothing, but 0 times what happened to be in memory could be NaN.
        self.keys, self.values = (torch.zeros(shape, dtype=like.dtype, device=like.device) for _ in "kv")
        self.tokens = torch.zeros(rows, capacity, dtype=torch.long, device=like.device)  # for whom asks what came before
        self.capacity = capacity
        self.lengths = [0] * rows
        self.layers = [LayerCache(self, i) for i in range(n_layer)]

    def begin(self, T: int) -> Tensor:
        """Prepare a forward pass of T new tokens a row; returns their positions, (T,) or, if rows differ, (B, T)."""
        self.starts = starts = self.lengths
        end = max(starts) + T
        if end > self.capacity:
            raise ValueError(f"{end} tokens do not fit a cache of {self.capacity}")
        device = self.keys.device
        self.mask = None  # None: a new token sees all that is kept and, of the new ones, those before it and itself
        if min(starts) == max(starts):
            self.where, self.end = slice(starts[0], end), end
            positions = torch.arange(starts[0], end, device=device)
            if T > 1 and starts[0] > 0:
                self.mask = self._visible(positions, end)
        else:
            positions = torch.tensor(starts, device=device)[:, None] + torch.arange(T, device=device)
            self.where, self.end = positions, end
            self.mask = self._visible(positions, end)[:, None]
        self.lengths = [start + T for start in starts]
        return positions

    def keep(self, tokens_BT: Tensor) -> Tensor:
        """Keep the new tokens themselves; returns those of all positions (B, capacity)."""
        if isinstance(self.where, slice):
            self.tokens[:, self.where] = tokens_BT
        else:
            self.tokens.scatter_(1, self.where, tokens_BT)
        return self.tokens

    def rows(self, chosen: Sequence[int]) -> None:
        """Keep only the rows `chosen`, in that order; a row may be chosen more than once."""
        end = max(self.lengths)
        index = torch.tensor(chosen, device=self.keys.device)
        if len(chosen) == len(self.lengths):  # in place: the memory may be large, and most of it empty
            self.keys[..., :end, :] = self.keys[:, :, :, :end].index_select(1, index)
            self.values[..., :end, :] = self.values[:, :, :, :end].index_select(1, index)
        else:
            self.keys, self.values = self.keys.index_select(1, index), self.values.index_select(1, index)
        self.tokens = self.tokens.index_select(0, index)
        self.lengths = [self.lengths[row] for row in chosen]

    def row(self, row: int) -> KVCache:
        """The cache of a single row, emptied, in the same memory: to compute that row anew."""
        single = object.__new__(KVCache)
        single.keys, single.values = self.keys[:, row : row + 1], self.values[:, row : row + 1]
        single.tokens = self.tokens[row : row + 1]
        single.capacity, single.lengths = self.capacity, [0]
        single.layers = [LayerCache(single, i) for i in range(len(self.layers))]
        return single

    def _visible(self, positions: Tensor, end: int) -> Tensor:
        """What to add to the attention scores (..., T, end): 0 where a token at `positions` (..., T) may look, else -inf."""
        hidden = torch.arange(end, device=positions.device) > positions[..., None]
        return self.keys.new_zeros(hidden.shape).masked_fill(hidden, float("-inf"))


class LayerCache:
    """One layer's part of a cache."""

    def __init__(self, cache: KVCache, i: int):
        self.cache, self.i = cache, i

    @property
    def mask(self) -> Tensor | None:
        return self.cache.mask

    def extend(self, k_BNTH: Tensor, v_BNTH: Tensor) -> tuple[Tensor, Tensor]:
        """Add the new tokens' keys and values; returns those of all positions, two times (B, N, L, H)."""
        cache, where = self.cache, self.cache.where
        k_BNTH, v_BNTH = k_BNTH.to(cache.keys.dtype), v_BNTH.to(cache.keys.dtype)  # autocast makes them bf16
        keys, values = cache.keys[self.i], cache.values[self.i]
        if isinstance(where, slice):
            keys[:, :, where], values[:, :, where] = k_BNTH, v_BNTH
        else:
            row = torch.arange(len(where), device=where.device)[:, None]
            keys[row, :, where], values[row, :, where] = k_BNTH.transpose(1, 2), v_BNTH.transpose(1, 2)
        return keys[:, :, : cache.end], values[:, :, : cache.end]
