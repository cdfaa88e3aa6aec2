"""suite=job: what gpt2x costs a run beside the steps, and two runs at once beside the same two in turn.

Data comes in as settings; a table and a report, plain data with every measurement, go out. Each contestant
(job_contestants.py) is a new process in each round, timed by this one from before its start to its end. The runs are
gpt2x-train's first run with other numbers of steps: an evaluation on the whole validation text and a text to look at before
the first step and after the last, then a checkpoint and a picture. Steps are timed from the end of one to the end of the
next, so that what is logged between them is part of them.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from gpt2x.benchmark.contest import Contest, by_contestant, enter, module, noting_failure, spread
from gpt2x.benchmark.job_contestants import BASELINE, CONTESTANTS, SWEEPS, threads_each
from gpt2x.benchmark.process import FreshWorker, WorkerError


class JobSuite:
    """Measures whole runs of `steps` steps with `batch_size` windows each, and a vocabulary of `vocab_size` tokens."""

    def __init__(
        self,
        *,
        name: str,
        contestants: list[str] | None,
        steps: int,
        batch_size: int,
        vocab_size: int,
        rounds: int,
        timeout: float,
    ):
        self.name, self.contestants, self.steps, self.batch_size = name, contestants or list(CONTESTANTS), steps, batch_size
        self.vocab_size, self.rounds, self.timeout = vocab_size, rounds, timeout

    def run(self, *, model: dict[str, Any], device: dict[str, Any], seed: int, cache: str | Path) -> dict[str, Any]:
        """Measure, and return a report: plain data, of which "table" is Markdown to print.

        `model` holds GPT's arguments but for the vocabulary; its dropout is 0 here. `device` holds those of Device; `cache`
        is a folder for files that are gone at the end. A contestant that ends or takes longer than `timeout` has "failed",
        and so has one whose model or number of tokens is not the bare one's.
        """
        job = {
            "model": model | {"dropout": 0.0},
            "vocab_size": self.vocab_size,
            "batch_size": self.batch_size,
            "steps": self.steps,
            "device": device,
            "seed": seed,
        }
        entries = [enter(name, (), threads=threads_each(name, device["threads"])) for name in self.contestants]
        Path(cache).mkdir(parents=True, exist_ok=True)
        turns = []
        with (
            tempfile.TemporaryDirectory(dir=cache) as folder,
            Contest(_COMMAND, entries, timeout=self.timeout, threads=device["threads"], worker=FreshWorker) as contest,
        ):
            outputs = Path(folder).resolve() / "outputs"  # the cache beside it lasts: texts are tokenized in round 0 alone
            job |= {"folder": str(outputs), "cache": str(outputs.with_name("cache"))}
            contest.load(lambda name: job | {"contestant": name})
            for turn in contest.measure(self.rounds, {}, description="each from start to end"):
                turns.append(turn)
                shutil.rmtree(outputs, ignore_errors=True)
        taken = by_contestant(entries, turns)
        for entry in entries:
            with noting_failure(entry):
                self._check_work(entry["name"], taken)
        taken = by_contestant(entries, [turn for turn in turns if turn["round"]])
        runs, sweeps = self._runs(taken), self._sweeps(taken, device["threads"])
        return {
            "suite": self.name,
            "contestants": entries,
            "measurements": turns,  # round 0, the first, does not count in the summary
            "summary": {"runs": runs, "sweeps": sweeps},
            "table": "\n\n".join(part for part in (self._runs_table(runs, model), self._sweeps_table(sweeps)) if part),
        }

    def _check_work(self, name: str, taken: dict[str, list[dict]]) -> None:
        """Raise WorkerError for what is no measurement of the same training."""
        if name in SWEEPS or name not in taken or BASELINE not in taken:
            return
        mine, bare = ((turns[0]["parameters"], turns[0]["tokens"]) for turns in (taken[name], taken[BASELINE]))
        if mine != bare:
            told = ["{:,} parameters and {:,} tokens".format(*both) for both in (mine, bare)]
            raise WorkerError(f"it trained {told[0]}, and {BASELINE} {told[1]}")

    def _runs(self, taken: dict[str, list[dict]]) -> list[dict[str, Any]]:
        """One row for each contestant that is a single run."""
        rows = []
        for name, mine in taken.items():
            if name not in SWEEPS:
                beside = [m["seconds"] - self.steps * m["step_seconds"] for m in mine]
                looking = [m["training_seconds"] - self.steps * m["step_seconds"] for m in mine if "training_seconds" in m]
                row = {
                    "contestant": name,
                    "first_step_seconds": spread([m["first_step_seconds"] for m in mine]),
                    "step_seconds": spread([m["step_seconds"] for m in mine]),
                    "total_seconds": spread([m["seconds"] for m in mine]),
                    "beside_seconds": spread(beside),
                    "evaluation_seconds": spread(looking) if looking else None,
                }
                rows.append(row)
        bare = next((row for row in rows if row["contestant"] == BASELINE), None)
        for row in rows:
            for key in ("step_seconds", "total_seconds"):
                row[f"{key}_times_baseline"] = None if bare is None else row[key]["median"] / bare[key]["median"]
        return rows

    def _sweeps(self, taken: dict[str, list[dict]], threads: int) -> list[dict[str, Any]]:
        """One row for each contestant that is two runs."""
        totals = {name: spread([m["seconds"] for m in mine]) for name, mine in taken.items() if name in SWEEPS}
        in_turn = totals.get("two-in-turn")
        return [
            {
                "contestant": name,
                "threads": threads_each(name, threads),
                "total_seconds": seconds,
                "times_in_turn": None if in_turn is None else seconds["median"] / in_turn["median"],
            }
            for name, seconds in totals.items()
        ]

    def _runs_table(self, rows: list[dict[str, Any]], model: dict[str, Any]) -> str:
        """A summary as Markdown: medians, with the lowest and the highest in brackets."""
        if not rows:
            return ""
        lines = [
            f"| {self.steps} steps of {self.batch_size} x {model['context_length']} tokens | start to first step | ms a step "
            f"| x {BASELINE} | in all | x {BASELINE} | beside the steps | of that evaluating |",
            "|---|--:|--:|--:|--:|--:|--:|--:|",
        ]
        for row in rows:
            cells = [
                row["contestant"],
                _seconds(row["first_step_seconds"]),
                _spread({name: value * 1000 for name, value in row["step_seconds"].items()}),
                _times(row["step_seconds_times_baseline"]),
                _seconds(row["total_seconds"]),
                _times(row["total_seconds_times_baseline"]),
                _seconds(row["beside_seconds"]),
                "" if row["evaluation_seconds"] is None else _seconds(row["evaluation_seconds"]),
            ]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)

    def _sweeps_table(self, rows: list[dict[str, Any]]) -> str:
        if not rows:
            return ""
        lines = [f"| two runs of {self.steps} steps | threads each | in all | x two-in-turn |", "|---|--:|--:|--:|"]
        for row in rows:
            cells = [row["contestant"], str(row["threads"]), _seconds(row["total_seconds"]), _times(row["times_in_turn"])]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)


def _spread(values: dict[str, float]) -> str:
    return f"{values['median']:.2f} ({values['min']:.2f}-{values['max']:.2f})"


def _seconds(values: dict[str, float]) -> str:
    return f"{_spread(values)} s"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


_COMMAND = module("gpt2x.benchmark.job_contestants")
