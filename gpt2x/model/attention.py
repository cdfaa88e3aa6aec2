"""Causal self-attention, the one place of a transformer where positions exchange information."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which each position sees itself and what stands before it (Vaswani et al., 2017).

    Letters in names of shapes: B batch, T positions, C width, N heads, H width of a head (C = N * H).
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

    def forward(self, x_BTC: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        B, T, C = x_BTC.shape
        q, k, v = self.c_attn(x_BTC).view(B, T, 3, self.n_head, C // self.n_head).unbind(dim=2)
        y_BNTH = self.attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        y_BTC = y_BNTH.transpose(1, 2).reshape(B, T, C)
        return F.dropout(self.c_proj(y_BTC), self.dropout, self.training)

    def _attend_manual(self, q_BNTH: Tensor, k_BNTH: Tensor, v_BNTH: Tensor) -> Tensor:
        """Every step in the open: scores, mask, softmax, weighted sum."""
        T, H = q_BNTH.shape[-2:]
        scores_BNTT = q_BNTH @ k_BNTH.transpose(-2, -1) / math.sqrt(H)  # sqrt(H) keeps their variance near 1
        scores_BNTT = scores_BNTT.masked_fill(~self.mask[:T, :T], float("-inf"))
        weights_BNTT = F.softmax(scores_BNTT, dim=-1)  # each row sums to 1 over what may be seen
        weights_BNTT = F.dropout(weights_BNTT, self.dropout, self.training)
        return weights_BNTT @ v_BNTH

    def _attend_sdpa(self, q_BNTH: Tensor, k_BNTH: Tensor, v_BNTH: Tensor) -> Tensor:
        """The same function through torch's fused kernel, which never builds the T x T matrices."""
        dropout = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(q_BNTH, k_BNTH, v_BNTH, dropout_p=dropout, is_causal=True)
