"""GPT-2 computed and trained the way nanoGPT does: the contestant that suite=train measures the others against.

Written from knowledge of its design (Karpathy's nanoGPT, model.py and train.py); it shares no code with gpt2x/model and takes
its weights from there. It differs from GPT-2 in its GELU, which is the exact one; torch computes that in a quarter of the
time of GPT-2's tanh form. Its biases are switched on here, as GPT-2 has them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2x.model.gpt import GPT


class Norm(nn.Module):
    """Layer normalization with weights of its own."""

    def __init__(self, n_embd: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(n_embd)), nn.Parameter(torch.zeros(n_embd))

    def forward(self, x_BTC: Tensor) -> Tensor:
        return F.layer_norm(x_BTC, self.weight.shape, self.weight, self.bias, 1e-5)


class Attention(nn.Module):
    """One product for queries, keys and values, which are then split; torch's fused attention."""

    def __init__(self, n_head: int, n_embd: int):
        super().__init__()
        self.n_head, self.n_embd = n_head, n_embd
        self.c_attn, self.c_proj = nn.Linear(n_embd, 3 * n_embd), nn.Linear(n_embd, n_embd)
        self.resid_dropout = nn.Dropout(0.0)

    def forward(self, x_BTC: Tensor) -> Tensor:
        B, T, C = x_BTC.size()
        q, k, v = self.c_attn(x_BTC).split(self.n_embd, dim=2)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=True)
        return self.resid_dropout(self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C)))


class MLP(nn.Module):
    """Two linear layers and the exact GELU."""

    def __init__(self, n_embd: int):
        super().__init__()
        self.c_fc, self.gelu = nn.Linear(n_embd, 4 * n_embd), nn.GELU()
        self.c_proj, self.dropout = nn.Linear(4 * n_embd, n_embd), nn.Dropout(0.0)

    def forward(self, x_BTC: Tensor) -> Tensor:
        return self.dropout(self.c_proj(self.gelu(self.c_fc(x_BTC))))


class Block(nn.Module):
    """Attention and MLP, each behind a norm and beside a shortcut."""

    def __init__(self, n_head: int, n_embd: int):
        super().__init__()
        self.ln_1, self.attn = Norm(n_embd), Attention(n_head, n_embd)
        self.ln_2, self.mlp = Norm(n_embd), MLP(n_embd)

    def forward(self, x_BTC: Tensor) -> Tensor:
        x_BTC = x_BTC + self.attn(self.ln_1(x_BTC))
        return x_BTC + self.mlp(self.ln_2(x_BTC))


class NanoGPT(nn.Module):
    """A model with the weights of `ours`, in parameters of its own with the same names."""

    def __init__(self, ours: GPT):
        super().__init__()
        n_embd = ours.wte.embedding_dim
        self.wte, self.wpe = nn.Embedding(ours.vocab_size, n_embd), nn.Embedding(ours.context_length, n_embd)
        self.drop = nn.Dropout(0.0)
        self.h = nn.ModuleList(Block(ours.n_head, n_embd) for _ in ours.h)
        self.ln_f = Norm(n_embd)
        self.lm_head = nn.Linear(n_embd, ours.vocab_size, bias=False)
        if ours.lm_head is None:
            self.lm_head.weight = self.wte.weight
        weights = ours.state_dict()
        self.to(weights["wte.weight"].dtype)
        self.load_state_dict({"lm_head.weight": weights["wte.weight"]} | weights)

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, T, V) and their mean cross-entropy."""
        positions_T = torch.arange(0, tokens_BT.size(1), dtype=torch.long, device=tokens_BT.device)
        x_BTC = self.drop(self.wte(tokens_BT) + self.wpe(positions_T))
        for block in self.h:
            x_BTC = block(x_BTC)
        logits_BTV = self.lm_head(self.ln_f(x_BTC))
        loss = F.cross_entropy(logits_BTV.view(-1, logits_BTV.size(-1)), targets_BT.reshape(-1), ignore_index=-1)
        return logits_BTV, loss


def optimizer(model: nn.Module, *, fused: bool, **settings: Any) -> torch.optim.Optimizer:
    """AdamW in two groups: what has two dimensions decays. nanoGPT itself uses the fused form on CUDA alone."""
    parameters = list(model.parameters())
    weight_decay = settings.pop("weight_decay")
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, **settings, **({"fused": True} if fused else {}))


def rate(step: int, *, peak: float, warmup: int = 0, total: int = 600_000) -> float:
    """Its learning rate, which it computes anew in each step: a warm-up, then half a cosine to a tenth of the peak."""
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / (total - warmup))
    return peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))
