"""Answers judged: what each is worth, or which of two is better, with all that was said written to a folder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2x.errors import UserError
from gpt2x.evaluation.answering import Answerer, answered
from gpt2x.evaluation.judge import comparison, report
from gpt2x.evaluation.judge.answers import Answer, json_lines, partners, read_answers, to_lines
from gpt2x.evaluation.judge.items import ITEMS_FILE
from gpt2x.evaluation.judge.judging import Judge, Outcome
from gpt2x.evaluation.judge.questions import TRIAL, Question
from gpt2x.evaluation.output import writing
from gpt2x.files import shown, write_atomic
from gpt2x.generation.config import SamplingConfig

log = logging.getLogger(__name__)

PLOT = "judged.png"
ITEMS = {"answers": ITEMS_FILE, "against": "items_against.jsonl"}


@dataclass(frozen=True)
class Answering:
    """A model that answers: `prompt(instruction, input)` is what it is asked, `answer` gives what it makes of prompts, and
    `losses(prompts, references)` the nats and tokens of each reference under it, None where it cannot read one."""

    prompt: Callable[[str, str], str]
    answer: Answerer
    losses: Callable[[Sequence[str], Sequence[str]], list[tuple[float, int] | None]]


class Judgement:
    """A judge's view of answers; see JudgementConfig for the settings. `folder` is where the files go."""

    def __init__(
        self,
        judge: Judge,
        *,
        mode: str | None,
        max_examples: int | None,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        batch_size: int,
        answer_field: str | None,
        against_field: str | None,
        on_failure: str,
        bootstrap: int,
        folder: str,
    ):
        self.judge, self.mode, self.max_examples = judge, mode, max_examples
        self.sampling = SamplingConfig(max_new_tokens=max_new_tokens, temperature=temperature)
        self.seed, self.batch_size = seed, batch_size
        self.fields = {"answers": answer_field, "against": against_field}
        self.on_failure, self.bootstrap, self.folder = on_failure, bootstrap, Path(folder)

    def read(self, path: str, setting: str) -> list[Answer]:
        """The answers in a file that the `setting` "answers" or "against" names."""
        found = read_answers(path, setting, self.fields[setting])
        return found[: self.max_examples] if setting == "answers" else found

    def answer(self, model: Answering, asked: Sequence[Answer], setting: str) -> list[Answer]:
        """The model's own answers to what `asked` are answers to, kept in a file of the folder before anything is judged."""
        prompts = [model.prompt(question.instruction, question.input) for question in asked]
        made = answered(prompts, model.answer, self.sampling, batch_size=self.batch_size, seed=self.seed)
        losses = model.losses(prompts, [question.reference for question in asked])
        answers = [
            Answer(q.id, q.instruction, q.input, q.reference, text, finish, *(loss or (None, None)))
            for q, (text, finish), loss in zip(asked, made, losses, strict=True)
        ]
        self._write(f"{setting}.jsonl", to_lines(answers))
        return answers

    def evaluate(self, answers: Sequence[Answer], against: Sequence[Answer] | None = None) -> dict[str, Any]:
        """The report (report.py), and all that was said in files of the folder. `against` are other answers to the same, in
        any order.

        Raises UserError where no answer can be judged, at all or any more; what was judged until then is kept for the next
        time.
        """
        others = None if against is None else partners(answers, against)
        mode = self.mode or ("absolute" if others is None else "pairwise")
        settings = {"on_failure": self.on_failure, "bootstrap": self.bootstrap}
        about = {"evaluation": "judge", "mode": mode, "folder": shown(self.folder)}
        if mode == "pairwise":
            items = self._pairs(answers, others)
            self._write(ITEMS["answers"], json_lines(items))
            report.plot(items, self.folder / PLOT, title=self.judge.name)
            return about | report.summarise(items, **settings)
        items, *rest = self._scored([answers] if others is None else [answers, others])
        self._write(ITEMS["answers"], json_lines(items))
        report.plot(items, self.folder / PLOT, title=self.judge.name)
        for others in rest:
            self._write(ITEMS["against"], json_lines(others))
        return about | comparison.summarise_both(items, *rest, **settings)

    def describe(self, numbers: dict[str, Any]) -> str:
        """What `evaluate` gave, as text to print."""
        return comparison.describe_both(numbers)

    def _scored(self, sides: Sequence[Sequence[Answer]]) -> list[list[dict[str, Any]]]:
        """The items of each side; both are paired by the ids of the first."""
        asking = self.judge.asking
        flat = [(first.id, answer) for side in sides for first, answer in zip(sides[0], side, strict=True)]
        outcomes = self._ask([asking.absolute(answer) for _, answer in flat], asking.absolute(TRIAL))
        items = []
        for (id, answer), outcome in zip(flat, outcomes, strict=True):
            verdict = outcome.verdict or {"score": None, "reason": None}
            known = {name: getattr(answer, name) for name in ("reference_nats", "reference_tokens", "given")}
            if answer.given_scale not in (None, str(list(asking.ends))):
                known["given"] = None  # a score on another scale is none to agree with
            items.append(
                {"id": id, "prompt": asking.prompt(answer)}
                | {name: getattr(answer, name) for name in ("instruction", "input", "reference", "answer", "finish")}
                | {name: value for name, value in known.items() if value is not None}
                | {"score": verdict["score"], "scale": list(asking.ends), "reason": verdict["reason"]}
                | outcome.row
                | {"judge": self.judge.name}
            )
        n = len(sides[0])
        return [items[start : start + n] for start in range(0, len(items), n)]

    def _pairs(self, answers: Sequence[Answer], others: Sequence[Answer]) -> list[dict[str, Any]]:
        """The items of pairs, of which each is asked about in both orders."""
        asking, questions = self.judge.asking, []
        for a, b in zip(answers, others, strict=True):
            questions += [asking.pairwise(a, a.answer, b.answer), asking.pairwise(a, b.answer, a.answer)]
        outcomes = self._ask(questions, asking.pairwise(TRIAL, TRIAL.answer, "The sum is 5."))
        items = []
        for i, (a, b) in enumerate(zip(answers, others, strict=True)):
            orders = []
            for first, outcome in zip("ab", outcomes[2 * i : 2 * i + 2], strict=True):
                verdict = outcome.verdict or {"winner": None, "reason": None}
                orders.append({"first": first, "winner": verdict["winner"], "reason": verdict["reason"]} | outcome.row)
            items.append(
                {"id": a.id, "prompt": asking.prompt(a)}
                | {name: getattr(a, name) for name in ("instruction", "input", "reference")}
                | {"answer_a": a.answer, "answer_b": b.answer, "verdict": report.statistics.verdict(orders), "orders": orders}
                | {"judge": self.judge.name}
            )
        return items

    def _ask(self, questions: Sequence[Question], trial: Question) -> list[Outcome]:
        from tqdm import tqdm

        outcomes: dict[int, Outcome] = {}
        failed = 0
        try:
            with tqdm(total=len(questions), unit="verdict", desc="judging", disable=None) as bar:
                for i, outcome in self.judge.judge(questions, trial):
                    outcomes[i] = outcome
                    failed += outcome.verdict is None
                    bar.set_postfix({"failed": failed} if failed else {}, refresh=False)
                    bar.update()
        except (KeyboardInterrupt, SystemExit, UserError):
            if n := sum(outcome.verdict is not None for outcome in outcomes.values()):
                log.warning("%s of %s verdicts are there and kept: the same command goes on", f"{n:,}", f"{len(questions):,}")
            raise
        if all(outcome.verdict is None for outcome in outcomes.values()):
            raise UserError(f"the judge {self.judge.name} gave not a single verdict; the first problem: {outcomes[0].error}")
        return [outcomes[i] for i in range(len(questions))]

    def _write(self, name: str, text: str) -> None:
        with writing("evaluation.folder", str(self.folder)):
            write_atomic(self.folder / name, text)
