"""Optimizers over a model's parameters."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import nn

from gpt2x.config.option import ConfigError
from gpt2x.model.classifier import parts
from gpt2x.model.variants import swiglu
from gpt2x.training.muon import FIRST_MOMENTUM, Muon


def adamw(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    betas: list[float],
    eps: float,
    decay_all: bool,
    layer_decay: float,
    beta2_half_life_tokens: float | None = None,
) -> torch.optim.Optimizer:
    """AdamW in torch's fused form, which updates each parameter in a single pass over memory."""
    groups = _groups(model, model.parameters(), lr, weight_decay, decay_all, layer_decay)
    _note(groups, beta2_half_life_tokens=beta2_half_life_tokens)
    return torch.optim.AdamW(groups, lr=lr, betas=tuple(betas), eps=eps, fused=True)


def muon(
    model: nn.Module,
    *,
    muon_lr: float,
    muon_weight_decay: float,
    momentum: float,
    momentum_warmup_steps: int,
    nesterov: bool,
    ns_steps: int,
    ns_precision: str,
    adjust_lr: str,
    lr: float,
    weight_decay: float,
    betas: list[float],
    beta2_half_life_tokens: float | None,
    eps: float,
    decay_all: bool,
    layer_decay: float,
) -> Muon:
    """Muon over the matrices of the blocks' linear layers, and AdamW over embeddings, head and vectors.

    Queries, keys and values are three matrices that are stored as one, and so are the gates and values of mlp=swiglu.
    Raises ConfigError if no such matrix is trained.
    """
    blocks = parts(model)[0].h
    layers = [module for module in blocks.modules() if isinstance(module, nn.Linear)]
    chosen = {p for layer in layers for p in layer.parameters(recurse=False) if p.dim() == 2 and p.requires_grad}
    if not chosen:
        problem = "is for the matrices of blocks, and none of them is trained"
        raise ConfigError("optimizer", "muon", problem, "use optimizer=adamw, or another finetune=")
    matrices = _groups(model, chosen, muon_lr, muon_weight_decay, decay_all, layer_decay)
    _note(matrices, peak_momentum=momentum, momentum_warmup_steps=momentum_warmup_steps or None)
    rest = [parameter for parameter in model.parameters() if parameter not in chosen]
    others = _groups(model, rest, lr, weight_decay, decay_all, layer_decay)
    _note(others, beta2_half_life_tokens=beta2_half_life_tokens)
    return Muon(
        matrices,
        others,
        rows=_rows(blocks),
        momentum=momentum,
        nesterov=nesterov,
        ns_steps=ns_steps,
        precision=ns_precision,
        adjust_lr=adjust_lr,
        betas=tuple(betas),
        eps=eps,
    )


def _rows(blocks: nn.ModuleList) -> dict[nn.Parameter, list[int]]:
    """Of the weights that are several matrices, one above the other, how many rows each has."""
    rows = {}
    for block in blocks:
        attn, mlp = block.attn, block.mlp
        width = attn.c_proj.in_features // attn.n_head
        rows[attn.c_attn.weight] = [heads * width for heads in (attn.n_head, attn.n_kv_head, attn.n_kv_head)]
        if mlp.activation is swiglu:
            rows[mlp.c_fc.weight] = [mlp.c_proj.in_features] * 2
    return rows


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
    groups = _groups(model, model.parameters(), lr, weight_decay, decay_all, layer_decay)
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=True)


def before_step(optimizer: torch.optim.Optimizer, step: int, tokens: int) -> None:
    """Set what of an optimizer, beside its learning rates, depends on the number of steps taken so far and on how many
    tokens this one is of.

    Where beta2 has a half-life of h tokens, it is 0.5^(tokens / h): what a gradient adds to the second moment has lost half
    after h more tokens, whatever the batch (Marek et al., 2025, "Small Batch Size Training for Language Models").
    """
    for group in optimizer.param_groups:
        if "beta2_half_life_tokens" in group:
            group["betas"] = (group["betas"][0], 0.5 ** (tokens / group["beta2_half_life_tokens"]))
        if "momentum_warmup_steps" in group:
            missing = max(0.0, 1 - step / group["momentum_warmup_steps"]) * (group["peak_momentum"] - FIRST_MOMENTUM)
            group["momentum"] = group["peak_momentum"] - max(0.0, missing)


def _note(groups: list[dict], **settings: float | None) -> None:
    """Keep with each group the settings that there are, for `before_step`."""
    for group in groups:
        group.update({name: value for name, value in settings.items() if value is not None})


def _groups(
    model: nn.Module,
    chosen: Iterable[nn.Parameter],
    lr: float,
    weight_decay: float,
    decay_all: bool,
    layer_decay: float,
) -> list[dict]:
    """Those of the chosen parameters that are trained, by their learning rate and weight decay.

    Matrices and embeddings decay; norms and biases, whose size means something, do not unless `decay_all`. Each block
    learns `layer_decay` times as fast as the one above it, the embeddings below them all as fast again (Howard and
    Ruder, 2018; Clark et al., 2020); the final norm and the head learn at the full rate.
    """
    depths = {name: int(match[1]) + 1 for name, _ in model.named_parameters() if (match := _BLOCK.search(name))}
    top = max(depths.values(), default=0) + 1
    groups, chosen = defaultdict(list), set(chosen)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter in chosen:
            below = 0 if layer_decay == 1 else top - depths.get(name, 0 if _EMBEDDING.search(name) else top)
            decays = parameter.dim() >= 2 or decay_all
            groups[below, not decays].append(parameter)
    return [
        {"params": parameters, "lr": lr * layer_decay**below, "weight_decay": 0.0 if undecayed else weight_decay}
        for (below, undecayed), parameters in sorted(groups.items(), key=lambda group: group[0])
    ]


_BLOCK = re.compile(r"(?:^|\.)h\.(\d+)\.")
_EMBEDDING = re.compile(r"(?:^|\.)(w[tp]e|ngrams\.tables\.\d+)\.weight$")
