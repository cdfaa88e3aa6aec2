"""Answers to be judged: what a model made of instructions, from a file, or from a run (gpt2x/evaluation/run.py)."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpt2x.data.instructions import objects, text_of
from gpt2x.errors import UserError
from gpt2x.files import shown

ANSWER_FIELDS = ("model_response", "answer", "text")  # the book's files, ours, and what gpt2x-generate writes
_REFERENCE_FIELDS = ("output", "reference")


@dataclass(frozen=True)
class Answer:
    """One answer: to which instruction, about which input, and what it should have been ("" where that is not known).

    id                                  its own, or where it stands in its file
    finish                              why it ended, in the words of `Completion.finish`, where that is known
    reference_nats, reference_tokens    the reference's loss under the model that answered, where that is known
    given                               a score that it has already, of somebody else: of the judge, where it was judged
    given_scale                         that score's scale, such as "[1, 5]", where that is known
    """

    id: str | int
    instruction: str
    input: str
    reference: str
    answer: str
    finish: str | None = None
    reference_nats: float | None = None
    reference_tokens: int | None = None
    given: float | None = None
    given_scale: str | None = None


def json_lines(rows: Iterable[dict[str, Any]]) -> str:
    """Objects as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_answers(path: str, setting: str, field: str | None = None) -> list[Answer]:
    """The answers in a file, a JSON list of objects or JSON lines; `setting` is the one that named it, for messages.

    An object holds instruction, maybe input, output (or reference), id and finish, and the answer, under the key `field`,
    or the first of ANSWER_FIELDS that is there. What has a score already, such as an item judged by another judge, keeps it
    as `given`. Raises UserError with the place of the first one that cannot be used.
    """
    file = Path(os.path.expanduser(path))
    unit, found = objects(file)
    if not found:
        raise UserError(f"{setting}={path}: the list holds no answer")
    answers, seen = [], {}
    for line, value in found:
        try:
            answers.append(_answer(value, line, field))
        except ValueError as error:
            raise UserError(f"{setting}={path}: {shown(file)}, {unit} {line:,}: {error}") from None
        if (first := seen.setdefault(answers[-1].id, line)) != line:
            problem = f"the id {answers[-1].id!r} is that of {unit} {first:,} too"
            raise UserError(f"{setting}={path}: {shown(file)}, {unit} {line:,}: {problem}")
    return answers


def to_lines(answers: Sequence[Answer]) -> str:
    """Answers as JSON lines, which `read_answers` reads back."""
    return json_lines({name: value for name, value in asdict(answer).items() if value is not None} for answer in answers)


def partners(answers: Sequence[Answer], others: Sequence[Answer]) -> list[Answer]:
    """For each answer the one among `others` to the same instruction and input, in their order where there are several.

    Raises UserError where one has none.
    """
    waiting = defaultdict(list)
    for other in reversed(others):
        waiting[other.instruction, other.input].append(other)
    found = [waiting[a.instruction, a.input].pop() if waiting[a.instruction, a.input] else None for a in answers]
    if missing := [a for a, other in zip(answers, found) if other is None]:
        problem = f"{len(missing):,} of {len(answers):,} answers have no counterpart, the first of them id {missing[0].id}"
        raise UserError(f"against: {problem}\n  Both must answer the same instructions about the same inputs.")
    return found


def _answer(found: Any, line: int, field: str | None) -> Answer:
    if not isinstance(found, dict):
        raise ValueError("this is no object of named fields")
    key = next((name for name in ANSWER_FIELDS if name in found), None) if field is None else field
    if key is None or key not in found:
        wanted = " or ".join(ANSWER_FIELDS) if field is None else repr(field)
        raise ValueError(f"there is no field {wanted}\n  the fields here: {', '.join(found) or 'none'}; see answer_field")
    if "instruction" not in found:
        raise ValueError(f"there is no field 'instruction'\n  the fields here: {', '.join(found)}")
    reference = next((found[name] for name in _REFERENCE_FIELDS if name in found), None)
    if isinstance(reference, list):  # several that are all right: the first one stands for them, as it does in training
        reference = reference[0] if reference else None
    id, finish = found.get("id", line), found.get("finish")
    if isinstance(id, bool) or not isinstance(id, (str, int)):
        raise ValueError("the field 'id' holds neither text nor a whole number")
    return Answer(
        id=id,
        instruction=text_of(found["instruction"], "instruction"),
        input=text_of(found.get("input") or "", "input"),
        reference=text_of(reference or "", "output"),
        answer=text_of(found[key], key),
        finish=None if finish is None else text_of(finish, "finish"),
        reference_nats=_number(found.get("reference_nats")),
        reference_tokens=_number(found.get("reference_tokens")),
        given=_number(found.get("score") if "judge" in found else found.get("given", found.get("score"))),
        given_scale=None if (scale := found.get("given_scale", found.get("scale"))) is None else str(scale),
    )


def _number(value: Any) -> Any:
    """A number as it is; None for anything else, which is not needed."""
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
