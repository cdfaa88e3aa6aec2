"""Runs that never ran: frames as load_runs makes them, of any size."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from gpt2x.compare.runs import Runs


def runs(settings: int = 4, seeds: int = 3, rows: int = 60, every: int = 10, **metrics: float) -> Runs:
    """`settings` pairs of learning rate and width with `seeds` runs each, of `rows` logged rows, validated at each `every`th.

    The loss falls faster with the learning rate; width matters little. `metrics` are further dense metrics.
    """
    rng = np.random.default_rng(0)
    pairs = list(product(np.geomspace(1e-4, 1e-2, -(-settings // 2)), (64, 128)))[:settings]
    table, columns = [], []
    for job, ((lr, width), seed) in enumerate(product(pairs, range(1, seeds + 1))):
        step = np.arange(1, rows + 1) * 10
        loss = 3 + 4 * np.exp(-step * lr / (rows * 0.01)) + 0.02 * (width == 64) + rng.normal(0, 0.05, rows)
        validation = np.where(np.arange(1, rows + 1) % every == 0, loss + 0.2, np.nan)
        columns.append(
            pd.DataFrame({"run": str(job), "step": step, "tokens": step * 512.0, "seconds": step * rng.uniform(0.01, 0.02)})
            .assign(flops=step * 6e9, **{"train/loss": loss, "val/loss": validation, "lr": lr * np.cos(step / step[-1])})
            .assign(**{name: value + rng.normal(0, 0.1, rows) for name, value in metrics.items()})
        )
        settled = {
            "config.optimizer.lr": float(lr),
            "config.model.n_embd": width,
            "config.seed": seed,
            "config.task.kind": "lm",
        }
        table.append(
            {"folder": f"/runs/{job}", "sweep": "sweeps/1", "job": str(job), "name": "made", "status": "finished"}
            | {"metric": np.nanmin(validation), "metric_name": "val/loss", "best_step": 10.0 * (1 + np.nanargmin(validation))}
            | {"steps": float(step[-1]), "tokens": step[-1] * 512.0, "seconds": columns[-1]["seconds"].iloc[-1]}
            | {
                "flops": step[-1] * 6e9,
                "parameters": 1e6,
                "started": pd.Timestamp("2026-11-23 10:00", tz="UTC") + pd.Timedelta(job, "min"),
            }
            | {"config_hash": "c", "git_commit": "abc", "error": None, "overrides": f"optimizer.lr={lr:g}", **settled}
            | {"last.val/loss": validation[-1]}
        )
    names = [str(job) for job in range(len(table))]
    frame = pd.DataFrame(table, index=pd.Index(names, name="run", dtype=object))
    texts = ["folder", "sweep", "job", "name", "status", "metric_name", "config_hash", "git_commit", "error", "overrides"]
    frame[texts] = frame[texts].astype(object)
    logged = pd.concat(columns, ignore_index=True)
    logged["run"] = pd.Categorical(logged["run"], categories=names)
    samples = pd.DataFrame(
        [
            {"run": name, "step": at, "prompt": prompt, "text": f"{prompt} there was run {name} at {at}.\n" * 3}
            for name in names
            for at in (rows * 5, rows * 10)
            for prompt in ("Once", "The old man")
        ]
    ).reindex(columns=["run", "step", "prompt", "text", "question", "reference"])
    return Runs(Path("/runs"), frame, logged, samples, [])
