"""What the data hands to a task."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

IGNORED = -100  # a target that is none: F.cross_entropy leaves it out


@dataclass(frozen=True)
class Batch:
    """Token ids (B, T) and, for each, the id to be predicted there; `weight` predictions are counted in all."""

    inputs: Tensor
    targets: Tensor
    weight: int
    description: str = ""  # where it comes from, for messages about it
    documents: Tensor | None = None  # (B, T): which document each token belongs to, where a row holds several

    def to(self, device: torch.device) -> Batch:
        if self.inputs.device == device:
            return self
        documents = None if self.documents is None else self.documents.to(device)
        return Batch(self.inputs.to(device), self.targets.to(device), self.weight, self.description, documents)
