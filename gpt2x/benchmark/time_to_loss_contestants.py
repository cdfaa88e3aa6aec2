"""The process that one run of suite=time_to_loss is.

The suite (time_to_loss.py) starts `python -m gpt2x.benchmark.time_to_loss_contestants` anew for every run. It reads a job, one
line of JSON, does what typing gpt2x-train does with the device's settings pinned, so that nothing is calibrated, writes what
the run's own metrics.jsonl says of it as another line, and ends.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Train, and return {"evaluations": [...]}; see `evaluations`."""
    from gpt2x import commands
    from gpt2x.config.compose import quote
    from gpt2x.tracking.tracker import read_metrics
    from gpt2x.training.trainer import Trainer

    begun, ends = [], []
    fit, train_step = Trainer.fit, Trainer.train_step

    def noting_begin(trainer: Trainer, *arguments: Any) -> Any:
        begun.append(time.perf_counter() - job["started"])
        return fit(trainer, *arguments)

    def noting_end(trainer: Trainer) -> dict[str, Any]:
        row = train_step(trainer)
        ends.append(time.perf_counter() - job["started"])
        return row

    Trainer.fit, Trainer.train_step = noting_begin, noting_end
    folder = Path(job["folder"])
    code = commands.train(
        [
            f"experiment={job['experiment']}",
            "logger=none",
            f"seed={job['seed']}",
            *(f"device.{name}={json.dumps(value)}" for name, value in job["device"].items()),
            f"hydra.run.dir={quote(str(folder))}",
            f"paths.cache={quote(job['cache'])}",
            *job["settings"],
        ]
    )
    if code:
        sys.exit(code)
    return {"evaluations": evaluations(read_metrics(folder), begun[0], ends)}


def evaluations(rows: list[dict[str, Any]], begun: float, ends: list[float]) -> list[dict[str, Any]]:
    """The evaluations among `rows` of metrics.jsonl, which count seconds from where the training loop began.

    `begun` and `ends` are that moment and the ends of the steps, in seconds since the process was started. So are "seconds";
    as many of these as "evaluating" says were spent on evaluations, this one included, and what belongs to them.
    """
    found, evaluating = [], 0.0
    for row in rows:
        if "val/loss" in row:
            seconds = begun + row["seconds"]
            evaluating += seconds - (ends[row["step"] - 1] if row["step"] else begun)
            found.append({"step": row["step"], "loss": row["val/loss"], "seconds": seconds, "evaluating": evaluating})
    return found


if __name__ == "__main__":
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)  # what a run prints must not mix with the answer
        print(json.dumps(run(json.loads(sys.stdin.readline()))), file=answers)
