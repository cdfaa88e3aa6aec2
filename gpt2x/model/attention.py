"""Causal self-attention, the one place of a transformer where positions exchange information."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2x.model.cache import LayerCache
from gpt2x.model.config import GPT2, Variant
from gpt2x.model.position import rotate
from gpt2x.model.variants import Start, unit


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which each position sees itself and what stands before it (Vaswani et al., 2017).

    Letters in names of shapes: B batch, T positions, C width, N heads, H width of a head (C = N * H),
    L positions that are looked at: T, or more with a cache, Q those that look: T, or fewer with `at_B`; K heads of keys and
    values: N, or fewer (see `variant`). `value` is what each token adds to the values (variants.py), if anything.
    """

    def __init__(
        self,
        *,
        n_embd: int,
        n_head: int,
        context_length: int,
        dropout: float,
        attention: str,
        variant: Variant = GPT2,
        value: nn.Module | None = None,
    ):
        super().__init__()
        self.n_head, self.n_kv_head = n_head, variant.n_kv_head or n_head
        self.dropout = dropout
        self.attend = {"manual": self._attend_manual, "sdpa": self._attend_sdpa}[attention]
        # Queries, keys and values of all heads in one product.
        self.c_attn = nn.Linear(n_embd, (n_head + 2 * self.n_kv_head) * (n_embd // n_head), bias=variant.bias)
        self.c_proj = nn.Linear(n_embd, n_embd, bias=variant.bias)
        self.qk_norm, self.value = variant.qk_norm, value
        # Row t of the mask allows positions 0..t. A buffer moves with the model; no checkpoint needs it.
        mask = torch.ones(context_length, context_length, dtype=torch.bool).tril() if attention == "manual" else None
        self.register_buffer("mask", mask, persistent=False)

    def forward(
        self,
        x_BTC: Tensor,
        cache: LayerCache | None = None,
        *,
        mask: Tensor | None = None,
        turns: Tensor | None = None,
        at_B: Tensor | None = None,
        start: Start | None = None,
    ) -> Tensor:
        """(B, T, C) -> (B, T, C).

        cache  the T positions also see those that are kept there, and are added to it
        mask   (B or 1, N or 1, T, T), added to the scores: what may be seen, where that is less than all that stands
               before, and the positions of ALiBi
        turns  queries and keys are turned by these: rotary positions
        at_B   only what comes out at this position of each row is computed: (B, 1, C)
        start  what `value` looks back at
        """
        if at_B is not None and turns is None and self._is_plain():  # turned keys have no such matrix either
            y_BQC = self._attend_at(x_BTC, at_B, mask)
        else:
            B, T, C = x_BTC.shape
            N, K = self.n_head, self.n_kv_head
            qkv = self.c_attn(x_BTC).view(B, T, N + 2 * K, C // N).transpose(1, 2)
            if self.qk_norm or turns is not None:  # of queries and keys at once: half as many operations
                qk, v = qkv.split([N + K, K], dim=1)
                qk = unit(qk) if self.qk_norm else qk
                q, k = (rotate(qk, turns) if turns is not None else qk).split([N, K], dim=1)
            else:
                q, k, v = qkv.split([N, K, K], dim=1)
            if self.value is not None:
                v = v + self.value(x_BTC, start)
            if cache is not None:
                k, v = cache.extend(k, v)
                mask = cache.mask
            if K < N:  # each serves N / K heads of queries
                k, v = (x_BKLH.repeat_interleave(N // K, dim=1) for x_BKLH in (k, v))
            y_BQC = self.attend(q, k, v, mask).transpose(1, 2).reshape(B, T, C)
            y_BQC = y_BQC if at_B is None else select(y_BQC, at_B)
        return F.dropout(self.c_proj(y_BQC), self.dropout, self.training)

    def _is_plain(self) -> bool:
        """Whether a query can go through the matrix of the keys: normalized ones have none, an adapter's layer has two."""
        alone = self.n_kv_head == self.n_head and not self.qk_norm and self.value is None
        return alone and type(self.c_attn) is nn.Linear and self.c_attn.bias is not None

    def _attend_at(self, x_BTC: Tensor, at_B: Tensor, mask: Tensor | None) -> Tensor:
        """What one query a row finds, (B, 1, C), without the keys and values of all positions.

        A score is q (W x + b) = (q W) x + q b, so the query goes through the matrix of the keys, once, instead of every
        state; and the weights' sum of W x + b is W times that of x, and b as often as the weights sum to.
        """
        B, T, C = x_BTC.shape
        N, H = self.n_head, C // self.n_head
        (query_NHC, key_NHC, value_NHC), (query_NH, key_NH, value_NH) = (
            self.c_attn.weight.view(3, N, H, C).unbind(),
            self.c_attn.bias.view(3, N, H).unbind(),
        )
        q_BNH = torch.einsum("bc,nhc->bnh", select(x_BTC, at_B)[:, 0], query_NHC) + query_NH
        through_BNC = torch.einsum("bnh,nhc->bnc", q_BNH, key_NHC)
        scores_BNT = (through_BNC @ x_BTC.transpose(1, 2) + (q_BNH * key_NH).sum(-1, keepdim=True)) / math.sqrt(H)
        if mask is None:
            hidden_BT = torch.arange(T, device=at_B.device) > at_B[:, None]
            scores_BNT = scores_BNT.masked_fill(hidden_BT[:, None], float("-inf"))
        else:
            rows = torch.arange(B, device=at_B.device)
            scores_BNT = scores_BNT + mask.expand(B, -1, -1, -1)[rows, :, at_B]
        weights_BNT = F.softmax(scores_BNT, dim=-1)
        weights_BNT = F.dropout(weights_BNT, self.dropout, self.training)
        y_BNH = torch.einsum("bnc,nhc->bnh", weights_BNT @ x_BTC, value_NHC) + value_NH * weights_BNT.sum(-1, keepdim=True)
        return y_BNH.reshape(B, 1, C)

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


def select(x_BTC: Tensor, at_B: Tensor) -> Tensor:
    """Each row's state at one position: (B, T, C), (B,) -> (B, 1, C)."""
    return x_BTC[torch.arange(len(x_BTC), device=x_BTC.device), at_B][:, None]
