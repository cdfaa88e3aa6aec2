"""suite=train: the time of a training step, beside nanoGPT's and transformers' and beside what the processor could do.

Data comes in as settings; a table and a report, plain data with every measurement, go out. Each contestant
(train_contestants.py) is a new process in each round, so that its memory is its own and no two models are there at once. A
step is forward, backward, clipping, optimizer and zeroing; its time is the median of those of a process. The weights and the
tokens are random; that all do the same work is seen by their first losses.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch

from gpt2x.benchmark import machine
from gpt2x.benchmark.contest import Contest, by_contestant, enter, module, noting_failure, spread
from gpt2x.benchmark.process import FreshWorker, WorkerError
from gpt2x.benchmark.train_contestants import BASELINE, BEST_PEER, CONTESTANTS, Contestant
from gpt2x.config.option import ConfigError
from gpt2x.device import DeviceConfig
from gpt2x.tracking.console import size

# Of the first losses in nats: far above what an exact instead of a tanh GELU, or bfloat16, changes of random weights' losses.
_TOLERANCE = {False: 2e-3, True: 2e-2}


class TrainSuite:
    """Measures steps of `batch_size` rows of `tokens` tokens each, `steps` of them in a process."""

    def __init__(
        self,
        *,
        name: str,
        contestants: list[str] | None,
        batch_size: int,
        tokens: int,
        vocab_size: int,
        steps: int,
        rounds: int,
        timeout: float,
    ):
        self.name, self.contestants, self.batch_size, self.tokens = name, contestants or list(CONTESTANTS), batch_size, tokens
        self.vocab_size, self.steps, self.rounds, self.timeout = vocab_size, steps, rounds, timeout

    def run(self, *, model: dict[str, Any], device: dict[str, Any], seed: int, cache: str | Path) -> dict[str, Any]:
        """Measure, and return a report: plain data, of which "table" is Markdown to print.

        `model` holds GPT's arguments but for the vocabulary; its dropout is 0 here, and its context as long as the rows, so
        that everybody has as many positions. `device` holds those of Device. A contestant that cannot take part is
        "skipped"; one that ends, takes longer than `timeout` or whose first losses are others' has "failed".
        """
        job = {
            "model": model | {"dropout": 0.0, "context_length": self.tokens},
            "vocab_size": self.vocab_size,
            "device": device,
            "seed": seed,
            "cache": str(cache),
            "batch_size": self.batch_size,
            "tokens": self.tokens,
            "steps": self.steps,
        }
        entries = [self._entry(CONTESTANTS[name]) for name in self.contestants]
        limits = self._limits(model["n_embd"], entries)
        with Contest(_COMMAND, entries, timeout=self.timeout, threads=device["threads"], worker=FreshWorker) as contest:
            contest.load(lambda name: job | {"contestant": name})
            turns = list(contest.measure(self.rounds, {}, description=f"{self.steps} steps each"))
        first = {name: mine[0]["first_losses"] for name, mine in by_contestant(entries, turns).items()}
        for entry in entries:
            with noting_failure(entry):
                self._check_losses(entry, first)
        rows = self._summary(by_contestant(entries, [m for m in turns if m["round"]]), limits)
        return {
            "suite": self.name,
            "contestants": entries,
            "limits": limits,
            "measurements": turns,  # round 0, the first, does not count in the summary
            "summary": rows,
            "table": "\n\n".join([self._limits_line(limits), self._table(rows, model)]),
        }

    def _entry(self, contestant: Contestant) -> dict[str, Any]:
        """What the report tells about a contestant; "ready" if it can take part."""
        reason = None
        if contestant.bf16:
            try:
                DeviceConfig(precision="bf16").check_available()
            except ConfigError as error:
                reason = error.problem
        return enter(contestant.name, contestant.requires, reason, bf16=contestant.bf16)

    def _limits(self, n_embd: int, entries: list[dict[str, Any]]) -> dict[str, float]:
        """What this machine can do: matrix products of a block's shapes in the precisions that take part, and its memory."""
        kinds = {entry["bf16"] for entry in entries if entry["status"] == "ready"}
        rows, types = self.batch_size * self.tokens, {False: torch.float32, True: torch.bfloat16}
        speeds = {kind: machine.gemm_speed(rows, n_embd, types[kind]) for kind in sorted(kinds)}
        named = {f"{_PRECISION[kind]}_flops_per_s": speed for kind, speed in speeds.items()}
        return named | {"memory_bytes_per_s": machine.memory_bandwidth()}

    def _check_losses(self, entry: dict[str, Any], first: dict[str, list[float]]) -> None:
        """Raise WorkerError for what is no measurement of the same training."""
        mine, theirs = first.get(entry["name"]), first.get(BASELINE)
        if mine and theirs and max(abs(a - b) for a, b in zip(mine, theirs, strict=True)) > _TOLERANCE[entry["bf16"]]:
            raise WorkerError(f"its first losses are {_losses(mine)} and those of {BASELINE} {_losses(theirs)}")

    def _summary(self, taken: dict[str, list[dict]], limits: dict[str, float]) -> list[dict[str, Any]]:
        """One row for each contestant that measured to the end."""
        rows = []
        for name, mine in taken.items():
            step, precision = spread([statistics.median(m["step_seconds"]) for m in mine]), _PRECISION[CONTESTANTS[name].bf16]
            least = mine[0]["flops"] / limits[f"{precision}_flops_per_s"]
            rows.append(
                {
                    "contestant": name,
                    "step_seconds": step,
                    "cpu_seconds": spread([statistics.median(m["cpu_seconds"]) for m in mine]),
                    "tokens_per_s": self.batch_size * self.tokens / step["median"],
                    "of_limit": least / step["median"],
                    "first_losses": mine[0]["first_losses"],
                    "peak_memory_bytes": max(m["peak_memory_bytes"] for m in mine),
                }
            )
        medians = {row["contestant"]: row["step_seconds"]["median"] for row in rows}
        for row in rows:
            for key, peer in (("times_baseline", BASELINE), ("times_best_peer", BEST_PEER)):
                row[key] = medians[peer] / row["step_seconds"]["median"] if peer in medians else None
        return rows

    def _limits_line(self, limits: dict[str, float]) -> str:
        products = [f"{p} {limits[key] / 1e9:.0f} GFLOP/s" for p in _PRECISION if (key := f"{p}_flops_per_s") in limits]
        return f"matrix products of a block: {', '.join(products)}; memory: {limits['memory_bytes_per_s'] / 1e9:.0f} GB/s"

    def _table(self, rows: list[dict[str, Any]], model: dict[str, Any]) -> str:
        """The summary as Markdown: a step is the median process's, then the fastest's and the slowest's."""
        shape = f"{model['n_layer']} layers, {model['n_embd']} wide, {self.batch_size} x {self.tokens} tokens"
        lines = [
            f"| {shape} | ms a step | tokens/s | x {BASELINE} | x {BEST_PEER} | of the limit | first losses | peak memory |",
            "|---|--:|--:|--:|--:|--:|--:|--:|",
        ]
        for row in rows:
            step = {name: f"{value * 1000:.{1 if value < 1 else 0}f}" for name, value in row["step_seconds"].items()}
            cells = [
                row["contestant"],
                f"{step['median']} ({step['min']}-{step['max']})",
                f"{row['tokens_per_s']:.0f}",
                _times(row["times_baseline"]),
                _times(row["times_best_peer"]),
                f"{row['of_limit']:.0%}",
                _losses(row["first_losses"]),
                size(row["peak_memory_bytes"]),
            ]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)


def _losses(losses: list[float]) -> str:
    return " ".join(f"{loss:.4f}" for loss in losses)


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


_PRECISION = ("fp32", "bf16")  # by whether a contestant is bf16
_COMMAND = module("gpt2x.benchmark.train_contestants")
