"""suite=time_to_loss: how long whole recipes take until the full validation loss is as low as it should be.

Data comes in as settings; a table and a report, plain data with every evaluation, go out. A recipe is an experiment of
gpt2x-train; each of its runs is a new process (time_to_loss_contestants.py), timed from before its start. The validation loss
is the one that runs log: over the whole split, the same for every batch size. It is only looked at where the recipe evaluates,
so a time is that of the first evaluation at or below the target; smaller steps are a setting (trainer.eval_every).
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from gpt2x.benchmark.contest import Contest, by_contestant, enter, module, spread
from gpt2x.benchmark.process import FreshWorker
from gpt2x.config.compose import compose
from gpt2x.config.schema import TrainConfig


class TimeToLossSuite:
    """Measures the seconds until val/loss is at most `target`, for each of `experiments` with each of `seeds`; `settings` are
    more settings of gpt2x-train, for all runs."""

    def __init__(
        self, *, name: str, experiments: list[str], seeds: list[int], target: float, settings: list[str], timeout: float
    ):
        self.name, self.experiments, self.seeds, self.target = name, experiments, seeds, target
        self.settings, self.timeout = settings, timeout

    def run(self, *, model: None, device: dict[str, Any], seed: int, cache: str | Path) -> dict[str, Any]:
        """Measure, and return a report: plain data, of which "table" is Markdown to print.

        `cache` holds the corpora, so that a run that is not its first does not fetch them. A run that fails or takes longer
        than `timeout` makes its recipe a "failed" one, with the "reason". Raises ConfigError, before any run, for a recipe or
        setting that there is not.
        """
        for name in self.experiments:
            compose("train", TrainConfig, [f"experiment={name}", *self.settings])
        entries = [enter(name, ()) for name in self.experiments]
        Path(cache).mkdir(parents=True, exist_ok=True)
        turns = []
        with (
            tempfile.TemporaryDirectory(dir=cache) as folder,
            Contest(_COMMAND, entries, timeout=self.timeout, threads=device["threads"], worker=FreshWorker) as contest,
        ):
            run_folder = Path(folder).resolve() / "run"
            pinned = {name: value for name, value in device.items() if name not in ("type", "precision", "compile")}
            job = {"cache": str(cache), "folder": str(run_folder), "device": pinned, "settings": self.settings}
            contest.load(lambda name: job | {"experiment": name})
            for number in self.seeds:
                for turn in contest.measure(0, {"seed": number}, description=f"seed {number}"):
                    turns.append(turn | {"seed": number})
                    shutil.rmtree(run_folder, ignore_errors=True)
        rows = [self._row(name, mine) for name, mine in by_contestant(entries, turns).items()]
        return {
            "suite": self.name,
            "contestants": entries,
            "measurements": turns,
            "summary": rows,
            "table": self._table(rows),
        }

    def _row(self, name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
        """What became of a recipe's runs; the times are of those that reached the target."""
        lows = [[e for e in run["evaluations"] if e["loss"] <= self.target] for run in runs]
        reached = [low[0] for low in lows if low]
        return {
            "experiment": name,
            "runs": len(runs),
            "reached": len(reached),
            "seconds": spread([e["seconds"] for e in reached]) if reached else None,
            "seconds_without_evaluation": spread([e["seconds"] - e["evaluating"] for e in reached]) if reached else None,
            "steps": spread([e["step"] for e in reached]) if reached else None,
            "best_loss": spread([min(e["loss"] for e in run["evaluations"]) for run in runs]),
            "total_seconds": spread([run["seconds"] for run in runs]),
        }

    def _table(self, rows: list[dict[str, Any]]) -> str:
        """The summary as Markdown: medians, with the lowest and the highest in brackets."""
        lines = [
            f"| full val/loss {self.target:g} | runs that reach it | after | without evaluating | steps | best val/loss "
            "| whole run |",
            "|---|--:|--:|--:|--:|--:|--:|",
        ]
        for row in rows:
            cells = [
                row["experiment"],
                f"{row['reached']} of {row['runs']}",
                _spread(row["seconds"], ".1f", " s"),
                _spread(row["seconds_without_evaluation"], ".1f", " s"),
                _spread(row["steps"], ".0f"),
                _spread(row["best_loss"], ".4f"),
                _spread(row["total_seconds"], ".1f", " s"),
            ]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)


def _spread(values: dict[str, float] | None, digits: str, unit: str = "") -> str:
    if values is None:
        return ""
    median, low, high = (format(values[key], digits) for key in ("median", "min", "max"))
    return f"{median} ({low}-{high}){unit}"


_COMMAND = module("gpt2x.benchmark.time_to_loss_contestants")
