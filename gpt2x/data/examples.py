"""Examples of unequal length, padded into batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from gpt2x.data.batch import IGNORED, Batch


@dataclass(frozen=True)
class Example:
    """Tokens (n,) and what is to be predicted: the next tokens (n,), IGNORED where none is, or a class."""

    tokens: np.ndarray
    target: np.ndarray | int
    weight: float  # predictions it counts for, or its class's weight
    documents: np.ndarray | None = None  # (n,): which document each token belongs to


class ExampleData:
    """Batches of examples, padded at their end."""

    def __init__(
        self,
        splits: dict[str, list[Example]],
        *,
        batch_size: int,
        eval_batch_size: int,
        shuffle: bool,
        seed: int,
        name: str,
    ):
        self.splits, self.batch_size, self.eval_batch_size = splits, batch_size, eval_batch_size
        self.shuffle, self.seed, self.name = shuffle, seed, name

    @property
    def batches_per_epoch(self) -> float:
        return len(self.splits["train"]) / self.batch_size

    def train_batch(self, index: int) -> Batch:
        examples = self.splits["train"]
        places = (index * self.batch_size + np.arange(self.batch_size)) % len(examples)
        return _batch([examples[i] for i in places])

    def eval_batches(self, split: str) -> Iterator[Batch]:
        examples = self.splits[split]
        for i in range(0, len(examples), self.eval_batch_size):
            yield _batch(examples[i : i + self.eval_batch_size])


def _batch(examples: list[Example]) -> Batch:
    def padded(rows: list[np.ndarray], value: int) -> torch.Tensor:
        full = np.full((len(rows), max(map(len, rows))), value, dtype=np.int64)
        for row, filled in zip(rows, full, strict=True):
            filled[: len(row)] = row
        return torch.from_numpy(full)

    documents = None
    if examples[0].documents is not None:
        documents = padded([e.documents for e in examples], -1)
    return Batch(
        padded([e.tokens for e in examples], 0),
        padded([e.target for e in examples], IGNORED),
        weight=sum(e.weight for e in examples),
        documents=documents,
    )
