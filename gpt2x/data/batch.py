"""What the data hands to a task."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

IGNORED = -100  # a target where nothing is to be predicted: torch's cross_entropy leaves it out


@dataclass(frozen=True)
class Batch:
    """Token ids and what is to be predicted from them.

    inputs     (B, T) token ids; rows of unequal lengths are filled up at their end
    targets    (B, T) the token that follows each, IGNORED where none is asked for; or (B,) the class of each row
    weight     what a loss summed over the batch is divided by for its mean: predictions, or the weights of the classes
    lengths    (B,) tokens of each row that are no padding; None: all are
    documents  (B, T) which of several texts in its row each token belongs to; None: a row is one text
    rows       (B,) the numbers of the rows in their split; None where rows have none
    below      what frozen layers make of the inputs, where that is known (model.gpt.Below)
    """

    inputs: Tensor
    targets: Tensor
    weight: float
    description: str = ""  # where it comes from, for messages about it
    lengths: Tensor | None = None
    documents: Tensor | None = None
    rows: np.ndarray | None = None
    split: str = "train"
    below: Any = None

    @property
    def tokens(self) -> int:
        """Token ids that are no padding."""
        return self.inputs.numel() if self.lengths is None else int(self.lengths.sum())

    def first(self, length: int) -> Batch:
        """The first `length` tokens of each row; of rows without padding, each token of which predicts the next."""
        inputs, targets = self.inputs[:, :length], self.targets[:, :length]
        return dataclasses.replace(self, inputs=inputs, targets=targets, weight=inputs.numel())

    def to(self, device: torch.device) -> Batch:
        if self.inputs.device == device:
            return self
        tensors = {name: getattr(self, name) for name in ("inputs", "targets", "lengths", "documents")}
        return dataclasses.replace(self, **{name: t.to(device) for name, t in tensors.items() if t is not None})
