"""ROUGE: how many words, pairs of words and words in order an answer shares with its references (Lin, 2004).

Answers, references and sources come in as plain text; a report of plain numbers goes out, in which the first sentences of
the source, the baseline that summaries are measured against, are scored just as the model is. The scores are those of
the package rouge-score with its Porter stemmer, which reads nothing but the letters a to z and digits.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt2x.errors import UserError
from gpt2x.evaluation.answering import Answerer, answered
from gpt2x.evaluation.intervals import ratio
from gpt2x.evaluation.output import score, table, writing
from gpt2x.files import write_atomic
from gpt2x.generation.config import SamplingConfig

if TYPE_CHECKING:
    from gpt2x.data.instructions import InstructionCorpus

log = logging.getLogger(__name__)

MEASURES = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}
_CUT_SHORT = ("length", "context")  # why an answer ended that did not end by itself
_SENTENCE_END = re.compile(r"\n+|(?<=[.!?])[\"'”’)\]]*\s+(?=[\"'“‘(\[]*(\w))")
_ABBREVIATION = re.compile(r"\b([A-Z]|Dr|Mrs?|Ms|Prof|[Ff]igs?|[Ee]qs?|vs|cf|al|e\.g|i\.e)\.$")


class Rouge:
    """The ROUGE of a model's answers; see RougeConfig for the settings.

    `prompt(instruction, input)` is what the model is asked; `answer` gives what it makes of prompts.
    """

    def __init__(
        self,
        answer: Answerer,
        prompt: Callable[[str, str], str],
        *,
        batch_size: int,
        max_examples: int | None,
        max_new_tokens: int,
        beams: int,
        bootstrap: int,
        predictions: str | None,
    ):
        self.answer, self.prompt = answer, prompt
        self.batch_size, self.max_examples = batch_size, max_examples
        self.sampling = SamplingConfig(max_new_tokens=max_new_tokens, temperature=0.0, beams=beams)
        self.bootstrap, self.predictions = bootstrap, predictions

    def evaluate(self, corpus: InstructionCorpus, split: str) -> dict[str, Any]:
        """The report of a split's first `max_examples`; writes the answers where they are wanted.

        Raises UserError if the split has no examples, or the file cannot be written.
        """
        records = corpus.splits[split][: self.max_examples]
        if not records:
            raise UserError(f"split={split}: data={corpus.name} has no examples there")
        prompts = [self.prompt(record.instruction, record.input) for record in records]
        made = answered(prompts, self.answer, self.sampling, batch_size=self.batch_size)
        answers, finishes = zip(*made, strict=True)
        references = [record.outputs for record in records]
        settings = {"max_new_tokens": self.sampling.max_new_tokens, "beams": self.sampling.beams}
        numbers = report(answers, references, [r.input for r in records], finishes, bootstrap=self.bootstrap)
        if self.predictions is not None:
            scores = rouge(answers, references)
            lines = [
                json.dumps(
                    {"prompt": prompt, "answer": answer, "finish": finish, "references": list(outputs)}
                    | {name: round(float(values[i]), 6) for name, values in scores.items()},
                    ensure_ascii=False,
                )
                for i, (prompt, answer, finish, outputs) in enumerate(zip(prompts, answers, finishes, references, strict=True))
            ]
            with writing("evaluation.predictions", self.predictions):
                write_atomic(self.predictions, "".join(line + "\n" for line in lines))
        return {"evaluation": "rouge"} | settings | numbers

    def describe(self, result: dict[str, Any]) -> str:
        """What `evaluate` gave, as text to print."""
        return describe(result)


def rouge(answers: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    """The F1 (N,) of each answer by "rouge1", "rouge2" and "rougeL".

    With several references the best one counts, as for SciTLDR (Cachola et al., "TLDR: Extreme Summarization of Scientific
    Documents", 2020), and for each measure by itself, as rouge-score has it. Raises UserError for an example without any.
    """
    from rouge_score.rouge_scorer import RougeScorer

    for i, texts in enumerate(references):
        if not texts:
            raise UserError(f"example {i + 1} has no reference to compare its answer with")
    scorer = RougeScorer(list(MEASURES), use_stemmer=True)
    scores = [scorer.score_multi(texts, answer) for answer, texts in zip(answers, references, strict=True)]
    return {name: np.array([row[name].fmeasure for row in scores]) for name in MEASURES}


def foreign(references: Sequence[Sequence[str]]) -> int:
    """How many examples have no reference with a letter from a to z or a digit; they are warned of."""
    count = sum(not any(re.search("[a-z0-9]", text.lower()) for text in texts) for texts in references)
    if count:
        log.warning("%d of %d examples have no reference in the letters a to z: ROUGE is 0 for them", count, len(references))
    return count


def report(
    answers: Sequence[str],
    references: Sequence[Sequence[str]],
    sources: Sequence[str | Sequence[str]],
    finishes: Sequence[str],
    *,
    bootstrap: int = 1000,
    seed: int = 1,
) -> dict[str, Any]:
    """All that is told of N answers, with 95 % intervals of the means over examples from `bootstrap` resamples of them.

    A source is a text or a list of its sentences. A number with its interval is {"value", "low", "high"}.

    examples
    systems             "model", and "lead-1" and "lead-3", the source's first sentences: of each rouge1, rouge2, rougeL
                        (mean F1) and words (mean number). The leads are left out if an example has no source
    references          mean number a example, and mean words of all of them
    length_ratio        words of the answers by words of the references; None if these have none
    empty               share of answers without a word
    cut_short           share that ended because max_new_tokens or the context was reached
    foreign             examples none of whose references has a letter from a to z or a digit, which ROUGE cannot score
    bootstrap           resamples
    """
    if not answers:
        raise ValueError("there are no answers to measure")
    systems = {"model": list(answers)}
    if all(map(sentences, sources)):
        systems |= {f"lead-{n}": [lead(source, n) for source in sources] for n in (1, 3)}
    words, reference_words = _mean_words(answers), _mean_words([text for texts in references for text in texts])
    return {
        "examples": len(answers),
        "systems": {name: _measured(texts, references, bootstrap, seed) for name, texts in systems.items()},
        "references": {"number": sum(map(len, references)) / len(references), "words": reference_words},
        "length_ratio": words / reference_words if reference_words else None,
        "empty": sum(not answer.split() for answer in answers) / len(answers),
        "cut_short": sum(finish in _CUT_SHORT for finish in finishes) / len(answers),
        "foreign": foreign(references),
        "bootstrap": bootstrap,
    }


def describe(report: dict[str, Any]) -> str:
    """A report as a table of text."""
    rows = [[f"{report['examples']:,} examples", *MEASURES.values(), "words"]]
    for name, measured in report["systems"].items():
        rows.append([name, *(score(measured[measure]) for measure in MEASURES), f"{measured['words']:.1f}"])
    number = report["references"]["number"]
    rows.append(["reference" if number == 1 else "references", "", "", "", f"{report['references']['words']:.1f}"])
    lines = [table(rows), ""]
    if report["length_ratio"] is not None:
        lines.append(f"Answers have {report['length_ratio']:.2f} times the words of the references.")
    lines.append(f"{report['empty']:.1%} of the answers are empty, {report['cut_short']:.1%} were cut off by their length.")
    if len(report["systems"]) == 1:
        lines.append("Without the leads: not every example has a source.")
    else:
        lines.append(_verdict(report["systems"]))
    how = f", with 95 % intervals of {report['bootstrap']:,} resamples" if report["bootstrap"] else ""
    several = f" {number:.1f} references an example: the best one counts, for each measure by itself." if number != 1 else ""
    return "\n".join([*lines, "", f"Mean F1 of stemmed words (rouge-score){how}.{several}"])


def sentences(source: str | Sequence[str]) -> list[str]:
    """The sentences of a source: its own where it is a list of them, else those that a simple rule finds.

    A sentence ends at a line's end, and at . ! or ? (and quotes or brackets that close after it) before white space and
    a capital letter or a digit, unless the dot belongs to an initial ("J.") or a common abbreviation ("e.g.", "Dr.", "al.").
    """
    if not isinstance(source, str):
        return [text.strip() for text in source if text.strip()]
    found, start = [], 0
    for end in _SENTENCE_END.finditer(source):
        within = (end[1] or "").islower() or _ABBREVIATION.search(source[start : end.start()])
        if end[0].startswith("\n") or not within:
            found.append(source[start : end.end()].strip())
            start = end.end()
    return [text for text in [*found, source[start:].strip()] if text]


def lead(source: str | Sequence[str], n: int) -> str:
    """The first n sentences of a source: a baseline that is hard to beat where texts begin with what matters."""
    return " ".join(sentences(source)[:n])


def _measured(answers: Sequence[str], references: Sequence[Sequence[str]], bootstrap: int, seed: int) -> dict[str, Any]:
    ones = np.ones(len(answers))
    scores = rouge(answers, references)
    means = {name: ratio(values, ones, samples=bootstrap, seed=seed) for name, values in scores.items()}
    return means | {"words": _mean_words(answers)}


def _mean_words(texts: Sequence[str]) -> float:
    return sum(len(text.split()) for text in texts) / len(texts)


def _verdict(systems: dict[str, Any]) -> str:
    """Who is ahead, said outright."""
    means = {name: measured["rougeL"]["value"] for name, measured in systems.items()}
    model = means.pop("model")
    best = max(means, key=means.get)
    if model == means[best]:
        return f"The model and {best} are level in ROUGE-L."
    if model > means[best]:
        return f"The model is ahead of {best} in ROUGE-L by {model - means[best]:.4f}."
    return f"{best} is ahead of the model in ROUGE-L by {means[best] - model:.4f}."
