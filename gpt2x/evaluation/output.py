"""What an evaluation shows and writes: tables of plain text, tables in files, and files that may be impossible to write."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from gpt2x.errors import UserError
from gpt2x.files import write_atomic


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells in aligned columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def number(value: float | None, places: int = 4) -> str:
    """So many decimals; "-" for what is not defined."""
    return "-" if value is None else f"{value:.{places}f}"


def score(measured: dict[str, float | None], places: int = 4) -> str:
    """A value with its interval, where it has one: "0.9120 (0.8911 to 0.9293)"."""
    if measured["low"] is None:
        return number(measured["value"], places)
    return "{} ({} to {})".format(*(number(measured[end], places) for end in ("value", "low", "high")))


def cut(text: str, width: int = 24) -> str:
    """A label on one line, shortened to `width` characters."""
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 3] + "..."


@contextlib.contextmanager
def writing(setting: str, path: str) -> Iterator[None]:
    """Say which setting named the file, where the block cannot write it."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{setting}={path}: cannot be written ({error.strerror})") from error


def add_row(path: str, row: dict[str, object]) -> None:
    """Add a row to the CSV file `path`, which is there or not; several processes may do so at the same time.

    The file has the columns of all of its rows, and an empty cell where a row has none of them.
    Raises UserError for a file that is no such table, in which the row's first column is missing, and OSError.
    """
    from filelock import FileLock

    folder, name = Path(path).parent, Path(path).name
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{name}.lock"):
        columns, rows = read_rows(path, next(iter(row)))
        text = io.StringIO()
        writer = csv.DictWriter(text, [*columns, *(name for name in row if name not in columns)], lineterminator="\n")
        writer.writeheader()
        writer.writerows([*rows, row])
        write_atomic(path, text.getvalue())


def read_rows(path: str, first: str) -> tuple[list[str], list[dict[str, str]]]:
    """The columns and the rows of a CSV file; none of a file that is not there, or empty.

    Raises UserError if it is another file than one that add_row writes: one without the column `first`.
    """
    if not Path(path).exists():
        return [], []
    try:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            rows, columns = list(reader), list(reader.fieldnames or [])
    except (csv.Error, UnicodeDecodeError):
        columns = [""]
    if columns and first not in columns:
        raise UserError(f"{path}: this is no table of evaluations, which has a column {first!r}; name another file")
    return columns, rows
