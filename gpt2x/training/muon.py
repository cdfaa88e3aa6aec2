"""Muon for the matrices of the blocks and AdamW for all else, as one optimizer.

Muon (Jordan et al., 2024, "Muon: An optimizer for hidden layers in neural networks") keeps a momentum of each matrix's
gradient and takes the step with all singular values of that brought near 1, so that no direction is learned faster than
another. That costs products of the matrix with itself at every step, whatever the batch: little beside a batch of half a
million tokens, as much as the training itself beside one of a few hundred.

It computes what torch.optim.Muon does, for all matrices of a shape at once, and not always in bf16: a processor without
instructions for that takes six times as long as in fp32.
"""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import Tensor

from gpt2x.device import has_bf16

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the iteration x -> a x + b x^3 + c x^5 on singular values, chosen by the authors: small ones grow fast, and those near 1
stay between 0.7 and 1.2."""
FIRST_MOMENTUM = 0.85
"""Where a momentum that warms up begins, as in modded-nanogpt."""


class Muon(torch.optim.Optimizer):
    """Groups of `matrices` and of `others`, each with its lr and weight_decay.

    rows       of a parameter that is several matrices, one above the other: their heights. Each is a matrix of its own.
    adjust_lr  "original": a matrix taller than wide takes larger steps, by the root of the ratio; "match_rms_adamw": steps
               have the size that AdamW's usually have (Liu et al., 2025, "Muon is Scalable for LLM Training")
    precision  of the products: "fp32", "bf16", or "auto": bf16 where there are instructions for it
    betas, eps  AdamW's

    A group of matrices has a momentum, which may be changed between steps.
    """

    def __init__(
        self,
        matrices: list[dict],
        others: list[dict],
        *,
        rows: dict[Tensor, list[int]],
        momentum: float,
        nesterov: bool,
        ns_steps: int,
        precision: str,
        adjust_lr: str,
        betas: tuple[float, float],
        eps: float,
    ):
        self.adamw = torch.optim.AdamW(others, betas=betas, eps=eps, fused=True) if others else None
        groups = [{"momentum": momentum} | group for group in matrices]
        super().__init__([*groups, *(self.adamw.param_groups if others else [])], {})
        self.n_muon, self.rows = len(matrices), rows
        self.nesterov, self.ns_steps, self.precision, self.adjust_lr = nesterov, ns_steps, precision, adjust_lr
        self.flops = sum(
            ns_steps * newton_schulz_flops(piece)
            for group in groups
            for p in group["params"]
            for piece, _ in self._pieces(p, p)
        )

    @torch.no_grad()
    def step(self) -> None:
        """Take a step with the gradients that there are."""
        for group in self.param_groups[: self.n_muon]:
            self._step(group)
        if self.adamw is not None:  # groups and state are this object's own: loading a state makes new ones
            self.adamw.param_groups, self.adamw.state = self.param_groups[self.n_muon :], self.state
            self.adamw.step()

    def _step(self, group: dict) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        gradients, momentum = [p.grad for p in parameters], group["momentum"]
        for p in parameters:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        momenta = [self.state[p]["momentum_buffer"] for p in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - momentum)
        updates = torch._foreach_lerp(gradients, momenta, momentum) if self.nesterov else momenta
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        by_shape = defaultdict(list)
        for p, update in zip(parameters, updates, strict=True):
            for piece in self._pieces(p, update):
                by_shape[piece[0].shape].append(piece)
        for (height, width), pieces in by_shape.items():
            weights, directions = zip(*pieces, strict=True)
            steps = orthogonalized(torch.stack(directions), self.ns_steps, self._dtype(weights[0]))
            if self.adjust_lr == "original":
                lr = group["lr"] * math.sqrt(max(1, height / width))
            else:
                lr = group["lr"] * 0.2 * math.sqrt(max(height, width))
            torch._foreach_add_(weights, list(steps.to(weights[0].dtype)), alpha=-lr)

    def _pieces(self, parameter: Tensor, update: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The matrices of a parameter, and the rows of its update that belong to each."""
        rows = self.rows.get(parameter, [len(parameter)])
        return list(zip(parameter.split(rows), update.split(rows), strict=True))

    def _dtype(self, weight: Tensor) -> torch.dtype:
        bf16 = self.precision == "bf16" or (self.precision == "auto" and has_bf16(weight.device.type))
        return torch.bfloat16 if bf16 else weight.dtype

    def __str__(self) -> str:
        groups = (self.param_groups[: self.n_muon], self.param_groups[self.n_muon :])
        muon, adamw = (sum(p.numel() for group in part for p in group["params"]) for part in groups)
        return f"Muon on {muon:,} parameters, {self.flops / 1e9:.3g} GFLOP more a step; AdamW on {adamw:,}"


def orthogonalized(x_NRC: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """Matrices (N, R, C) with the singular vectors of these, and singular values near 1, computed in `dtype`."""
    a, b, c = COEFFICIENTS
    tall = x_NRC.shape[1] > x_NRC.shape[2]  # the products are of the short sides
    x = (x_NRC.mT if tall else x_NRC).to(dtype)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # no singular value is above 1
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def newton_schulz_flops(matrix: Tensor) -> int:
    """Floating-point operations of one step of the iteration."""
    short, long = sorted(matrix.shape)
    return 2 * short * short * (2 * long + short)
