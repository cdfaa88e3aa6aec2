"""The bias of a classifier's head, which transformers' has not: the same scores without one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gpt2x.errors import UserError


def shift_for_bias(score: nn.Linear) -> Tensor:
    """The shortest shift (width,) of the head's inputs that its bias (classes,) can be left out for, in float64.

    The inputs are what the final norm puts out, which nothing else reads: the shift is added to that norm's bias. Raises
    UserError where there is none, as with more classes than inputs.
    """
    weight, bias = score.weight.detach().double(), score.bias.detach().double()
    shift = torch.linalg.pinv(weight) @ bias
    if not torch.allclose(weight @ shift, bias, rtol=1e-6, atol=1e-9):
        problem = f"no shift of its {score.in_features} inputs equals the head's bias for all {score.out_features} classes"
        raise UserError(f"transformers' classifier has no bias, and {problem}; train a head without bias")
    return shift
