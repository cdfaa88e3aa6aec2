"""Classifying: what a classifier predicts of a text, of what is typed, or of each row of a table.

Texts are lines (prompts.py) or rows (data/table.py); a table goes out again with columns more, through output.py.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from gpt2x.config.option import ConfigError, show
from gpt2x.data.config import table_format
from gpt2x.data.source import decode
from gpt2x.data.table import check_text, read_csv, read_jsonl, refuse
from gpt2x.errors import UserError
from gpt2x.generation.output import write_to_stdout
from gpt2x.generation.prompts import called, read_bytes, read_lines
from gpt2x.generation.session import Session

if TYPE_CHECKING:
    import numpy as np

_POOL = 16  # batches whose texts are predicted, in the order of their lengths, and then written


@dataclass(frozen=True)
class Item:
    """A text, the line it begins in, and all columns of its row."""

    text: str
    line: int
    columns: dict[str, Any]


def read_items(path: str, text_column: str) -> list[Item]:
    """The rows of a table (*.csv, *.tsv, *.jsonl), or the lines of any other file or of the standard input ("-"), which
    holds JSON lines if it begins with "{". At least one.

    Raises ConfigError if there is no such column, and UserError that names the lines of the rows that cannot be used.
    """
    name, items, known, faults = called(path), [], {}, defaultdict(list)
    for line, row in _rows(path, text_column):
        where = f"line {line}"
        if isinstance(row, str):
            faults["cannot be read"].append(f"{where}: {row}")
            continue
        known |= dict.fromkeys(row)
        check_text(row.get(text_column), where, faults)
        items.append(Item(row.get(text_column), line, row))
    if known and text_column not in known:
        remedy = "name the one with the texts: text_column=..."
        raise ConfigError("text_column", text_column, f"{name} has no such column; it has {show(list(known))}", remedy)
    refuse(name, faults)
    if not items:
        raise UserError(f"{name}: the table has no row")
    return items


def _rows(path: str, text_column: str) -> Iterator[tuple[int, dict | str]]:
    """Each row by its columns, or what is wrong with it, and the line it begins in."""
    kind = table_format(path, None)
    if kind == "parquet":
        raise UserError(f"prompt_file={path}: Parquet is not read here; save the table as CSV or JSON lines")
    if kind in ("csv", "tsv"):
        return read_csv(decode(read_bytes(path), Path(path)).removeprefix("\ufeff"), Path(path), kind)
    lines = read_lines(path)
    if kind == "jsonl" or (path == "-" and lines[0][1].startswith("{")):
        return read_jsonl(lines)
    return ((number, {text_column: line}) for number, line in lines)


def predictions(
    predict: Callable[[list[str]], np.ndarray], items: Sequence[Item], *, batch_size: int, show_progress: bool
) -> Iterator[tuple[Item, np.ndarray]]:
    """Each item, in order, with the probabilities (classes,) that `predict` gives for its text."""
    from tqdm import tqdm

    size = _POOL * batch_size
    with tqdm(total=len(items), unit="text", desc="classifying", disable=None if show_progress else True, delay=1) as bar:
        for i in range(0, len(items), size):
            pool = items[i : i + size]
            yield from zip(pool, predict([item.text for item in pool]), strict=True)
            bar.update(len(pool))


def writer(
    format: str, write: Callable[[str], None], items: Sequence[Item], labels: Sequence[str]
) -> Callable[[Item, np.ndarray], None]:
    """A function that writes the prediction for one of `items`: see `describe` for text, of several items below each
    other after their lines' numbers; for "csv" and "jsonl" the columns of its row and those of `_told`.

    Raises UserError where a row has such a column already.
    """
    if format == "text":
        several = len(items) > 1
        return lambda item, p: write(f"{item.line}: " * several + describe(p, labels) + "\n")
    columns = list(dict.fromkeys(column for item in items for column in item.columns))
    added = list(_told([0.0] * len(labels), labels))
    if taken := [column for column in added if column in columns]:
        raise UserError(f"prompt_file: there is a column {taken[0]!r} already, which the predictions need\n  Rename it.")
    if format == "jsonl":
        return lambda item, p: write(json.dumps(item.columns | _told(p, labels), ensure_ascii=False) + "\n")
    # Written with "\r\n", for then a field that holds either is put between quotes; the lines end in "\n" all the same.
    lines = SimpleNamespace(write=lambda line: write(line.removesuffix("\r\n") + "\n"))
    table = csv.DictWriter(lines, [*columns, *added], restval="", lineterminator="\r\n")
    table.writeheader()
    return lambda item, p: table.writerow({k: _cell(v) for k, v in (item.columns | _told(p, labels)).items()})


def describe(probabilities: Sequence[float], labels: Sequence[str]) -> str:
    """All classes, likeliest first: "spam 97.3 %, ham 2.7 %"."""
    order = sorted(range(len(labels)), key=lambda i: -probabilities[i])
    return ", ".join(f"{labels[i]} {100 * probabilities[i]:.1f} %" for i in order)


def _told(probabilities: Sequence[float], labels: Sequence[str]) -> dict[str, Any]:
    """The columns of a prediction: the likeliest class, its probability, and those of all, to six digits."""
    rounded = [float(f"{p:.6g}") for p in probabilities]
    best = max(range(len(labels)), key=lambda i: probabilities[i])
    each = {f"probability {label}": p for label, p in zip(labels, rounded, strict=True)}
    return {"predicted": labels[best], "confidence": rounded[best], **each}


def _cell(value: Any) -> Any:
    """A value of a JSON object as a field of a CSV."""
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)


def classify_typed(predict: Callable[[list[str]], np.ndarray], labels: Sequence[str], history: Path | None) -> None:
    """Classify what is typed, until the input ends or /quit; see Session."""
    _Classifying(predict, labels).run(history)


class _Classifying(Session):
    greeting = "Type a text and the model says what it is. /help tells more; Ctrl-D leaves."

    def __init__(self, predict: Callable[[list[str]], np.ndarray], labels: Sequence[str]):
        super().__init__()
        self.predict, self.labels = predict, labels

    def begin(self, text: str) -> None:
        if not text.strip():
            raise UserError("there is nothing in it to classify")
        write_to_stdout(describe(self.predict([text])[0], self.labels) + "\n")
