"""Who takes part in suite=job, and the process that each of them is.

The suite (job.py) starts `python -m gpt2x.benchmark.job_contestants` anew for every measurement. It reads a job, one line of
JSON, does what the contestant does from start to end, writes what came of it as another line, and ends.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SWEEPS = {"two-in-turn": "basic", "two-at-once": "joblib"}  # each of two runs, by which of Hydra's launchers


def threads_each(name: str, threads: int) -> int:
    """How many of the suite's threads one of a contestant's runs has."""
    return max(1, threads // 2) if name == "two-at-once" else threads


def _bare(job: dict[str, Any]) -> dict[str, Any]:
    """Plain torch; see bare.py."""
    ends = _step_ends()
    from gpt2x.benchmark.bare import train

    names = ("n_layer", "n_head", "n_embd", "context_length", "tied_head")
    shape = {name: job["model"][name] for name in names} | {"vocab_size": job["vocab_size"]}
    threads = job["device"]["threads"]
    model = train(shape=shape, batch_size=job["batch_size"], steps=job["steps"], threads=threads, seed=job["seed"])
    tokens = job["steps"] * job["batch_size"] * shape["context_length"]
    return {"parameters": sum(p.numel() for p in model.parameters()), "tokens": tokens} | _times(job, ends)


def _gpt2x(job: dict[str, Any], *logger: str) -> dict[str, Any]:
    """gpt2x-train, one run."""
    ends = _step_ends()
    folder = Path(job["folder"]) / "run"
    _train(job, folder, *logger, f"seed={job['seed']}")
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    done = {name: result[name] for name in ("parameters", "tokens")}
    return done | _times(job, ends) | {"training_seconds": result["seconds"]}


def _sweep(job: dict[str, Any], launcher: str) -> dict[str, Any]:
    """gpt2x-train -m, two runs of two seeds."""
    limit = ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []
    seeds = f"seed={job['seed']},{job['seed'] + 1}"
    _train(job, Path(job["folder"]) / "sweep", "-m", "logger=none", f"hydra/launcher={launcher}", *limit, seeds)
    return {}


def _train(job: dict[str, Any], folder: Path, *arguments: str) -> None:
    """What typing gpt2x-train with these arguments does, in this folder; ends the process if it fails."""
    from gpt2x import commands
    from gpt2x.config.compose import quote

    device = job["device"] | {"threads": threads_each(job["contestant"], job["device"]["threads"])}
    groups = {"model": job["model"], "device": device}
    code = commands.train(
        [
            *arguments,
            *(f"{group}.{key}={json.dumps(value)}" for group, values in groups.items() for key, value in values.items()),
            f"tokenizer.vocab_size={job['vocab_size']}",
            f"data.batch_size={job['batch_size']}",
            f"trainer.max_steps={job['steps']}",
            f"trainer.eval_every={job['steps']}",  # before the first step and after the last
            f"hydra.{'sweep' if '-m' in arguments else 'run'}.dir={quote(str(folder))}",
            f"paths.outputs={quote(job['folder'])}",
            f"paths.cache={quote(job['cache'])}",
        ]
    )
    if code:
        sys.exit(code)


def _step_ends() -> list[float]:
    """A list that grows by the time whenever any optimizer has taken a step: torch tells it, so nobody's loop is touched."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    ends: list[float] = []
    register_optimizer_step_post_hook(lambda *_: ends.append(time.perf_counter()))
    return ends


def _times(job: dict[str, Any], ends: list[float]) -> dict[str, float]:
    if len(ends) != job["steps"]:
        sys.exit(f"took {len(ends)} steps instead of {job['steps']}")
    return {"first_step_seconds": ends[0] - job["started"], "step_seconds": (ends[-1] - ends[0]) / (len(ends) - 1)}


BASELINE = "bare"  # the others' times are told as multiples of this one's
CONTESTANTS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "bare": _bare,
    "gpt2x": lambda job: _gpt2x(job, "logger=none"),
    "gpt2x-wandb": lambda job: _gpt2x(job, "logger=wandb", "logger.mode=offline"),
} | {name: functools.partial(_sweep, launcher=launcher) for name, launcher in SWEEPS.items()}


if __name__ == "__main__":
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)  # what a run prints must not mix with the answer
        job = json.loads(sys.stdin.readline())
        print(json.dumps(CONTESTANTS[job["contestant"]](job)), file=answers)
