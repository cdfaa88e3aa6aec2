"""Labelled texts for a classifier: a table on disk becomes checked rows in three splits.

The file comes from where SourceConfig says and is read whole: such tables are small. Every row is checked before
the first is used, and a file with faults is refused with the lines they are in. The rows go to the classifier's
task, their texts alone to a tokenizer that learns from them.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt2x.config.option import ConfigError, show
from gpt2x.data.config import SPLITS, table_format
from gpt2x.data.source import decode, shipped_or_fetched
from gpt2x.errors import UserError

log = logging.getLogger(__name__)
_QUOTING = {"standard": csv.QUOTE_MINIMAL, "none": csv.QUOTE_NONE}
_SHOWN = 5  # faulty rows of a kind that a message names


@dataclass(frozen=True)
class Row:
    """A text and its class, an index into the table's labels; `line` is where it begins in the file (Parquet: its row)."""

    text: str
    label: int
    line: int


class TableCorpus:
    """A table of labelled texts: see TableConfig for the settings. `cache` and `mirror` are folders, as in `fetch`."""

    def __init__(
        self,
        *,
        name: str,
        builtin: str | None,
        url: str | None,
        member: str | None,
        archive_sha256: str | None,
        file: str | None,
        sha256: str | None,
        path: str | None,
        format: str | None,
        columns: list[str] | None,
        quoting: str,
        text_column: str,
        label_column: str,
        labels: list[str] | None,
        balance: bool,
        split: str,
        split_seed: int,
        val_fraction: float,
        test_fraction: float,
        batch_size: int,
        eval_batch_size: int | None,
        drop_last: bool,
        shuffle: bool,
        cache: Path,
        mirror: Path | None = None,
    ):
        self.name = name
        self.batching = {
            "batch_size": batch_size,
            "eval_batch_size": eval_batch_size or batch_size,
            "drop_last": drop_last,
            "shuffle": shuffle,
        }
        if path is None:
            source = shipped_or_fetched(
                builtin=builtin,
                url=url,
                member=member,
                archive_sha256=archive_sha256,
                file=file,
                sha256=sha256,
                cache=cache,
                mirror=mirror,
            )
        else:
            source = Path(os.path.expanduser(path))
        kind = table_format(source.name, format)
        if kind == "parquet":
            read = _read_parquet(source)
        elif kind == "jsonl":
            read = read_jsonl(enumerate(_content(source).split("\n"), start=1))
        else:
            read = read_csv(_content(source), source, kind, quoting, columns)
        self.labels, rows = _checked(read, source, "row" if kind == "parquet" else "line", text_column, label_column, labels)
        self.about = {"labels": self.labels}
        if balance:
            rows = balanced(rows, split_seed)
        cut = cut_as_the_book if split == "book" else cut_stratified
        self.splits = cut(rows, val_fraction, test_fraction, split_seed)
        self._check_splits({"val": val_fraction, "test": test_fraction}, len(rows), source)
        held = {split: [[row.text, row.label] for row in rows] for split, rows in self.splits.items()}
        self.fingerprint = hashlib.sha256(json.dumps([self.labels, held]).encode()).hexdigest()

    def texts(self, *splits: str) -> Iterator[str]:
        """The texts of the splits (all without arguments), in order."""
        for split in splits or SPLITS:
            for row in self.splits[split]:
                yield row.text

    def __str__(self) -> str:
        splits = " + ".join(f"{len(rows):,} {split}" for split, rows in self.splits.items() if rows)
        counts = Counter(row.label for rows in self.splits.values() for row in rows)
        shown = [f"{label} {counts[i]:,}" for i, label in enumerate(self.labels[:8])]
        more = [f"{len(self.labels) - 8} more"] if len(self.labels) > 8 else []
        return f"{self.name}: {splits} rows, {len(self.labels)} classes ({', '.join([*shown, *more])})"

    def _check_splits(self, fractions: dict[str, float], n_rows: int, source: Path) -> None:
        """Refuse splits that cannot be used; warn of those that measure too little."""
        held = {split: {row.label for row in rows} for split, rows in self.splits.items()}
        lacking = [label for i, label in enumerate(self.labels) if i not in held["train"]]
        if lacking:
            raise UserError(
                f"{source}: no row of the training split has the label {', '.join(lacking)}\n"
                f"  Add rows of it, or hold out smaller fractions."
            )
        for split, fraction in fractions.items():
            if fraction and not held[split]:
                raise UserError(
                    f"{source}: {n_rows} rows in {len(self.labels)} classes are too few: "
                    f"with data.{split}_fraction={fraction} the {split} split is empty\n"
                    f"  Add rows, or set a larger fraction, or 0 to do without the split."
                )
            missing = [label for i, label in enumerate(self.labels) if i not in held[split]] if fraction else []
            if missing:
                log.warning("%s: the %s split has no row with the label %s", self.name, split, ", ".join(missing))


# -- reading: each gives the rows as (line, {column: value}) or as (line, what is wrong with it) -----------------


def read_csv(
    text: str, path: Path, kind: str = "csv", quoting: str | None = None, columns: list[str] | None = None
) -> Iterator[tuple[int, dict | str]]:
    """Rows of the text of a CSV or TSV (`kind`), split as pandas splits them, but "NA" or "none" is a text; blank lines are
    passed over. `path` is for messages; `quoting` None is the standard's, where there is no setting to mend it with.
    """
    dialect: dict[str, Any] = dict(delimiter="," if kind == "csv" else "\t", quoting=_QUOTING[quoting or "standard"])
    remedy = "" if quoting is None else "data.quoting=none takes quotes as they are"
    strict = csv.reader(io.StringIO(text, newline=""), strict=True, **dialect)
    try:
        for _ in strict:
            pass
    except csv.Error as error:
        log.warning(
            "%s: the quotes that end in line %d are not what CSV wants (%s), and lines may have been joined%s",
            path,
            strict.line_num,
            error,
            remedy and f"; {remedy}",
        )
    reader = csv.reader(io.StringIO(text, newline=""), **dialect)
    begin = 1
    try:
        for fields in reader:
            line, begin = begin, reader.line_num + 1
            if not fields:
                continue
            if columns is None:
                columns = [field.strip() for field in fields]
                twice = [column for column, n in Counter(columns).items() if n > 1]
                if twice:
                    raise UserError(f"{path}: the header names a column twice: {', '.join(twice)}\n  Rename one of them.")
            elif len(fields) != len(columns):
                yield line, f"{len(fields)} fields instead of {len(columns)} (a text that holds the separator needs quotes)"
            else:
                yield line, dict(zip(columns, fields))
    except csv.Error as error:
        raise UserError(
            f"{path}: line {begin} cannot be read: {error}\n"
            f"  If a quote there is never closed, close it{remedy and f', or {remedy}'}."
        ) from error


def _content(path: Path) -> str:
    """The text of a file, without the mark (BOM) that spreadsheets put in front."""
    try:
        return decode(path.read_bytes(), path).removeprefix("\ufeff")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def read_jsonl(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, dict | str]]:
    """Rows of numbered lines, each of which holds one JSON object; blank ones are passed over."""
    for line, text in lines:
        if not text.strip():
            continue
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            yield line, f"no JSON ({error})"
        else:
            yield line, value if isinstance(value, dict) else "no JSON object, such as {...}"


def _read_parquet(path: Path) -> Iterator[tuple[int, dict | str]]:
    """Rows of a Parquet file, counted from 1."""
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(path) as file:
            batches = [batch.to_pylist() for batch in file.iter_batches()]
    except (ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read as Parquet: {error}\n  Is data.format right?") from error
    return iter(enumerate(itertools.chain.from_iterable(batches), start=1))


def _checked(
    read: Iterator[tuple[int, dict | str]],
    path: Path,
    unit: str,
    text_column: str,
    label_column: str,
    labels: list[str] | None,
) -> tuple[list[str], list[Row]]:
    """The labels in the order of their classes and the rows, or one error that names every kind of fault in the file."""
    found: list[tuple[int, str, str]] = []
    faults: dict[str, list[str]] = defaultdict(list)
    known: dict[str, None] = {}  # columns, in the order in which they are met
    for line, row in read:
        if isinstance(row, str):
            faults["cannot be read"].append(f"{unit} {line}: {row}")
            continue
        known |= dict.fromkeys(row)
        text, label = row.get(text_column), _label(row.get(label_column))
        check_text(text, f"{unit} {line}", faults)
        if label is None:
            faults["have no label, which is text or a whole number"].append(f"{unit} {line}")
        elif labels is not None and label not in labels:
            faults[f"have a label that data.labels=[{','.join(labels)}] does not name"].append(f"{unit} {line}: {label}")
        found.append((line, text, label))
    for key, column in (("data.text_column", text_column), ("data.label_column", label_column)):
        if known and column not in known:
            remedy = "name one of them; where the file has no header line, name its columns: data.columns=[...]"
            raise ConfigError(key, column, f"{path} has no such column; it has {show(list(known))}", remedy)
    refuse(path, faults)
    if not found:
        raise UserError(f"{path}: the table is empty: it has no row with a text and a label")
    names = labels or sorted({label for _, _, label in found}, key=_order)
    if len({label for _, _, label in found}) < 2:
        raise UserError(f"{path}: every row has the label {found[0][2]}; a classifier needs rows of two classes or more")
    classes = {label: i for i, label in enumerate(names)}
    rows = [Row(text, classes[label], line) for line, text, label in found]
    _warn_of_contradictions(rows, names, path, unit)
    return names, rows


def check_text(text: Any, where: str, faults: dict[str, list[str]]) -> None:
    """Add to `faults` (what rows do -> where those are that do it) what is wrong with the text of the row at `where`."""
    if text is None:
        faults["have no text"].append(where)
    elif not isinstance(text, str):
        faults["have something else than a text"].append(f"{where}: {type(text).__name__}")
    elif not text.strip():
        faults["have an empty text"].append(where)
    elif not _encodable(text):
        faults["have a text with half a character (a lone surrogate)"].append(where)


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def refuse(path: Path | str, faults: dict[str, list[str]]) -> None:
    """Raise UserError if there are faults."""
    if not faults:
        return
    n = sum(map(len, faults.values()))
    lines = [f"{path}: {n:,} {'fault' if n == 1 else 'faults'}; mend the rows, or take them out of the file"]
    for fault, where in faults.items():
        more = f", and {len(where) - _SHOWN:,} more" if len(where) > _SHOWN else ""
        lines.append(f"  {len(where):,} {fault}: {', '.join(where[:_SHOWN])}{more}")
    raise UserError("\n".join(lines))


def _label(value: Any) -> str | None:
    """A label as text, None where there is none."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():  # whole numbers beside a missing one
        value = int(value)
    return str(value).strip() or None if isinstance(value, (str, int)) else None


def _order(label: str) -> tuple[int, str]:
    """Sorts texts as texts, and whole numbers before them by their value."""
    return (int(label), "") if label.isascii() and label.isdigit() else (1 << 62, label)


def _warn_of_contradictions(rows: list[Row], labels: list[str], path: Path, unit: str) -> None:
    """Such rows are kept: which of the labels is right is not known here."""
    groups = [group for group in _same_text(rows) if len({row.label for row in group}) > 1]
    if groups:
        shown = ["; ".join(f"{unit} {row.line}: {labels[row.label]}" for row in group[:_SHOWN]) for group in groups[:_SHOWN]]
        log.warning("%s: %d texts have several labels (%s)", path, len(groups), " | ".join(shown))


# -- splitting ----------------------------------------------------------------------------------------------


def balanced(rows: list[Row], seed: int) -> list[Row]:
    """As many rows of each class as the smallest has, class by class; of a larger one those that `seed` draws.

    With two classes and the seed 123 these are the rows of "Build a Large Language Model (From Scratch)", chapter 6
    (Raschka, 2024), in its order: both draw with pandas.
    """
    import pandas

    classes: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        classes[row.label].append(row)
    smallest = min(map(len, classes.values()))
    kept = []
    for _, group in sorted(classes.items()):
        places = pandas.Series(range(len(group)))
        kept += [group[i] for i in (places.sample(smallest, random_state=seed) if len(group) > smallest else places)]
    return kept


def cut_as_the_book(rows: list[Row], val_fraction: float, test_fraction: float, seed: int) -> dict[str, list[Row]]:
    """All rows shuffled, then cut by position: training first, then validation, then test (the book, chapter 6)."""
    import pandas

    shuffled = [rows[i] for i in pandas.Series(range(len(rows))).sample(frac=1, random_state=seed)]
    n_train = int(len(rows) * (1 - val_fraction - test_fraction) + 1e-6)
    n_val = int(len(rows) * val_fraction + 1e-6) if test_fraction else len(rows) - n_train
    return dict(zip(SPLITS, (shuffled[:n_train], shuffled[n_train : n_train + n_val], shuffled[n_train + n_val :])))


def cut_stratified(rows: list[Row], val_fraction: float, test_fraction: float, seed: int) -> dict[str, list[Row]]:
    """Of each class the same shares, rounded down for validation and test; the order of the rows is kept.

    Rows of one text, white space around it aside, go to the same split, so that no test row was seen in training;
    they count for the class of the first. Groups are drawn in a random order; each goes to validation, else to test,
    where all of it still fits, else to training.
    """
    groups: dict[int, list[list[Row]]] = defaultdict(list)
    for group in _same_text(rows):
        groups[group[0].label].append(group)
    sizes = Counter(row.label for row in rows)
    chosen: dict[int, str] = {}  # line -> split
    for label, members in sorted(groups.items()):
        room = {"val": int(sizes[label] * val_fraction + 1e-6), "test": int(sizes[label] * test_fraction + 1e-6)}
        for place in np.random.default_rng([seed, label]).permutation(len(members)):
            group = members[place]
            split = next((split for split, left in room.items() if len(group) <= left), "train")
            if split != "train":
                room[split] -= len(group)
            chosen |= {row.line: split for row in group}
    return {split: [row for row in rows if chosen[row.line] == split] for split in SPLITS}


def _same_text(rows: list[Row]) -> list[list[Row]]:
    """The rows grouped by their text, white space around it aside, in the order of the first of each group."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.text.strip()].append(row)
    return list(groups.values())
