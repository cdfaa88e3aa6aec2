"""What costs nothing to know of an answer, beside what a judge says of it.

Answers and references come in as text; of each figure the two parts go out whose sums over answers make a ratio, so that
the figure of many has an interval, and two models can be compared answer by answer. None of them tells whether an answer
is right. They tell what a judge may have rewarded instead, such as length, and what it should not have missed, such as
text that repeats itself.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpt2x.evaluation.intervals import measured, ratio, share
from gpt2x.evaluation.perplexity import token_losses
from gpt2x.evaluation.rouge import rouge
from gpt2x.evaluation.samples import exponential, repeats, words
from gpt2x.model.gpt import GPT
from gpt2x.tokenizer.base import Tokenizer, TokenizerError

MEASURES = {  # each figure, and its name in a table
    "exact_match": "exact match",
    "rouge_l": "ROUGE-L",
    "words": "words",
    "length_ratio": "words by the reference's",
    "empty": "empty",
    "end_of_text": "ended by end-of-text",
    "repeated": "repeated",
    "reference_perplexity": "reference's perplexity",
}
_SHARES = {"exact_match", "empty", "end_of_text"}  # of answers, each of which has it or has it not


def parts(
    answers: Sequence[str],
    references: Sequence[str],
    finishes: Sequence[str | None],
    losses: Sequence[tuple[float, int] | None] | None = None,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of each of MEASURES the parts (N,) and the wholes (N,) of N answers; a whole is 0 where nothing is known, as where there
    is no reference ("").

    exact_match           1 where the answer is the reference, but for white space
    rouge_l               F1 of the words in order that the two share (rouge.py)
    words                 words of the answer
    length_ratio          the same, by the words of the reference
    empty                 1 where there is no word
    end_of_text           1 where the model ended the answer itself, of those answers of which it is known why they ended
    repeated              runs of four words that the answer has had before, of all its runs (samples.py)
    reference_perplexity  nats and tokens of the reference under the model; `losses` are those of `reference_losses`
    """
    ones, zeros = np.ones(len(answers)), np.zeros(len(answers))
    there = np.array([bool(reference.strip()) for reference in references], dtype=float)
    lengths, reference_lengths = (np.array([float(len(text.split())) for text in texts]) for texts in (answers, references))
    same = np.array([a.split() == b.split() for a, b in zip(answers, references, strict=True)], dtype=float)
    known = np.array([finish is not None for finish in finishes], dtype=float)
    ended = np.array([finish == "end_of_text" for finish in finishes], dtype=float)
    nats, tokens = np.array([loss or (0.0, 0) for loss in losses or []], dtype=float).reshape(-1, 2).T
    return {
        "exact_match": (same * there, there),
        "rouge_l": (rouge(answers, [(text,) for text in references])["rougeL"], there),
        "words": (lengths, ones),
        "length_ratio": (lengths * there, reference_lengths),
        "empty": ((lengths == 0).astype(float), ones),
        "end_of_text": (ended, known),
        "repeated": repeats([words(f"{text}\n") for text in answers]),  # the last word is a whole one, too
        "reference_perplexity": (nats, tokens) if losses else (zeros, zeros),
    }


def summary(parts: dict[str, tuple[np.ndarray, np.ndarray]], *, bootstrap: int = 1000, seed: int = 1) -> dict[str, Any]:
    """The figures of what `parts` gave: {"value", "low", "high"} of each, with Wilson's intervals of shares of answers."""
    found = {}
    for name, (part, whole) in parts.items():
        if name in _SHARES:
            found[name] = share(int(part.sum()), int(whole.sum()))
        elif len(part) == 0:
            found[name] = measured(None)
        else:
            upper = 1.0 if name in ("rouge_l", "repeated") else math.inf
            found[name] = ratio(part, whole, samples=bootstrap, seed=seed, upper=upper)
    found["reference_perplexity"] = exponential(found["reference_perplexity"])
    return found


def reference_losses(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    references: Sequence[str],
    *,
    batch_size: int = 8,
    autocast: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
) -> list[tuple[float, int] | None]:
    """How surprised the model is by each reference as the answer to its prompt: summed nats, and the tokens they are of.

    As in instruction tuning, where the loss is that of the response alone (task/instruct.py): prompt and reference are
    tokenized apart, and the end-of-text after the reference is predicted, too. What is longer than the model's context is
    read through windows that overlap by half. None where the tokenizer cannot read a text. The result does not depend on
    `batch_size`. Raises UserError if a loss is not finite.
    """
    rows: dict[int, np.ndarray] = {}
    begins: dict[int, int] = {}
    for i, (prompt, reference) in enumerate(zip(prompts, references, strict=True)):
        with contextlib.suppress(TokenizerError):
            before, after = tokenizer.encode(prompt), tokenizer.encode(reference)
            before = before if len(before) else [tokenizer.end_of_text]  # the first token is predicted from something
            rows[i] = np.concatenate([before, after, [tokenizer.end_of_text]]).astype(np.int64)
            begins[i] = len(before)
    losses = token_losses(model, list(rows.values()), batch_size=batch_size, autocast=autocast) if rows else []
    nats = {i: row[begins[i] - 1 :] for i, row in zip(rows, losses)}
    return [(float(nats[i].sum()), len(nats[i])) if i in nats else None for i in range(len(prompts))]
