"""What came of a sweep: the result.json of each of its runs as a table, the best one first."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2x.files import shown, write_atomic
from gpt2x.tracking.console import clock
from gpt2x.tracking.result import read_result, status_of

_FIGURES = ("status", "metric", "step", "minutes")
_MORE = ("folder", "steps", "tokens", "seconds", "error")
_NARROW, _GAP = 8, "  "  # no column is cut to less


@dataclass
class Row:
    """One run of a sweep; `result` is the content of its result.json, or empty."""

    job: int
    folder: Path
    values: dict[str, str]
    status: str
    result: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    @property
    def metric(self) -> float | None:
        return (self.result.get("metric") or {}).get("value")

    @property
    def step(self) -> int | None:
        return (self.result.get("metric") or {}).get("step")


def read_rows(
    folder: Path, keys: Iterable[str], asked: Mapping[int, Mapping[str, str]] = {}, errors: Mapping[int, str] = {}
) -> list[Row]:
    """The runs in a sweep's folder and those that were `asked` for and have none: finished ones by their metric, lowest
    first, then the others by their numbers.

    Args:
        keys: what was swept.
        asked: job -> its values of these; of the other runs they are read from their overrides.txt.
        errors: job -> why it failed, where no result.json tells.
    """
    numbers = {int(path.name) for path in folder.iterdir() if path.name.isdecimal()} if folder.is_dir() else set()
    rows = [_row(folder / str(job), job, list(keys), asked.get(job), errors.get(job, "")) for job in sorted({*numbers, *asked})]
    return sorted(rows, key=lambda row: (row.status != "finished", row.status != "pruned", row.metric is None, row.metric or 0))


def _row(folder: Path, job: int, keys: list[str], values: Mapping[str, str] | None, error: str) -> Row:
    if values is None:
        values = dict(line.partition("=")[::2] for line in _text(folder / "overrides.txt").splitlines())
    values = {key: values[key] for key in keys if key in values}
    result = read_result(folder)
    if error and result.get("status") != "finished":
        status = "failed"
    else:
        status = status_of(folder, result) if result or (folder / "config.yaml").exists() else "not run"
    return Row(job, folder, values, status, result, error or result.get("error", ""))


def write_csv(path: Path, rows: list[Row], keys: Iterable[str]) -> None:
    """All of it as CSV; replaces `path` at once."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    keys = list(keys)
    writer.writerow(["job", *keys, *_FIGURES, *_MORE])
    for row in rows:
        result, seconds = row.result, row.result.get("seconds")
        values = [row.values.get(key) for key in keys]
        figures = [row.status, row.metric, row.step, None if seconds is None else round(seconds / 60, 2)]
        more = [str(row.folder), result.get("steps"), result.get("tokens"), seconds, row.error]
        writer.writerow([row.job, *values, *figures, *more])
    write_atomic(path, text.getvalue())


def table(rows: list[Row], keys: Iterable[str], width: int) -> str:
    """The rows as text of at most `width` columns; what is too long is cut where the most is."""
    keys = list(keys)
    names = {row.result["metric"]["name"] for row in rows if row.result.get("metric")}
    head = ["job", *keys, "status", names.pop() if len(names) == 1 else "metric", "at step", "minutes"]
    cells = [head]
    for row in rows:
        seconds = row.result.get("seconds")
        figures = [_figure(row.metric, ".4f"), _figure(row.step, ","), "" if seconds is None else clock(seconds)]
        cells.append([str(row.job), *(row.values.get(key, "") for key in keys), row.status, *figures])
    cells = [[" ".join(cell.split()) for cell in line] for line in cells]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    swept = range(1, 1 + len(keys))
    while keys and sum(widths) + len(_GAP) * (len(widths) - 1) > width:
        widest = max(swept, key=widths.__getitem__)
        if widths[widest] <= _NARROW:
            break
        widths[widest] -= 1
    lines = []
    for line in cells:
        cut = [_cut(cell, size) for cell, size in zip(line, widths, strict=True)]
        left = len(keys) + 2  # texts to the left, numbers to the right
        aligned = [cell.ljust(size) if 0 < i < left else cell.rjust(size) for i, (cell, size) in enumerate(zip(cut, widths))]
        lines.append(_GAP.join(aligned).rstrip())
    return "\n".join(lines)


def failures(rows: list[Row]) -> list[str]:
    """A line for each run that failed: why, and where more is told."""
    lines = []
    for row in rows:
        if row.status == "failed":
            first = (row.error.splitlines() or ["unknown"])[0]
            log = row.folder / "run.log"
            lines.append(f"run {row.job} failed: {first[:300]}" + (f" ({shown(log)})" if log.exists() else ""))
    return lines


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _cut(text: str, size: int) -> str:
    return text if len(text) <= size else f"{text[: size - 2]}.."


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
