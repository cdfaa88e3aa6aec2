"""The default first run as a short script of plain torch: what suite=job measures gpt2x-train against.

It shares no code with gpt2x. The model has the same shape and the optimizer the same form; there is no evaluation, no logging
and no checkpoint, and the tokens are random. What is left is what any training of this model in torch has to do.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BareBlock(nn.Module):
    """Attention and two layers with a GELU, each behind a norm and beside a shortcut."""

    def __init__(self, n_head: int, n_embd: int):
        super().__init__()
        self.n_head = n_head
        self.norm1 = nn.LayerNorm(n_embd)
        self.qkv, self.project = nn.Linear(n_embd, 3 * n_embd), nn.Linear(n_embd, n_embd)
        self.norm2 = nn.LayerNorm(n_embd)
        self.widen, self.narrow = nn.Linear(n_embd, 4 * n_embd), nn.Linear(4 * n_embd, n_embd)

    def forward(self, x_BTC: Tensor) -> Tensor:
        q, k, v = (part.unflatten(2, (self.n_head, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x_BTC)).chunk(3, 2))
        seen_BNTH = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BTC = x_BTC + self.project(seen_BNTH.transpose(1, 2).flatten(2))
        return x_BTC + self.narrow(F.gelu(self.widen(self.norm2(x_BTC)), approximate="tanh"))


class BareGPT(nn.Module):
    """Logits (B, T, vocabulary) of token ids (B, T); the head is the token embedding, or else a matrix of its own."""

    def __init__(self, *, vocab_size: int, n_layer: int, n_head: int, n_embd: int, context_length: int, tied_head: bool):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab_size, n_embd), nn.Embedding(context_length, n_embd)
        self.blocks = nn.Sequential(*(BareBlock(n_head, n_embd) for _ in range(n_layer)))
        self.norm = nn.LayerNorm(n_embd)
        self.head = nn.Linear(n_embd, vocab_size, bias=False)
        if tied_head:
            self.head.weight = self.tokens.weight
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        x_BTC = self.tokens(tokens_BT) + self.positions.weight[: tokens_BT.shape[1]]
        return self.head(self.norm(self.blocks(x_BTC)))


def train(*, shape: dict[str, Any], batch_size: int, steps: int, threads: int, seed: int) -> nn.Module:
    """Take `steps` steps with `batch_size` windows of random tokens each; `shape` holds BareGPT's arguments."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    T = shape["context_length"]
    tokens = torch.randint(shape["vocab_size"], (100_000 + T,))
    model = BareGPT(**shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1, betas=(0.9, 0.95), fused=True)
    for _ in range(steps):
        windows = torch.stack([tokens[i : i + T + 1] for i in torch.randint(100_000, (batch_size,)).tolist()])
        loss = F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model
