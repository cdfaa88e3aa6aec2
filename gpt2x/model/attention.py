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
    L positions that are looked at: T, or more with a cache.
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

    def forward(self, x_BTC: Tensor, cache: LayerCache | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C); with a `cache` the T positions also see those that are kept there, and are added to it."""
        B, T, C = x_BTC.shape
        q, k, v = self.c_attn(x_BTC).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4).unbind()
        mask = None
        if cache is not None:
            k, v = cache.extend(k, v)
            mask = cache.mask
        y_BNTH = self.attend(q, k, v, mask)
        y_BTC = y_BNTH.transpose(1, 2).reshape(B, T, C)
        return F.dropout(self.c_proj(y_BTC), self.dropout, self.training)

    # Without a mask (see KVCache.begin) the T queries are the last of L positions: a single one sees all of them,
    # several are all there are (T = L), and each sees those up to its own.

    def _attend_manual(self, q_BNTH: Tensor, k_BNLH: Tensor, v_BNLH: Tensor, mask: Tensor | None) -> Tensor:
        """Every step in the open: scores, mask, softmax, weighted sum."""
        T, H = q_BNTH.shape[-2:]
        scores_BNTL = q_BNTH @ k_BNLH.transpose(-2, -1) / math.sqrt(H)  # sqrt(H) keeps their variance near 1
        if mask is not None:
            scores_BNTL = scores_BNTL + mask
        elif T > 1:
            scores_BNTL = scores_BNTL.masked_fill(~self.mask[:T, :T], float("-inf"))
        weights_BNTL = F.softmax(scores_BNTL, dim=-1)  # each row sums to 1 over what may be seen
        weights_BNTL = F.dropout(weights_BNTL, self.dropout, self.training)
        return weights_BNTL @ v_BNLH

    def _attend_sdpa(self, q_BNTH: Tensor, k_BNLH: Tensor, v_BNLH: Tensor, mask: Tensor | None) -> Tensor:
        """The same function through torch's fused kernel, which never builds the T x L matrices."""
        dropout = self.dropout if self.training else 0.0
        causal = mask is None and q_BNTH.shape[-2] > 1
        return F.scaled_dot_product_attention(q_BNTH, k_BNLH, v_BNLH, mask, dropout_p=dropout, is_causal=causal)
