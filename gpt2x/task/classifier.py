"""Classification: tell which of a few classes a text belongs to."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2x.data.batch import Batch
from gpt2x.data.examples import Example, ExampleData
from gpt2x.data.table import TableCorpus
from gpt2x.evaluation.classification import flat, report
from gpt2x.model.classifier import Classifier
from gpt2x.model.gpt import GPT
from gpt2x.task.base import Task
from gpt2x.tokenizer.base import Tokenizer

log = logging.getLogger(__name__)


class Classification(Task):
    """Cross-entropy over the classes of whole texts; see ClassifierConfig for the settings.

    `about` holds "labels", the names of the classes, and where they matter "class_weights" and "padded_length".
    """

    def __init__(self, tokenizer: Tokenizer, about: dict[str, Any], *, pooling: str, class_weights: str):
        super().__init__(tokenizer, about)
        self.labels: list[str] = self.about["labels"]
        self.pooling, self.class_weights = pooling, class_weights
        self.weights = torch.tensor(self.about.get("class_weights", [1.0] * len(self.labels)))

    def batches(self, corpus: TableCorpus, *, context_length: int, seed: int) -> ExampleData:
        """Each row as its tokens and its class. What is longer than the context is cut at its end, and counted."""
        if self.class_weights == "balanced":
            counts = Counter(row.label for row in corpus.splits["train"])
            n = sum(counts.values())  # a class with a tenth of the rows weighs ten times as much as one with all
            self.about["class_weights"] = [n / (len(self.labels) * counts[label]) for label in range(len(self.labels))]
            self.weights = torch.tensor(self.about["class_weights"])
        tokens = {split: [self.tokenizer.encode(row.text) for row in rows] for split, rows in corpus.splits.items()}
        if self.pooling == "padded_last":
            self.about["padded_length"] = min(context_length, max(len(ids) for ids in tokens["train"]))
        splits, cut = {}, 0
        for split, rows in corpus.splits.items():
            cut += sum(len(ids) > self.room(context_length) for ids in tokens[split])
            splits[split] = [
                Example(self._row(ids, context_length), row.label, self.weights[row.label].item())
                for ids, row in zip(tokens[split], rows, strict=True)
            ]
        if cut:
            log.info("cut      %s rows are longer than %d tokens and lose their ends", f"{cut:,}", self.room(context_length))
        return ExampleData(splits, seed=seed, name=corpus.name, title=str(corpus), **corpus.batching)

    def model(self, gpt: GPT, generator: torch.Generator | None = None) -> Classifier:
        return Classifier(gpt, n_classes=len(self.labels), pooling=self.pooling, generator=generator)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Summed cross-entropy (nats) of the rows, each times its class's weight."""
        logits_BK = model(batch.inputs, batch.lengths, batch.below).float()
        return F.cross_entropy(logits_BK, batch.targets, self.weights.to(logits_BK.device), reduction="sum")

    @torch.no_grad()
    def evaluate(
        self, model: nn.Module, batches: Iterable[Batch], stop: Callable[[], bool] = lambda: False
    ) -> dict[str, Any] | None:
        """The loss; what evaluation.classification.flat names; and two tables: "confusion", how many rows of each class are
        told to be of which, and "calibration", how often each confidence was right (see evaluation.classification)."""
        nats, weight, classes, probabilities = 0.0, 0.0, [], []
        for batch in batches:
            if stop():
                return None
            logits_BK = model(batch.inputs, batch.lengths, batch.below).double().cpu()
            weights_B = self.weights[batch.targets.cpu()].double()
            losses_B = F.cross_entropy(logits_BK, batch.targets.cpu(), reduction="none")
            nats += (losses_B * weights_B).sum().item()
            weight += weights_B.sum().item()
            classes.append(batch.targets.cpu().numpy())
            probabilities.append(logits_BK.softmax(-1).numpy())
        measured = report(np.concatenate(classes), np.concatenate(probabilities), labels=self.labels, bootstrap=0)
        metrics = flat(measured)
        metrics.pop("log_loss")  # the loss, but for the weights of the classes
        confusion = {
            true: dict(zip(self.labels, row, strict=True)) for true, row in zip(self.labels, measured["confusion"], strict=True)
        }
        return {"loss": nats / weight} | metrics | {"confusion": confusion, "calibration": measured["calibration"]}

    @torch.inference_mode()
    def predict(self, model: Classifier, texts: Sequence[str], batch_size: int) -> np.ndarray:
        """The probabilities (N, classes) of texts, in float64, whatever the batches they are computed in."""
        rows = [self._row(self.tokenizer.encode(text), model.gpt.context_length) for text in texts]
        result = np.empty((len(texts), len(self.labels)))
        order = np.argsort([len(row) for row in rows], kind="stable")
        for i in range(0, len(order), batch_size):
            chosen = order[i : i + batch_size]
            lengths_B = torch.tensor([len(rows[j]) for j in chosen])
            tokens_BT = nn.utils.rnn.pad_sequence([torch.from_numpy(rows[j]) for j in chosen], batch_first=True)
            device = model.score.weight.device
            logits_BK = model(tokens_BT.to(device), lengths_B.to(device))
            result[chosen] = logits_BK.double().softmax(-1).cpu().numpy()
        return result

    def room(self, context_length: int) -> int:
        """How many tokens of a text are read; the others, at its end, are not."""
        return min(context_length, self.about.get("padded_length", context_length))

    def _row(self, tokens: np.ndarray, context_length: int) -> np.ndarray:
        """A row's token ids (n,): cut to what there is room for, filled up where the pooling asks for it, never empty."""
        tokens = np.asarray(tokens, dtype=np.int64)[: self.room(context_length)]
        missing = self.room(context_length) - len(tokens) if self.pooling == "padded_last" else int(len(tokens) == 0)
        return np.concatenate([tokens, np.full(missing, self.tokenizer.end_of_text)]) if missing else tokens
