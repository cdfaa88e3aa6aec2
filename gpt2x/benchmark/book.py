"""GPT-2 as a classifier, computed the way "Build a Large Language Model (From Scratch)" does (Raschka, chapters 4 and 6).

The contestant that suite=finetune measures the others against. It shares no code with gpt2x/model and takes its weights from
there alone: the same function of the same numbers, with every step written out. Queries, keys and values are three products,
attention builds its whole matrix, all blocks run on all positions and so does the head, of whose rows the last one counts.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gpt2x.model.classifier import Classifier
from gpt2x.model.gpt import GPT, Block


class BookNorm(nn.Module):
    """Mean 0 and variance 1 across the width, then a learned scale and shift."""

    def __init__(self, norm: nn.LayerNorm):
        super().__init__()
        self.scale, self.shift, self.eps = _copy(norm.weight), _copy(norm.bias), norm.eps

    def forward(self, x_BTC: Tensor) -> Tensor:
        mean_BT1 = x_BTC.mean(dim=-1, keepdim=True)
        variance_BT1 = x_BTC.var(dim=-1, keepdim=True, unbiased=False)
        return self.scale * (x_BTC - mean_BT1) / torch.sqrt(variance_BT1 + self.eps) + self.shift


class BookAttention(nn.Module):
    """Multi-head attention with a mask over the whole matrix of scores."""

    def __init__(self, block: Block, n_head: int, context_length: int):
        super().__init__()
        self.n_head = n_head
        weights, biases = block.attn.c_attn.weight.chunk(3), block.attn.c_attn.bias.chunk(3)
        self.query, self.key, self.value = (_linear(w, b) for w, b in zip(weights, biases, strict=True))
        self.project = _linear(block.attn.c_proj.weight, block.attn.c_proj.bias)
        self.register_buffer("hidden", torch.ones(context_length, context_length, dtype=torch.bool).triu(1))

    def forward(self, x_BTC: Tensor) -> Tensor:
        B, T, C = x_BTC.shape
        q, k, v = (
            layer(x_BTC).view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        scores_BNTT = (q @ k.transpose(2, 3)).masked_fill_(self.hidden[:T, :T], float("-inf"))
        weights_BNTT = torch.softmax(scores_BNTT / math.sqrt(q.shape[-1]), dim=-1)
        return self.project((weights_BNTT @ v).transpose(1, 2).reshape(B, T, C))


class BookBlock(nn.Module):
    """Attention and two layers with a GELU written out, each behind a norm and beside a shortcut."""

    def __init__(self, block: Block, n_head: int, context_length: int):
        super().__init__()
        self.norm1, self.norm2 = BookNorm(block.ln_1), BookNorm(block.ln_2)
        self.attention = BookAttention(block, n_head, context_length)
        self.widen = _linear(block.mlp.c_fc.weight, block.mlp.c_fc.bias)
        self.narrow = _linear(block.mlp.c_proj.weight, block.mlp.c_proj.bias)

    def forward(self, x_BTC: Tensor) -> Tensor:
        x_BTC = x_BTC + self.attention(self.norm1(x_BTC))
        x = self.widen(self.norm2(x_BTC))
        x = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return x_BTC + self.narrow(x)


class BookClassifier(nn.Module):
    """Logits (B, T, classes) of token ids (B, T), with the weights of `model`; its last block, final norm and head are
    trained, and all below is frozen by its mark alone."""

    def __init__(self, model: Classifier):
        super().__init__()
        gpt: GPT = model.gpt
        self.tokens, self.positions = nn.ParameterList([_copy(gpt.wte.weight), _copy(gpt.wpe.weight)])
        self.blocks = nn.Sequential(*(BookBlock(block, gpt.n_head, gpt.context_length) for block in gpt.h))
        self.norm = BookNorm(gpt.ln_f)
        self.head = _linear(model.score.weight, model.score.bias)
        self.requires_grad_(False)
        for part in (self.blocks[-1], self.norm, self.head):
            part.requires_grad_(True)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        positions_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        x_BTC = nn.functional.embedding(tokens_BT, self.tokens) + self.positions[positions_T]
        return self.head(self.norm(self.blocks(x_BTC)))


def _copy(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight.detach().clone())


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(*reversed(weight.shape), device="meta")
    layer.weight, layer.bias = _copy(weight), _copy(bias)
    return layer
