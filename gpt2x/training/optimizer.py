"""Optimizers over a model's parameters."""

from __future__ import annotations

import re
from collections import defaultdict

import torch
from torch import nn


def adamw(
    model: nn.Module, *, lr: float, weight_decay: float, betas: list[float], eps: float, decay_all: bool, layer_decay: float
) -> torch.optim.Optimizer:
    """AdamW in torch's fused form, which updates each parameter in a single pass over memory."""
    groups = _groups(model, lr, weight_decay, decay_all, layer_decay)
    return torch.optim.AdamW(groups, lr=lr, betas=tuple(betas), eps=eps, fused=True)


def sgd(
    model: nn.Module,
    *,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    decay_all: bool,
    layer_decay: float,
) -> torch.optim.Optimizer:
    """Gradient descent with momentum, fused like `adamw`."""
    groups = _groups(model, lr, weight_decay, decay_all, layer_decay)
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=True)


def _groups(model: nn.Module, lr: float, weight_decay: float, decay_all: bool, layer_decay: float) -> list[dict]:
    """The trained parameters by their learning rate and weight decay.

    Matrices and embeddings decay; norms and biases, whose size means something, do not unless `decay_all`. Each block
    learns `layer_decay` times as fast as the one above it, the embeddings below them all as fast again (Howard and
    Ruder, 2018; Clark et al., 2020); the final norm and the head learn at the full rate.
    """
    depths = {name: int(match[1]) + 1 for name, _ in model.named_parameters() if (match := _BLOCK.search(name))}
    top = max(depths.values(), default=0) + 1
    groups = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            below = 0 if layer_decay == 1 else top - depths.get(name, 0 if _EMBEDDING.search(name) else top)
            decays = parameter.dim() >= 2 or decay_all
            groups[below, not decays].append(parameter)
    return [
        {"params": parameters, "lr": lr * layer_decay**below, "weight_decay": 0.0 if undecayed else weight_decay}
        for (below, undecayed), parameters in sorted(groups.items(), key=lambda group: group[0])
    ]


_BLOCK = re.compile(r"(?:^|\.)h\.(\d+)\.")
_EMBEDDING = re.compile(r"(?:^|\.)w[tp]e\.weight$")
