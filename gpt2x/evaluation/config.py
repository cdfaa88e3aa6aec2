"""Settings of the evaluation group: each class is one kind of evaluation."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import ClassVar

from gpt2x.config.option import ConfigError, option
from gpt2x.interop.pretrained import KINDS, kind_of, lacking


@dataclass(kw_only=True)
class PerplexityConfig:
    """How well the model predicts a text: loss, perplexity and bits per byte."""

    choice: ClassVar[str] = "perplexity"
    data_kind: ClassVar[str] = "text"
    _target_: str = "gpt2x.evaluation.perplexity.Perplexity"
    mode: str = option(
        "documents",
        "documents: each by itself, after an end-of-text token; strided: the whole split as one row of tokens",
        choices=("documents", "strided"),
    )
    context_length: int | None = option(None, "tokens that a window may hold; null: as many as the model's context", minimum=1)
    stride: int | None = option(
        None,
        "tokens by which a window is moved to the next one in what is longer than the context; null: half the context",
        minimum=1,
    )
    batch_size: int = option(8, "windows computed at once; the result does not depend on it", minimum=1)
    against_fp32: bool = option(
        False, "also compute the same windows in fp32, and tell what generation.weights or device.precision costs"
    )

    def check(self) -> None:
        if None not in (self.stride, self.context_length) and self.stride > self.context_length:
            raise ConfigError(
                "stride",
                self.stride,
                f"windows hold {self.context_length} tokens, so some would be left out",
                f"use at most {self.context_length}",
            )


@dataclass(kw_only=True)
class ClassificationConfig:
    """How good a classifier is: accuracy, F1, AUROC, calibration and more, with 95 % intervals, beside a baseline."""

    choice: ClassVar[str] = "classification"
    data_kind: ClassVar[str] = "table"
    _target_: str = "gpt2x.evaluation.classification.Classification"
    batch_size: int = option(16, "texts computed at once; the result does not depend on it", minimum=1)
    bootstrap: int = option(1000, "times that the rows are drawn anew for the intervals; 0: only Wilson's intervals", minimum=0)
    bins: int = option(15, "bins of equal width for the calibration error", minimum=1)
    baseline: bool = option(
        True, "also train a logistic regression on TF-IDF of words with the training split, to compare with"
    )
    predictions: str | None = option(
        None, "a CSV file for each row's text, label, predicted label and probabilities; null: none", verbatim=True
    )
    plot: str | None = option(
        None, "a PNG file for the confusion matrix and the reliability diagram; null: none", verbatim=True
    )

    def check_available(self) -> None:
        _check_files(predictions=self.predictions, plot=self.plot)


@dataclass(kw_only=True)
class RougeConfig:
    """How near a model's answers come to the references: ROUGE-1, -2 and -L, beside the source's first sentences."""

    choice: ClassVar[str] = "rouge"
    data_kind: ClassVar[str] = "instructions"
    _target_: str = "gpt2x.evaluation.rouge.Rouge"
    batch_size: int = option(8, "answers that are made at the same time", minimum=1)
    max_examples: int | None = option(None, "answer only the first so many examples of the split; null: all", minimum=1)
    max_new_tokens: int = option(100, "tokens of an answer at most", minimum=1)
    beams: int = option(1, "1: always the likeliest token (greedy); more: beam search", minimum=1)
    bootstrap: int = option(1000, "times that the examples are drawn anew for the intervals; 0: no intervals", minimum=0)
    predictions: str | None = option(
        None, "a JSON lines file for each example's prompt, answer, references and scores; null: none", verbatim=True
    )

    def check_available(self) -> None:
        _check_files(predictions=self.predictions)


@dataclass(kw_only=True)
class SamplesConfig:
    """How good generated texts are: spelling, repetition, variety, copying and perplexity, beside those of real text.

    Each text goes on from the beginning of a piece of the run's own held-out text, past the end of a document, too, as the
    real text does; all have the same length, sampling.max_new_tokens.
    """

    choice: ClassVar[str] = "samples"
    data_kind: ClassVar[str] = "text"
    _target_: str = "gpt2x.evaluation.samples.Samples"
    texts: int = option(64, "texts to make, each from another place of the split", minimum=2)
    prompt_tokens: int = option(32, "tokens of real text that each one begins with, which are not measured", minimum=1)
    seed: int = option(1, "the same seed gives the same texts", minimum=0, maximum=2**32 - 1)
    span: int = option(8, "tokens in a row that count as copied where the training text has them", minimum=1)
    judge: str | None = option(
        None,
        "another run, or a model of OpenAI's or Hugging Face's, better or larger, that tells how likely it finds the texts, in "
        "bits per byte; null: none",
        verbatim=True,
    )
    batch_size: int = option(16, "texts that are made at the same time; the result does not depend on it", minimum=1)
    bootstrap: int = option(
        1000, "times that the texts are drawn anew for the intervals; 0: only those of variety, which need none", minimum=0
    )
    predictions: str | None = option(
        None, "a JSON lines file for each text, what it began with, and how the real one goes on; null: none", verbatim=True
    )

    def check_available(self) -> None:
        _check_files(predictions=self.predictions)
        if self.judge is not None and kind_of(self.judge) is None:
            raise ConfigError("judge", self.judge, lacking(*KINDS), "runs lie under outputs/runs")


def _check_files(**files: str | None) -> None:
    for name, path in files.items():
        if path is not None and os.path.isdir(path):
            raise ConfigError(name, path, "is a folder", "name a file in it")
