"""An exponential moving average of the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class EMA:
    """Keeps `average = decay * average + (1 - decay) * weights` of named parameters, updated after each step (Polyak and
    Juditsky, 1992).

    Early on the decay is (1 + n) / (10 + n) after n updates if that is less, so that the random initial
    weights are soon forgotten.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], decay: float):
        self.parameters, self.decay = parameters, decay
        self.average = {name: p.detach().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, n_updates: int) -> None:
        """Take in the current weights; `n_updates` counts those before this one."""
        decay = min(self.decay, (1 + n_updates) / (10 + n_updates))
        for name, parameter in self.parameters.items():
            self.average[name].lerp_(parameter, 1 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the model computes with the average; the trained weights come back after it."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self.parameters.items():
            average = self.average[name]
            self.average[name], parameter.data = parameter.data, average

    def load(self, average: dict[str, Tensor]) -> None:
        """Copy saved averages in; raises KeyError if one is missing."""
        for name, mine in self.average.items():
            mine.copy_(average[name])
