"""suite=finetune: how long it takes to fine-tune a classifier, beside the book's way of computing it and transformers'.

Data comes in as settings; a table and a report, plain data with every measurement, go out. The contestants
(finetune_contestants.py) take turns as contest.py has it. What is trained is what experiment=spam_book trains: the last
block, the final norm and the head, without dropout, on rows filled up to one length. The weights and the tokens are random;
no contestant's speed depends on their values. That those of the same precision do the same work is seen by their losses.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from gpt2x.benchmark.contest import Contest, by_contestant, enter, module, noting_failure, spread
from gpt2x.benchmark.finetune_contestants import BASELINE, CLASSES, CONTESTANTS, Contestant
from gpt2x.benchmark.process import WorkerError
from gpt2x.config.option import ConfigError
from gpt2x.device import DeviceConfig
from gpt2x.tokenizer.gpt2 import GPT2Tokenizer
from gpt2x.tracking.console import size

_TOLERANCE = 1e-3  # of the first losses in nats: far above rounding, far below what other mathematics would change


class FinetuneSuite:
    """Measures the time of a training step; epochs are what their steps take."""

    def __init__(
        self,
        *,
        name: str,
        contestants: list[str] | None,
        batch_size: int,
        tokens: int,
        steps: int,
        rounds: int,
        epoch_steps: int,
        epochs: int,
        timeout: float,
    ):
        self.name, self.contestants, self.batch_size, self.tokens = name, contestants or list(CONTESTANTS), batch_size, tokens
        self.steps, self.rounds, self.epoch_steps, self.epochs, self.timeout = steps, rounds, epoch_steps, epochs, timeout

    def run(self, *, model: dict[str, Any], device: dict[str, Any], seed: int, cache: str | Path) -> dict[str, Any]:
        """Measure, and return a report: plain data, of which "table" is Markdown to print.

        `model` holds GPT's arguments but for the vocabulary, which is GPT-2's; its dropout is 0 here. `device` holds those
        of Device, `cache` is the folder that keeps compiled code. A contestant that cannot take part is "skipped"; one that
        ends, takes longer than `timeout` or does not have the losses that the book's computation has, has "failed", each
        with its "reason".
        """
        tokenizer, draw = GPT2Tokenizer(), random.Random(seed)
        job = {
            "model": model | {"dropout": 0.0},
            "vocab_size": tokenizer.vocab_size,
            "device": device,
            "seed": seed,
            "cache": str(cache),
            "batch_size": self.batch_size,
            "rows": [self._row(draw, tokenizer.end_of_text) for _ in range(self.steps * self.batch_size)],
        }
        entries = [self._entry(CONTESTANTS[name]) for name in self.contestants]
        with Contest(_COMMAND, entries, timeout=self.timeout, threads=device["threads"]) as contest:
            contest.load(lambda name: job | {"contestant": name})
            turns = list(contest.measure(self.rounds, {}, description=f"{self.steps} steps each"))
        first = {name: [loss for m in mine for loss in m["losses"]][:2] for name, mine in by_contestant(entries, turns).items()}
        for entry in entries:
            with noting_failure(entry):
                self._check_losses(entry, first)
        rows = self._summary(by_contestant(entries, [m for m in turns if m["round"]]), first)
        return {
            "suite": self.name,
            "contestants": entries,
            "measurements": turns,  # round 0, the first, does not count in the summary, but its losses do
            "summary": rows,
            "table": self._table(rows),
        }

    def _row(self, draw: random.Random, end_of_text: int) -> dict[str, Any]:
        """A text of any length, filled up."""
        length = draw.randint(1, self.tokens)
        text = draw.choices(range(end_of_text), k=length)
        return {"tokens": text + [end_of_text] * (self.tokens - length), "class": draw.randrange(CLASSES)}

    def _entry(self, contestant: Contestant) -> dict[str, Any]:
        """What the report tells about a contestant; "ready" if it can take part."""
        reason = None
        if contestant.bf16:
            try:
                DeviceConfig(precision="bf16").check_available()
            except ConfigError as error:
                reason = error.problem
        return enter(contestant.name, contestant.requires, reason, same_as_book=contestant.same)

    def _check_losses(self, entry: dict[str, Any], first: dict[str, list[float]]) -> None:
        """Raise WorkerError for what is no measurement of the same training."""
        mine, book = first.get(entry["name"]), first.get(BASELINE)
        if not (entry["same_as_book"] and mine and book):
            return
        if max(abs(a - b) for a, b in zip(mine, book, strict=True)) > _TOLERANCE:
            raise WorkerError(f"its first losses are {_losses(mine)} and those of {BASELINE} {_losses(book)}")

    def _summary(self, taken: dict[str, list[dict]], first: dict[str, list[float]]) -> list[dict[str, Any]]:
        """One row for each contestant that measured to the end."""
        rows = []
        for name, mine in taken.items():
            step = spread([m["seconds"] for m in mine])
            states = [m["states_seconds"] * self.epoch_steps for m in mine if "states_seconds" in m]
            epoch = step["median"] * self.epoch_steps
            once = spread(states) if states else None
            rows.append(
                {
                    "contestant": name,
                    "step_seconds": step,
                    "epoch_seconds": epoch,
                    "states_seconds": once,
                    "training_seconds": epoch * self.epochs + (once["median"] if once else 0.0),
                    "first_losses": first[name],
                    "peak_memory_bytes": max(m["peak_memory_bytes"] for m in mine),
                }
            )
        book = next((row for row in rows if row["contestant"] == BASELINE), None)
        for row in rows:
            for name in ("epoch", "training"):
                row[f"{name}_times_baseline"] = None if book is None else book[f"{name}_seconds"] / row[f"{name}_seconds"]
        return rows

    def _table(self, rows: list[dict[str, Any]]) -> str:
        """The summary as Markdown: a step is the median, then the fastest and the slowest."""
        lines = [
            f"| batches of {self.batch_size} x {self.tokens} tokens | ms a step | x {BASELINE} "
            f"| epoch of {self.epoch_steps} steps | frozen states, once | {self.epochs} epochs in all | x {BASELINE} "
            "| first losses | peak memory |",
            "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
        ]
        for row in rows:
            step, states = row["step_seconds"], row["states_seconds"]
            times = {name: row[f"{name}_times_baseline"] for name in ("epoch", "training")}
            cells = [
                row["contestant"],
                f"{step['median'] * 1000:.0f} ({step['min'] * 1000:.0f}-{step['max'] * 1000:.0f})",
                "" if times["epoch"] is None else f"{times['epoch']:.2f}",
                f"{row['epoch_seconds']:.1f} s",
                "" if states is None else f"{states['median']:.1f} s",
                f"{row['training_seconds']:.1f} s",
                "" if times["training"] is None else f"{times['training']:.2f}",
                _losses(row["first_losses"]),
                size(row["peak_memory_bytes"]),
            ]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)


def _losses(losses: list[float]) -> str:
    return " ".join(f"{loss:.5f}" for loss in losses)


_COMMAND = module("gpt2x.benchmark.finetune_contestants")
