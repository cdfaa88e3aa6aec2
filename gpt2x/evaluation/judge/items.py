"""Judged answers as the pipeline writes them: one dict an answer, a JSON object a line.

An item of an absolute judgement has a "score" on the "scale" [lowest, highest], 0 to 100 where it tells none, or, where the
judge failed, None and an "error"; one of a pairwise judgement has both "orders" (statistics.verdict). Items are taken in the
order of their ids, so that the order in which they were judged changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt2x.data.instructions import objects
from gpt2x.errors import UserError
from gpt2x.evaluation.judge import companions, statistics
from gpt2x.files import shown

Item = dict[str, Any]

SCALE = (0.0, 100.0)
ITEMS_FILE = "items.jsonl"
_LISTED = 10  # ids that a message names


def read_items(path: str | Path) -> list[Item]:
    """The items of a file, or of the run in a folder, or the scores of a JSON list of numbers, with null where there is none.

    Raises UserError where there are no such items.
    """
    path = Path(os.path.expanduser(path))
    if path.is_dir():
        folder, path = path, path / "judged" / ITEMS_FILE
        if not path.is_file():
            remedy = f"evaluation=judge evaluation.folder={shown(path.parent)} judges them"
            raise UserError(
                f"{shown(folder)}: the answers of this run are not judged yet (it has no judged/{ITEMS_FILE})\n  {remedy}"
            )
    unit, found = objects(path)
    items = []
    for line, value in found:
        if isinstance(value, dict) and ("score" in value or "orders" in value):
            items.append(value)
        elif unit == "record" and (value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))):
            items.append({"score": value})
        else:
            problem = "this is no judged answer: an object with a score, or with the orders of a pair"
            raise UserError(f"{shown(path)}: {unit} {line:,}: {problem}\n  The files of evaluation=judge have one a line.")
    return items


def ordered(items: Sequence[Item]) -> list[Item]:
    """Items by their ids, numbers first; as they are where one has none. Raises UserError if one is there twice, or none."""
    if not items:
        raise UserError("there are no judged answers")
    if not all("id" in item for item in items):
        return list(items)
    ids = [item["id"] for item in items]
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise UserError(f"the id {twice!r} stands for several judged answers, which cannot be told apart")
    return sorted(items, key=lambda item: (isinstance(item["id"], str), item["id"]))


def scale_of(*sides: Sequence[Item]) -> tuple[float, float]:
    """The lowest and the highest score that there is for all items. Raises UserError if some have other ones."""
    found = {tuple(map(float, item.get("scale") or SCALE)) for items in sides for item in items}
    if len(found) > 1:
        told = " and ".join(f"from {low:g} to {high:g}" for low, high in sorted(found))
        raise UserError(f"the scores are on several scales ({told}), and cannot be told of together")
    return found.pop()


def scores(items: Sequence[Item]) -> np.ndarray:
    """Scores (N,), NaN where the judge failed. Raises UserError for one that is not on the scale."""
    scale = scale_of(items)
    found = np.array([np.nan if item["score"] is None else item["score"] for item in items], dtype=float)
    for place in np.flatnonzero((found < scale[0]) | (found > scale[1])):
        which = f"item {items[place]['id']}" if "id" in items[place] else f"number {place + 1}"
        raise UserError(f"{which}: the score {found[place]:g} is not on the scale from {scale[0]:g} to {scale[1]:g}")
    return found


def failed(item: Item) -> bool:
    """Whether there is no score, or no verdict."""
    return statistics.verdict(item["orders"]) is None if "orders" in item else item["score"] is None


def error(item: Item) -> str:
    """Why the judge failed."""
    return next(filter(None, (request.get("error") for request in requests(item))), "no reason is known")


def requests(item: Item) -> list[dict[str, Any]]:
    """What was asked of the judge for an item: its two orders, or itself."""
    return item.get("orders", [item])


def judge(items: Sequence[Item]) -> str | None:
    """The judge of all items; None where it is not told. Raises UserError if there are several."""
    names = {item.get("judge") for item in items}
    if len(names) > 1:
        raise UserError(f"answers judged by several judges ({', '.join(sorted(map(str, names)))}) have no mean")
    return names.pop()


def lengths(items: Sequence[Item], answer: str = "answer") -> np.ndarray:
    """The words (N,) of each answer."""
    return np.array([len((item.get(answer) or "").split()) for item in items])


def have_answers(items: Sequence[Item]) -> bool:
    """Whether the answers are known, and not the scores alone."""
    return all(item.get("answer") is not None for item in items)


def parts(items: Sequence[Item], answer: str = "answer") -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What companions.parts gives of the items' answers. What is known of the loss of the reference, items have as
    "reference_nats" and "reference_tokens"."""
    losses = [(item["reference_nats"], item["reference_tokens"]) if item.get("reference_tokens") else None for item in items]
    texts = [[item.get(name) or "" for item in items] for name in (answer, "reference")]
    return companions.parts(*texts, [item.get("finish") for item in items], losses)


def listed(ids: Sequence[Any]) -> str:
    """The first ids of many, for a message: "3, 17, 46 and 4 more"."""
    more = len(ids) - _LISTED
    return ", ".join(map(str, ids[:_LISTED])) + (f" and {more:,} more" if more > 0 else "")
