"""Causal self-attention, the one place of a transformer where positions exchange information."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2x.model.cache import LayerCache


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which each position sees itself and what stands before it (Vaswani et al., 2017).

    Letters in names of shapes: B batch, T positions, C width, N heads, H width of a head (C = N * H),
    L positions that are looked at: T, or more with a cache, Q those that look: T, or one with `at`.
    """

    def __init__(self, *, n_embd: int, n_head: int, context_length: int, dropout: float, attention: str):
        super().__init__()
        self.n_head = n_head
        self.dropout = dropout
        self.attend = {"manual": self._attend_manual, "sdpa": self._attend_sdpa}[attention]
        self.c_attn = nn.Linear(n_embd, 3 * n_embd)  # queries, keys and values of all heads in one product
        self.c_proj = nn.Linear(n_embd, n_embd)
        # Row t of the mask allows positions 0..t. A buffer moves with the model; no checkpoint needs it.
        mask = torch.ones(context_length, context_length, dtype=torch.bool).tril() if attention == "manual" else None
        self.register_buffer("mask", mask, persistent=False)

    def forward(
        self,
        x_BTC: Tensor,
        cache: LayerCache | None = None,
        *,
        mask: Tensor | None = None,
        at_B: Tensor | None = None,
    ) -> Tensor:
        """(B, T, C) -> (B, T, C).

        cache  the T positions also see those that are kept there, and are added to it
        mask   (..., T, T), added to the scores: what may be seen, where that is less than all that stands before
        at_B   only what comes out at this position of each row is computed: (B, 1, C)
        """
        B, T, C = x_BTC.shape
        if at_B is not None:
            q, k, v, mask = self._at(x_BTC, at_B)
        else:
            q, k, v = self.c_attn(x_BTC).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4).unbind()
        if cache is not None:
            k, v = cache.extend(k, v)
            mask = cache.mask
        y_BNQH = self.attend(q, k, v, mask)
        y_BQC = y_BNQH.transpose(1, 2).reshape(B, -1, C)
        return F.dropout(self.c_proj(y_BQC), self.dropout, self.training)

    def _at(self, x_BTC: Tensor, at_B: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The query at one position of each row, keys and values of all, and the mask of what it sees."""
        B, T, C = x_BTC.shape
        everything_B3 = self.c_attn(x_BTC).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = everything_B3.permute(2, 0, 3, 1, 4).unbind()
        q = q[torch.arange(B, device=q.device), :, at_B][:, :, None]
        seen_BT = torch.arange(T, device=at_B.device) <= at_B[:, None]
        mask = torch.zeros(B, T, dtype=q.dtype, device=q.device).masked_fill(~seen_BT, float("-inf"))
        return q, k, v, mask[:, None, None]

    # Without a mask (see KVCache.begin) the Q queries are the last of L positions: a single one sees all of them,
    # several are all there are (Q = L), and each sees those up to its own.

    def _attend_manual(self, q_BNQH: Tensor, k_BNLH: Tensor, v_BNLH: Tensor, mask: Tensor | None) -> Tensor:
        """Every step in the open: scores, mask, softmax, weighted sum."""
        Q, H = q_BNQH.shape[-2:]
        scores_BNQL = q_BNQH @ k_BNLH.transpose(-2, -1) / math.sqrt(H)  # sqrt(H) keeps their variance near 1
        if mask is not None:
            scores_BNQL = scores_BNQL + mask
        elif Q > 1:
            scores_BNQL = scores_BNQL.masked_fill(~self.mask[:Q, :Q], float("-inf"))
        weights_BNQL = F.softmax(scores_BNQL, dim=-1)  # each row sums to 1 over what may be seen
        weights_BNQL = F.dropout(weights_BNQL, self.dropout, self.training)
        return weights_BNQL @ v_BNLH

    def _attend_sdpa(self, q_BNQH: Tensor, k_BNLH: Tensor, v_BNLH: Tensor, mask: Tensor | None) -> Tensor:
        """The same function through torch's fused kernel, which never builds the Q x L matrices."""
        dropout = self.dropout if self.training else 0.0
        causal = mask is None and q_BNQH.shape[-2] > 1
        return F.scaled_dot_product_attention(q_BNQH, k_BNLH, v_BNLH, mask, dropout_p=dropout, is_causal=causal)
