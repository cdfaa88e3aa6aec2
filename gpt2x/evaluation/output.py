"""What an evaluation shows and writes: tables of plain text, and files that may be impossible to write."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from gpt2x.errors import UserError


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells in aligned columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def number(value: float | None) -> str:
    """Four decimals; "-" for what is not defined."""
    return "-" if value is None else f"{value:.4f}"


def score(measured: dict[str, float | None]) -> str:
    """A value with its interval, where it has one: "0.9120 (0.8911 to 0.9293)"."""
    if measured["low"] is None:
        return number(measured["value"])
    return f"{measured['value']:.4f} ({measured['low']:.4f} to {measured['high']:.4f})"


def cut(text: str, width: int = 24) -> str:
    """A label on one line, shortened to `width` characters."""
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 3] + "..."


@contextlib.contextmanager
def writing(setting: str, path: str) -> Iterator[None]:
    """Say which setting of the evaluation named the file, where the block cannot write it."""
    try:
        yield
    except OSError as error:
        raise UserError(f"evaluation.{setting}={path}: cannot be written ({error.strerror})") from error
