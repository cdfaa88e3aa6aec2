"""Learning-rate schedules: the share of the peak learning rate at each step.

Each is called with the number of steps taken so far, 0 for the first step, and has warmed up linearly after
`warmup_steps` (None: a tenth of the run, at most 100). `total_steps` is the length of the run.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod


class Schedule(ABC):
    """Linear warm-up, then `after_warmup` of how far the rest has come, from 0 to 1."""

    def __init__(self, *, total_steps: int, warmup_steps: int | None):
        self.total_steps = total_steps
        self.warmup_steps = min(100, total_steps // 10) if warmup_steps is None else warmup_steps

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)  # the very first step is already worth taking
        progress = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        return self.after_warmup(min(1.0, progress))

    @abstractmethod
    def after_warmup(self, progress: float) -> float:
        """The share of the peak when `progress` (0 to 1) of the steps after the warm-up are done."""


class Constant(Schedule):
    """The peak for ever."""

    def after_warmup(self, progress: float) -> float:
        return 1.0


class Cosine(Schedule):
    """Half a cosine from the peak down to `min_lr_ratio` of it (Loshchilov and Hutter, 2017)."""

    def __init__(self, *, total_steps: int, warmup_steps: int | None, min_lr_ratio: float):
        super().__init__(total_steps=total_steps, warmup_steps=warmup_steps)
        self.min_lr_ratio = min_lr_ratio

    def after_warmup(self, progress: float) -> float:
        return self.min_lr_ratio + (1 - self.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress))


class Linear(Schedule):
    """A straight line from the peak down to `min_lr_ratio` of it."""

    def __init__(self, *, total_steps: int, warmup_steps: int | None, min_lr_ratio: float):
        super().__init__(total_steps=total_steps, warmup_steps=warmup_steps)
        self.min_lr_ratio = min_lr_ratio

    def after_warmup(self, progress: float) -> float:
        return 1 - (1 - self.min_lr_ratio) * progress


class WSD(Schedule):
    """Warm-up, stable, decay (Hu et al., 2024): the peak, then a line down over the last `decay_fraction` of all steps."""

    def __init__(self, *, total_steps: int, warmup_steps: int | None, decay_fraction: float, min_lr_ratio: float):
        super().__init__(total_steps=total_steps, warmup_steps=warmup_steps)
        self.decay_fraction, self.min_lr_ratio = decay_fraction, min_lr_ratio

    def __call__(self, step: int) -> float:
        left = max(0, self.total_steps - step) / max(1.0, self.decay_fraction * self.total_steps)
        decay = self.min_lr_ratio + (1 - self.min_lr_ratio) * min(1.0, left)
        return min(super().__call__(step), decay)

    def after_warmup(self, progress: float) -> float:
        return 1.0


class SequenceWarmup:
    """Of how many tokens the rows of a batch are, step by step: a line from `start` to `full` over `steps` steps (Li et al.,
    2021, "The Stability-Efficiency Dilemma"), in multiples of 8, which take few different computations.

    Short rows cost less, and are the smaller batches that serve a young model as well.
    """

    def __init__(self, *, start: int, full: int, steps: int):
        self.start, self.full, self.steps = start, full, steps

    def __call__(self, step: int) -> int:
        """The length after `step` steps."""
        if step >= self.steps:
            return self.full
        return max(self.start, int(self.start + (self.full - self.start) * step / self.steps) // 8 * 8)


class RangeTest(Schedule):
    """Up from `start` to the peak by the same factor at every step: one run that tries all learning rates (Smith, 2015)."""

    def __init__(self, *, total_steps: int, start: float):
        super().__init__(total_steps=total_steps, warmup_steps=0)
        self.start = start

    def after_warmup(self, progress: float) -> float:
        return self.start ** (1 - progress)
