"""What the data hands to a task."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Token ids (B, T) and, for each, the id to be predicted there; `weight` predictions are counted in all."""

    inputs: Tensor
    targets: Tensor
    weight: int
    description: str = ""  # where it comes from, for messages about it

    def to(self, device: torch.device) -> Batch:
        if self.inputs.device == device:
            return self
        return Batch(self.inputs.to(device), self.targets.to(device), self.weight, self.description)
