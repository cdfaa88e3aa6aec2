"""suite=generate: how fast text is generated, beside the limit that memory sets and beside what others reach.

Data comes in as settings; a table and a report, plain data with every measurement, go out. The contestants
(generate_contestants.py) take turns as contest.py has it.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from gpt2x.benchmark.contest import Contest, by_contestant, enter, module, spread
from gpt2x.benchmark.generate_contestants import BASELINE, CONTESTANTS, Contestant
from gpt2x.benchmark.machine import memory_bandwidth
from gpt2x.benchmark.process import WorkerError
from gpt2x.interop.gguf import write_gguf
from gpt2x.model.gpt import GPT
from gpt2x.tokenizer.gpt2 import GPT2Tokenizer
from gpt2x.tracking.console import size


class GenerateSuite:
    """Measures the time to generate with random weights, whose values no contestant's speed depends on."""

    def __init__(
        self,
        *,
        name: str,
        contestants: list[str] | None,
        batch_sizes: list[int],
        prompt_tokens: int,
        new_tokens: int,
        rounds: int,
        timeout: float,
    ):
        self.name, self.contestants, self.batch_sizes = name, contestants or list(CONTESTANTS), batch_sizes
        self.prompt_tokens, self.new_tokens, self.rounds, self.timeout = prompt_tokens, new_tokens, rounds, timeout

    def run(self, *, model: dict[str, Any], device: dict[str, Any], seed: int, cache: str | Path) -> dict[str, Any]:
        """Measure, and return a report: plain data, of which "table" is Markdown to print.

        `model` holds GPT's arguments but for the vocabulary, which is GPT-2's, and `device` those of Device; `cache` is
        a folder for what is made once, and for files that are gone at the end. A contestant that cannot take part is
        "skipped" and one that ends or takes longer than `timeout` has "failed", each with its "reason".
        """
        tokenizer = GPT2Tokenizer()
        draw = random.Random(seed)
        job = {
            "model": model,
            "vocab_size": tokenizer.vocab_size,
            "device": device,
            "seed": seed,
            "cache": str(cache),
            "prompts": [draw.choices(range(tokenizer.end_of_text), k=self.prompt_tokens) for _ in range(max(self.batch_sizes))],
            "new_tokens": self.new_tokens,
        }
        bandwidths = [memory_bandwidth()]
        print(f"memory   read at {bandwidths[0] / 1e9:.1f} GB/s", flush=True)
        entries = [self._entry(CONTESTANTS[name]) for name in self.contestants]
        Path(cache).mkdir(parents=True, exist_ok=True)
        with Contest(_COMMAND, entries, timeout=self.timeout, threads=device["threads"]) as contest:
            folder = Path(contest.enter_context(tempfile.TemporaryDirectory(dir=cache)))
            contest.load(lambda name: job | {"contestant": name} | self._files(CONTESTANTS[name], job, tokenizer, folder))
            measurements = [m for batch_size in self.batch_sizes for m in self._measure(batch_size, contest)]
        bandwidths.append(memory_bandwidth())
        weights = weights_per_token(tokenizer.vocab_size, model)
        rows = self._summary(entries, measurements, max(bandwidths) / weights)
        return {
            "suite": self.name,
            "memory_bandwidths_bytes_per_s": bandwidths,  # before and after
            "weights_per_token": weights,
            "contestants": entries,
            "measurements": measurements,
            "summary": rows,
            "table": self._table(rows),
        }

    def _entry(self, contestant: Contestant) -> dict[str, Any]:
        """What the report tells about a contestant; "ready" if it can take part."""
        reason = None
        if not contestant.batches and 1 not in self.batch_sizes:
            reason = "takes part with one prompt alone: suite.batch_sizes=[1]"
        return enter(contestant.name, contestant.requires, reason, bytes_per_weight=contestant.bytes_per_weight)

    def _files(self, contestant: Contestant, job: dict, tokenizer: GPT2Tokenizer, folder: Path) -> dict[str, str]:
        """The GGUF file that a contestant reads, if it reads one; made here, where it does not count as its memory."""
        if contestant.gguf is None:
            return {}
        generator = torch.Generator().manual_seed(job["seed"])
        model = GPT(vocab_size=job["vocab_size"], **job["model"], generator=generator)
        path = folder / f"{contestant.gguf}.gguf"
        write_gguf(path, model, tokenizer, weights=contestant.gguf)
        return {"gguf": str(path)}

    def _measure(self, batch_size: int, contest: Contest) -> Iterator[dict[str, Any]]:
        """Every measurement that counts with that many prompts, all contestants in turns."""

        def check(taken: dict[str, Any]) -> None:
            if taken["tokens"] != batch_size * self.new_tokens:
                raise WorkerError(f"made {taken['tokens']} tokens instead of {batch_size} x {self.new_tokens}")

        for taken in contest.measure(
            self.rounds,
            {"batch_size": batch_size},
            among=lambda name: batch_size == 1 or CONTESTANTS[name].batches,
            check=check,
            description=f"batch of {batch_size}",
        ):
            if taken["round"]:
                yield {"batch_size": batch_size} | taken

    def _summary(self, entries: list[dict], measurements: list[dict], weights_per_s: float) -> list[dict[str, Any]]:
        """One row for each batch size and contestant that measured to the end."""
        rows = []
        for batch_size in self.batch_sizes:
            taken = by_contestant(entries, [m for m in measurements if m["batch_size"] == batch_size])
            speeds = {name: spread([m["tokens"] / m["seconds"] for m in mine]) for name, mine in taken.items()}
            for name, mine in taken.items():
                decode = spread([(m["tokens"] - batch_size) / m["decode_seconds"] for m in mine])
                limit = weights_per_s / CONTESTANTS[name].bytes_per_weight
                rows.append(
                    {
                        "contestant": name,
                        "batch_size": batch_size,
                        "tokens_per_s": speeds[name],
                        "times_baseline": speeds[name]["median"] / speeds[BASELINE]["median"] if BASELINE in speeds else None,
                        "decode_tokens_per_s": decode,
                        "memory_limit_tokens_per_s": limit if batch_size == 1 else None,
                        "fraction_of_memory_limit": decode["median"] / limit if batch_size == 1 else None,
                        "first_token_seconds": spread([m["first_token_seconds"] for m in mine]),
                        "peak_memory_bytes": max(m["peak_memory_bytes"] for m in mine),
                    }
                )
        return rows

    def _table(self, rows: list[dict[str, Any]]) -> str:
        """The summary as Markdown: a speed is the median, then the lowest and the highest."""
        lines = [
            f"| prompts of {self.prompt_tokens} + {self.new_tokens} new tokens | batch | tokens/s | x {BASELINE} "
            "| decoding, tokens/s | of the memory limit | first token | peak memory |",
            "|---|--:|--:|--:|--:|--:|--:|--:|",
        ]
        for row in rows:
            speed, fraction, times = row["tokens_per_s"], row["fraction_of_memory_limit"], row["times_baseline"]
            cells = [
                row["contestant"],
                str(row["batch_size"]),
                f"{speed['median']:.1f} ({speed['min']:.1f}-{speed['max']:.1f})",
                "" if times is None else f"{times:.2f}",
                f"{row['decode_tokens_per_s']['median']:.1f}",
                "" if fraction is None else f"{fraction:.0%} of {row['memory_limit_tokens_per_s']:.1f}",
                f"{row['first_token_seconds']['median'] * 1000:.0f} ms",
                size(row["peak_memory_bytes"]),
            ]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)


def weights_per_token(vocab_size: int, model: dict[str, Any]) -> int:
    """How many weights a generated token is multiplied with: those of all linear layers, the head among them.

    Nearly all that is read from memory for it: the rest is one row of each embedding, vectors, and the keys and values
    of the tokens before.
    """
    with torch.device("meta"):  # shapes alone
        skeleton = GPT(vocab_size=vocab_size, **model)
    linear = [module for module in skeleton.h.modules() if isinstance(module, torch.nn.Linear)]
    return sum(module.weight.numel() for module in linear) + skeleton.wte.weight.numel()


_COMMAND = module("gpt2x.benchmark.generate_contestants")
