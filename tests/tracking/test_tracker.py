"""The run's own files, and the fan-out to other trackers."""

from __future__ import annotations

import json
import logging
import math
import time
from pathlib import Path

import numpy as np
import pytest

from gpt2x.errors import UserError
from gpt2x.tracking.tracker import NullTracker, RunFiles, Tracker, Trackers, read_metrics


def write_rows(run_dir: Path, steps: range, resume_step: int | None = None) -> None:
    files = RunFiles(run_dir, resume_step)
    for step in steps:
        files.log({"step": step, "train/loss": 1 / (step + 1)})
        files.sample({"step": step, "prompt": "Once", "text": " upon"})
    files.finish("finished", {})


def steps_in(run_dir: Path, name: str = "metrics.jsonl") -> list[int]:
    return [json.loads(line)["step"] for line in (run_dir / name).read_text().splitlines()]


def test_each_row_is_a_line_and_is_there_at_once(tmp_path):
    files = RunFiles(tmp_path / "run")
    files.log({"step": 1, "train/loss": 0.1 + 0.2, "lr": 1e-3, "tokens": 2**40})
    assert read_metrics(tmp_path / "run") == [{"step": 1, "train/loss": 0.1 + 0.2, "lr": 1e-3, "tokens": 2**40}]
    files.log({"step": 2, "val/loss": 3.0})
    assert (tmp_path / "run/metrics.jsonl").read_text().splitlines()[1] == '{"step": 2, "val/loss": 3.0}'
    files.finish("finished", {})


def test_samples_keep_every_character(tmp_path):
    files = RunFiles(tmp_path)
    row = {"step": 5, "prompt": "He said “hé”", "text": "\n\ttwo\u2028lines \\ and � 😀"}
    files.sample(row)
    assert [json.loads(line) for line in (tmp_path / "samples.jsonl").read_bytes().split(b"\n")[:-1]] == [row]


def test_numbers_that_are_not_finite_are_null(tmp_path):
    files = RunFiles(tmp_path)
    files.log({"step": 1, "a": math.nan, "b": math.inf, "c": -math.inf, "d": None})
    files.log({"step": np.int64(2), "a": np.float32(0.5), "b": np.float64(math.nan), "c": np.float32(math.inf)})
    assert read_metrics(tmp_path) == [
        {"step": 1, "a": None, "b": None, "c": None, "d": None},
        {"step": 2, "a": 0.5, "b": None, "c": None},
    ]
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_tables_of_numbers_keep_their_form(tmp_path):
    files = RunFiles(tmp_path)
    confusion, calibration = {"ham": {"ham": 3, "spam": np.int64(1)}}, [{"low": 0.0, "accuracy": math.nan}]
    files.log({"step": 1, "val/confusion": confusion, "val/calibration": calibration})
    (row,) = read_metrics(tmp_path)
    assert row["val/confusion"] == {"ham": {"ham": 3, "spam": 1}}
    assert row["val/calibration"] == [{"low": 0.0, "accuracy": None}]


@pytest.mark.parametrize("torn", [b'{"step": 3, "train/lo', b'{"step": 3}', b"{", b"\0\0\0\0", b'{"step": 3, "a": "\xc3'])
def test_a_torn_last_line_is_left_out_and_dropped_on_resume(tmp_path, torn):
    write_rows(tmp_path, range(3))
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(torn)
    assert [row["step"] for row in read_metrics(tmp_path)] == [0, 1, 2]
    write_rows(tmp_path, range(3, 5), resume_step=10)
    assert [row["step"] for row in read_metrics(tmp_path)] == [0, 1, 2, 3, 4]


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    write_rows(tmp_path, range(3))
    text = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(text.replace('{"step": 1', '{"ste', 1))
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2"):
        read_metrics(tmp_path)


def test_no_metrics_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_metrics(tmp_path)


@pytest.mark.parametrize(("checkpoint", "kept"), [(6, range(7)), (-1, range(0)), (9, range(10)), (50, range(10))])
def test_resume_drops_the_rows_past_the_checkpoint(tmp_path, checkpoint, kept):
    write_rows(tmp_path, range(10))
    before = (tmp_path / "metrics.jsonl").read_bytes().splitlines()
    RunFiles(tmp_path, resume_step=checkpoint).finish("finished", {})
    assert steps_in(tmp_path) == steps_in(tmp_path, "samples.jsonl") == list(kept)
    assert (tmp_path / "metrics.jsonl").read_bytes().splitlines() == before[: len(kept)]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["metrics.jsonl", "samples.jsonl"]


def test_resume_makes_missing_files_and_a_fresh_run_starts_anew(tmp_path):
    RunFiles(tmp_path, resume_step=3).finish("finished", {})
    assert read_metrics(tmp_path) == []
    write_rows(tmp_path, range(3))
    write_rows(tmp_path, range(1))
    assert steps_in(tmp_path) == steps_in(tmp_path, "samples.jsonl") == [0]


def test_a_crash_while_trimming_leaves_the_old_file(tmp_path, monkeypatch):
    write_rows(tmp_path, range(10))
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def crash(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", crash)
    with pytest.raises(KeyboardInterrupt):
        RunFiles(tmp_path, resume_step=4)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_kill_9_loses_no_row_and_the_run_resumes(python, tmp_path):
    process = python("""
from gpt2x.tracking.tracker import RunFiles
files = RunFiles("run")
for step in range(10**9):
    files.log({"step": step, "train/loss": step / 7})
    print(step, flush=True)
""")
    lines = [process.stdout.readline() for _ in range(500)]
    process.kill()
    last = int((lines + process.stdout.read().splitlines())[-1])
    rows = read_metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == list(range(len(rows)))
    assert len(rows) > last
    write_rows(tmp_path / "run", range(301, 310), resume_step=300)
    assert steps_in(tmp_path / "run") == list(range(310))


def test_a_full_disk_is_a_clear_error_and_earlier_rows_stay(python, tmp_path):
    process = python("""
import resource
from gpt2x.errors import UserError
from gpt2x.tracking.tracker import RunFiles, Trackers
trackers = Trackers([RunFiles("run")])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))  # the kernel writes the part that fits
try:
    for step in range(1000):
        trackers.log({"step": step, "train/loss": 1.5})
except UserError as error:
    print(step, error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    trackers.log({"step": step, "train/loss": 1.5})  # room was made
trackers.finish("failed", {})
""")
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    step, message = out.split(maxsplit=1)
    assert "metrics.jsonl cannot be written: File too large" in message
    assert steps_in(tmp_path / "run") == list(range(int(step) + 1))
    assert int(step) > 20


def test_no_space_left_on_the_device(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    files = RunFiles(tmp_path)
    with pytest.raises(UserError, match="No space left on device"):
        files.log({"step": 1})
    files.finish("failed", {})


def test_logging_takes_microseconds(tmp_path):
    files = RunFiles(tmp_path)
    started = time.perf_counter()
    for step in range(2000):
        files.log({"step": step, "tokens": step * 1024, "train/loss": 2.5, "lr": 1e-3, "grad_norm": 0.7, "tokens_per_s": 9e3})
    assert (time.perf_counter() - started) / 2000 < 1e-3


class Recorder(Tracker):
    """Remembers what it was told; raises at what `breaks` names."""

    def __init__(self, *breaks: str):
        self.told, self.breaks = [], breaks

    def _take(self, what: str, *told) -> None:
        self.told.append((what, *told))
        if what in self.breaks:
            raise ConnectionError("the server\nis away")

    def log(self, row):
        self._take("log", row)

    def sample(self, row):
        self._take("sample", row)

    def finish(self, status, summary):
        self._take("finish", status, summary)


def test_every_tracker_is_told_everything(tmp_path):
    recorders = [Recorder(), Recorder()]
    trackers = Trackers([RunFiles(tmp_path), NullTracker(run_dir=tmp_path, name="x"), Tracker(), *recorders])
    trackers.log({"step": 1})
    trackers.sample({"step": 1, "prompt": "a", "text": "b"})
    trackers.finish("finished", {"val/loss": 2.0})
    told = [
        ("log", {"step": 1}),
        ("sample", {"step": 1, "prompt": "a", "text": "b"}),
        ("finish", "finished", {"val/loss": 2.0}),
    ]
    assert recorders[0].told == recorders[1].told == told
    assert read_metrics(tmp_path) == [{"step": 1}]


def test_a_tracker_that_raises_is_switched_off_with_one_warning(tmp_path, caplog):
    broken, well = Recorder("log"), Recorder()
    trackers = Trackers([RunFiles(tmp_path), broken, well])
    for step in range(5):
        trackers.log({"step": step})
    trackers.finish("finished", {})
    assert [what for what, *_ in broken.told] == ["log", "finish"]
    assert [what for what, *_ in well.told] == ["log"] * 5 + ["finish"]
    assert len(read_metrics(tmp_path)) == 5
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == "Recorder is off from now on, the run is not: the server is away"


def test_finish_never_raises_and_reaches_everyone(tmp_path, caplog):
    recorders = [Recorder("finish"), Recorder()]
    files = RunFiles(tmp_path)
    files._metrics.close()  # whatever happened before
    Trackers([recorders[0], files, recorders[1]]).finish("failed", {})
    assert [recorder.told for recorder in recorders] == [[("finish", "failed", {})]] * 2
    assert len(caplog.records) == 2


def test_what_the_run_files_raise_goes_up(tmp_path):
    files, other = RunFiles(tmp_path), Recorder()
    files._metrics.close()
    trackers = Trackers([files, other])
    with pytest.raises(ValueError, match="closed file"):
        trackers.log({"step": 1})
    assert other.told == []
