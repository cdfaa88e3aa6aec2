"""What every task is to the training loop: the only thing that knows what a batch means."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from gpt2x.data.batch import Batch
from gpt2x.model.gpt import GPT
from gpt2x.tokenizer.base import Tokenizer


class Task(ABC):
    """A task is made of a tokenizer and of `about`: what of its data it must know again when its model is used without
    them, such as the names of the classes. A corpus has such an `about`; `Task.about`, with what the task adds to it, is
    kept in every checkpoint.
    """

    metric = "val/loss"  # what "best" means; lower is better

    def __init__(self, tokenizer: Tokenizer, about: dict[str, Any]):
        self.tokenizer, self.about = tokenizer, dict(about)

    @abstractmethod
    def batches(self, corpus: Any, *, context_length: int, seed: int) -> Any:
        """The corpus as batches for training and evaluation (data.windows.WindowedData or data.examples.ExampleData)."""

    def model(self, gpt: GPT, generator: torch.Generator | None = None) -> nn.Module:
        """`gpt` with the task's head; `generator` is the random stream of the head's initial weights."""
        return gpt

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Summed (not averaged) loss of the batch, in nats: the caller divides by `batch.weight`s."""

    @abstractmethod
    def evaluate(
        self, model: nn.Module, batches: Iterable[Batch], stop: Callable[[], bool] = lambda: False
    ) -> dict[str, Any] | None:
        """The metrics over all `batches`, "loss" among them; None if `stop` said so. They do not depend on how the rows
        were grouped into batches."""

    def examples_to_show(self) -> list[dict[str, str]]:
        """What the model is asked at each evaluation, to be looked at, once the batches are made: {"prompt": ...}, and with
        a known answer also {"question": what to show in the prompt's place, "reference": the answer}."""
        return []
