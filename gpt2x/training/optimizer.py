"""Optimizers over a model's parameters."""

from __future__ import annotations

import torch
from torch import nn


def adamw(
    model: nn.Module, *, lr: float, weight_decay: float, betas: list[float], eps: float, decay_all: bool
) -> torch.optim.Optimizer:
    """AdamW in torch's fused form, which updates each parameter in a single pass over memory."""
    groups = _decay_groups(model, weight_decay, decay_all)
    return torch.optim.AdamW(groups, lr=lr, betas=tuple(betas), eps=eps, fused=True)


def sgd(
    model: nn.Module, *, lr: float, momentum: float, nesterov: bool, weight_decay: float, decay_all: bool
) -> torch.optim.Optimizer:
    """Gradient descent with momentum, fused like `adamw`."""
    groups = _decay_groups(model, weight_decay, decay_all)
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=True)


def _decay_groups(model: nn.Module, weight_decay: float, decay_all: bool) -> list[dict]:
    """Matrices and embeddings decay; norms and biases, whose size means something, do not unless `decay_all`."""
    trained = [p for p in model.parameters() if p.requires_grad]
    decay = [p for p in trained if p.dim() >= 2 or decay_all]
    rest = [p for p in trained if p.dim() < 2 and not decay_all]
    groups = [{"params": decay, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
