"""What a run reports, and to whom: its own files always, other trackers beside them."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from gpt2x.errors import UserError
from gpt2x.files import write_atomic

_log = logging.getLogger(__name__)


class Tracker:
    """Takes what a run reports. This base ignores all of it."""

    def log(self, row: dict[str, Any]) -> None:
        """Take one row of numbers: "step" (int) and names such as "train/loss", "val/loss", "lr", "tokens"; and of tables
        of numbers, as mappings and lists, such as "val/confusion"."""

    def sample(self, row: dict[str, Any]) -> None:
        """Take one generated text: {"step": int, "prompt": str, "text": str}, maybe with "question" and "reference"."""

    def picture(self, path: Path) -> None:
        """Take a picture that lies in the run's folder."""

    def lines(self, path: Path) -> None:
        """Take a file of JSON lines that lies in the run's folder, a table of which each object is a row."""

    def finish(self, status: str, summary: dict[str, Any]) -> None:
        """Close. Called exactly once, and never raises. `status` is "finished", "failed" or "interrupted"."""


class NullTracker(Tracker):
    """No tracker beside the run's own files. Accepts, and ignores, what any other tracker is given."""

    def __init__(self, **settings: Any):
        pass


class RunFiles(Tracker):
    """The run's own files, the source of truth: metrics.jsonl and samples.jsonl, one JSON object a line.

    A number that is not finite is written as null: JSON has no NaN, and a string would make its column text.

    Each row goes to the operating system in one unbuffered write, so a killed process loses none. If one does not fit
    on the disk, what was written of it is taken back, so that the rows before it stay readable, and UserError is raised.

    Args:
        run_dir: the run's folder; made if it is missing.
        resume_step: the step of the checkpoint that the run goes on from. Rows of later steps, which will be made
            again, and a line torn by a crash are dropped, atomically. (So log a step's rows before its checkpoint.)
            None: a run from its beginning, which starts both files anew.
    """

    def __init__(self, run_dir: Path | str, resume_step: int | None = None):
        run_dir = Path(run_dir)
        run_dir.mkdir(parents=True, exist_ok=True)
        self._metrics, self._samples = (_open(run_dir / name, resume_step) for name in ("metrics.jsonl", "samples.jsonl"))

    def log(self, row: dict[str, Any]) -> None:
        _append(self._metrics, {key: _number(value) for key, value in row.items()})

    def sample(self, row: dict[str, Any]) -> None:
        _append(self._samples, row)

    def finish(self, status: str, summary: dict[str, Any]) -> None:
        for file in (self._metrics, self._samples):
            try:
                os.fsync(file.fileno())
            except OSError as error:
                if error.errno != errno.EINVAL:  # a pipe or a device has nothing to sync
                    _log.warning("%s may not be safe on the disk: %s", file.name, one_line(error))
            finally:
                file.close()


class Trackers(Tracker):
    """Tells each of several trackers, in their order; put the run's own files first.

    A tracker that raises is told no more and costs one warning, as a dashboard is no reason to stop a run. Only
    what `RunFiles` raises goes up: a run that cannot write its results must not go on.
    """

    def __init__(self, trackers: Iterable[Tracker]):
        self._all = list(trackers)
        self._live = list(self._all)

    def log(self, row: dict[str, Any]) -> None:
        self._tell("log", row)

    def sample(self, row: dict[str, Any]) -> None:
        self._tell("sample", row)

    def picture(self, path: Path) -> None:
        self._tell("picture", path)

    def lines(self, path: Path) -> None:
        self._tell("lines", path)

    def finish(self, status: str, summary: dict[str, Any]) -> None:
        for tracker in self._all:  # also those that failed: what they had taken until then may still be saved
            try:
                tracker.finish(status, summary)
            except Exception as error:
                _log.warning("%s did not finish: %s", type(tracker).__name__, one_line(error))

    def _tell(self, what: str, news: dict[str, Any] | Path) -> None:
        for tracker in list(self._live):
            try:
                getattr(tracker, what)(news)
            except Exception as error:
                if isinstance(tracker, RunFiles):
                    raise
                self._live.remove(tracker)
                _log.warning("%s is off from now on, the run is not: %s", type(tracker).__name__, one_line(error))


def read_metrics(run_dir: Path | str) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl; a number that was not finite is None.

    A torn last line (the run is being written, or was killed) is left out.

    Raises:
        FileNotFoundError: there is no metrics.jsonl.
        ValueError: a line before the last is no JSON object.
    """
    return [row for _, row in _rows(Path(run_dir) / "metrics.jsonl")]


def read_samples(run_dir: Path | str) -> list[dict[str, Any]]:
    """The rows of a run's samples.jsonl, as `read_metrics` reads the other file."""
    return [row for _, row in _rows(Path(run_dir) / "samples.jsonl")]


def one_line(error: BaseException) -> str:
    """An exception as one short line for the log."""
    return (" ".join(str(error).split()) or type(error).__name__)[:300]


def _number(value: Any) -> int | float | list | dict | None:
    """A JSON number of a Python, NumPy or one-element torch number, None if it is not finite; or a table of such."""
    if isinstance(value, list):
        return [_number(item) for item in value]
    if isinstance(value, dict):
        return {name: _number(item) for name, item in value.items()}
    if value is None or isinstance(value, int):
        return value
    value = float(value)
    return value if math.isfinite(value) else None


def _open(path: Path, resume_step: int | None) -> BinaryIO:
    if resume_step is None:
        path.write_bytes(b"")
    elif path.exists():
        old = path.read_bytes()
        kept = b"".join(line for line, row in _rows(path) if row["step"] <= resume_step)
        if kept != old:
            write_atomic(path, kept)
    return open(path, "ab", buffering=0)


def _append(file: BinaryIO, row: dict[str, Any]) -> None:
    line = memoryview((json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode())
    end = os.fstat(file.fileno()).st_size
    try:
        while line:  # a nearly full disk takes a part, and refuses the rest
            line = line[file.write(line) :]
    except OSError as error:
        with contextlib.suppress(OSError):
            os.ftruncate(file.fileno(), end)
        raise UserError(
            f"{file.name} cannot be written: {error.strerror}.\nThe rows before are safe: make room, then resume the run."
        ) from error


def _rows(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Each whole line of a .jsonl file and the object in it."""
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not (isinstance(row, dict) and line.endswith(b"\n")):
                raise ValueError("not a whole object")
        except ValueError as error:
            if number == len(lines):
                return
            raise ValueError(f"{path}, line {number}: {error}") from error
        yield line, row
