"""Rows of unequal lengths as batches, in an order that depends on the seed and the step alone.

Examples that a task has made of a table or of instructions come in; batches of about one length come out, so that
little is computed for padding.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gpt2x.data.batch import IGNORED, Batch
from gpt2x.data.windows import mix, permute
from gpt2x.errors import UserError

_POOL = 50  # batches whose rows are sorted by length together, at most


@dataclass(frozen=True)
class Example:
    """One row.

    tokens     (n,) token ids
    target     (n,) the token that follows each, IGNORED where none is to be predicted; or the row's class
    weight     what it adds to the weight of its batch: its predictions, or its class's weight
    documents  (n,) which of several texts each token belongs to, in ascending numbers; None: it is one text
    """

    tokens: np.ndarray
    target: np.ndarray | int
    weight: float = 1.0
    documents: np.ndarray | None = None


class ExampleData:
    """Batches of the examples of each split; `title` is what they are called in the log.

    Each epoch is a new random order. It is cut into pools of fifty batches (or a quarter of the epoch, if that is less),
    each pool is sorted by length and cut into batches, and these come in random order again. Rows that have a class are not
    sorted for training: where one class has longer texts than another, as spam has, batches of a single class would come out.
    Evaluation takes the rows of a split in the order of their lengths.
    """

    def __init__(
        self,
        splits: dict[str, Sequence[Example]],
        *,
        batch_size: int,
        eval_batch_size: int,
        shuffle: bool,
        seed: int,
        name: str,
        drop_last: bool,
        title: str = "",
    ):
        self.splits, self.batch_size, self.eval_batch_size = splits, batch_size, eval_batch_size
        self.drop_last, self.shuffle, self.seed, self.name = drop_last, shuffle, seed, name
        self.title = title or f"{name}: {' + '.join(f'{len(e):,} {split}' for split, e in splits.items() if len(e))} rows"
        n = len(splits["train"])
        if n == 0:
            raise UserError(f"data={name}: the training split has no rows")
        if drop_last and n < batch_size:
            raise UserError(
                f"data={name}: an epoch has {n} rows, less than data.batch_size={batch_size}, and data.drop_last=true "
                "drops smaller batches\n  Use a smaller batch or data.drop_last=false."
            )
        self._lengths = {split: np.array([len(e.tokens) for e in examples]) for split, examples in splits.items()}
        self._epoch = functools.lru_cache(maxsize=2)(self._order)

    @property
    def batches_per_epoch(self) -> int:
        """Micro-batches in one pass over the training rows; the last one is smaller unless `drop_last`."""
        n = len(self.splits["train"]) / self.batch_size
        return math.floor(n) if self.drop_last else math.ceil(n)

    @property
    def batch_shape(self) -> str:
        return f"{self.batch_size} rows"

    @property
    def fingerprint(self) -> str:
        """sha256 of the tokens of all splits."""
        digest = hashlib.sha256()
        for split, examples in self.splits.items():
            digest.update(f"{split} {len(examples)}".encode())
            for example in examples:
                for part in (example.tokens, example.documents):
                    digest.update(b"" if part is None else np.ascontiguousarray(part, dtype=np.int64).tobytes())
                digest.update(b"/")
        return digest.hexdigest()

    def train_batch(self, index: int) -> Batch:
        """Micro-batch number `index` of the endless row of reshuffled epochs."""
        epoch, place = divmod(index, self.batches_per_epoch)
        rows = self._epoch(epoch)[place]
        return self._batch("train", rows, f"epoch {epoch}, rows {rows.tolist()} of the training split")

    def _order(self, epoch: int) -> list[np.ndarray]:
        """The rows of each batch of an epoch."""
        n, lengths = len(self.splits["train"]), self._lengths["train"]
        key = mix((self.seed << 32) + epoch)
        order = permute(np.arange(n), n, key) if self.shuffle else np.arange(n)
        order = order[: self.batches_per_epoch * self.batch_size]
        if not self.shuffle:
            return [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        classes = isinstance(self.splits["train"][0].target, int)
        size = self.batch_size * (1 if classes else max(1, min(_POOL, self.batches_per_epoch // 4)))
        batches = []
        for i in range(0, len(order), size):
            pool = order[i : i + size]
            pool = pool[np.argsort(lengths[pool], kind="stable")]
            batches += [pool[j : j + self.batch_size] for j in range(0, len(pool), self.batch_size)]
        return [batches[i] for i in permute(np.arange(len(batches)), len(batches), mix(key))]

    def n_eval(self, split: str) -> int:
        """Rows in one evaluation of the split."""
        return len(self.splits[split])

    def eval_batches(self, split: str, maximum: int | None = None) -> Iterator[Batch]:
        """The whole split, short rows first; with `maximum`, about as many rows spread evenly over it."""
        rows = np.arange(len(self.splits[split]))
        if maximum is not None and maximum < len(rows):
            rows = np.unique(np.linspace(0, len(rows) - 1, maximum).astype(int))
        rows = rows[np.argsort(self._lengths[split][rows], kind="stable")]
        for i in range(0, len(rows), self.eval_batch_size):
            yield self._batch(split, rows[i : i + self.eval_batch_size], split)

    def __str__(self) -> str:
        lengths = np.concatenate([lengths for lengths in self._lengths.values() if len(lengths)])
        return f"{self.title}, of {lengths.min()} to {lengths.max()} tokens"

    def _batch(self, split: str, rows: np.ndarray, description: str) -> Batch:
        examples = [self.splits[split][row] for row in rows]
        lengths = np.array([len(example.tokens) for example in examples])
        T = lengths.max()

        def filled(parts: list[np.ndarray], filling: int) -> torch.Tensor:
            whole = np.full((len(parts), T), filling, dtype=np.int64)
            for b, part in enumerate(parts):
                whole[b, : len(part)] = part
            return torch.from_numpy(whole)

        classes = isinstance(examples[0].target, int)
        targets = [example.target for example in examples]
        packed = examples[0].documents is not None
        return Batch(
            inputs=filled([example.tokens for example in examples], 0),
            targets=torch.tensor(targets) if classes else filled(targets, IGNORED),
            weight=sum(example.weight for example in examples),
            description=description,
            lengths=torch.from_numpy(lengths),
            documents=filled([example.documents for example in examples], -1) if packed else None,
            rows=rows,
            split=split,
        )
