"""suite=load: how long it takes until a trained model is there, and how much memory, from each form that we read.

Data comes in as settings; a table and a report, plain data with every measurement, go out. One model of random weights, with
GPT-2's tokenizer, is written as a run, as OpenAI's files and as Hugging Face's. Each contestant (load_contestants.py) is a
new process in each round, which has imported what it needs before the clock starts. The files have just been written or read:
they lie in the system's memory, so that the disk's speed is no part of it. What is loaded then computes the logits of three
tokens: that shows that it is the model, and makes one that has only been mapped into memory be there.
"""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

from gpt2x.benchmark.contest import Contest, by_contestant, enter, module, spread
from gpt2x.benchmark.load_contestants import CONTESTANTS, LOGITS
from gpt2x.benchmark.process import FreshWorker, WorkerError
from gpt2x.config.compose import compose, to_yaml
from gpt2x.config.schema import TrainConfig
from gpt2x.files import write_atomic
from gpt2x.tokenizer.gpt2 import GPT2Tokenizer
from gpt2x.tracking.console import size

_TOLERANCE = 1e-3  # of logits, a thousandth of what other weights would make of them
_WEIGHTS = {  # the file of each form that holds the weights
    "run": f"checkpoints/step-{0:08d}/model.safetensors",
    "openai": "model.ckpt.data-00000-of-00001",
    "safetensors": "model.safetensors",
    "bin": "pytorch_model.bin",
}


class LoadSuite:
    """Measures how a model is loaded."""

    def __init__(self, *, name: str, contestants: list[str] | None, rounds: int, timeout: float):
        self.name, self.contestants, self.rounds, self.timeout = name, contestants or list(CONTESTANTS), rounds, timeout

    def run(self, *, model: dict[str, Any], device: dict[str, Any], seed: int, cache: str | Path) -> dict[str, Any]:
        """Measure, and return a report: plain data, of which "table" is Markdown to print.

        `model` holds GPT's arguments but for the vocabulary, which is GPT-2's. `device` holds those of Device; `cache` is a
        folder for files that are gone at the end. A contestant that cannot take part is "skipped"; one that ends, takes
        longer than `timeout` or has loaded another model has "failed", each with its "reason".
        """
        entries = [enter(name, CONTESTANTS[name].requires, _reason(name, model)) for name in self.contestants]
        forms = {CONTESTANTS[entry["name"]].form for entry in entries if entry["status"] == "ready"}
        Path(cache).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            job = {"folder": folder, "threads": device["threads"], "tokens": [464, 1468, 582]}
            expected = write_forms(Path(folder), forms, model, seed=seed, tokens=job["tokens"])
            sizes = {form: Path(folder, form, _WEIGHTS[form]).stat().st_size for form in forms}

            def check(answer: dict[str, Any]) -> None:
                if not all(math.isclose(a, b, abs_tol=_TOLERANCE) for a, b in zip(answer["logits"], expected, strict=True)):
                    raise WorkerError(f"it has loaded another model: its logits are {answer['logits']}, not {expected}")

            limits = dict(timeout=self.timeout, threads=device["threads"])
            with Contest(_COMMAND, entries, **limits, worker=FreshWorker) as contest:
                contest.load(lambda name: job | {"contestant": name})
                turns = list(contest.measure(self.rounds, {}, check=check, description="each loads it once"))
        rows = self._summary(by_contestant(entries, [turn for turn in turns if turn["round"]]), sizes)
        return {
            "suite": self.name,
            "contestants": entries,
            "measurements": turns,  # round 0, the first, does not count in the summary
            "summary": rows,
            "table": self._table(rows),
        }

    def _summary(self, taken: dict[str, list[dict]], sizes: dict[str, int]) -> list[dict[str, Any]]:
        """One row for each contestant."""
        rows = []
        for name, mine in taken.items():
            file, above = sizes[CONTESTANTS[name].form], [m["peak_memory_bytes"] - m["held_bytes"] for m in mine]
            rows.append(
                {
                    "contestant": name,
                    "file_bytes": file,
                    "load_seconds": spread([m["load_seconds"] for m in mine]),
                    "ready_seconds": spread([m["ready_seconds"] for m in mine]),
                    "peak_above_bytes": spread(above),
                    "times_file": spread(above)["median"] / file,
                }
            )
        return rows

    def _table(self, rows: list[dict[str, Any]]) -> str:
        """The summary as Markdown: medians, of the seconds with the lowest and the highest in brackets."""
        lines = ["| loading | file | seconds | with the first logits | memory on top | x file |", "|---|--:|--:|--:|--:|--:|"]
        for row in rows:
            cells = [
                row["contestant"],
                size(row["file_bytes"]),
                _seconds(row["load_seconds"]),
                _seconds(row["ready_seconds"]),
                size(row["peak_above_bytes"]["median"]),
                f"{row['times_file']:.2f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)


def _seconds(values: dict[str, float]) -> str:
    return f"{values['median']:.2f} ({values['min']:.2f}-{values['max']:.2f})"


def write_forms(folder: Path, forms: set[str], model: dict[str, Any], *, seed: int, tokens: list[int]) -> list[float]:
    """Write a model of random weights in these forms, each into a folder in `folder`; gives its first logits after `tokens`."""
    import torch
    from safetensors.torch import load_file

    from gpt2x.interop import openai
    from gpt2x.interop.huggingface_export import write_huggingface
    from gpt2x.model.gpt import GPT

    tokenizer = GPT2Tokenizer()
    made = GPT(**model, vocab_size=tokenizer.vocab_size, generator=torch.Generator().manual_seed(seed)).eval()
    if "run" in forms:
        _write_run(folder / "run", made, model, tokenizer)
    if "openai" in forms:
        openai.write(folder / "openai", made, tokenizer)
    for form in forms & {"safetensors", "bin"}:
        write_huggingface(folder / form, made, tokenizer)
    if "bin" in forms:
        weights = folder / "bin" / "model.safetensors"
        torch.save(load_file(weights), folder / "bin" / "pytorch_model.bin")
        weights.unlink()
    with torch.inference_mode():
        return made(torch.tensor([tokens]))[0, -1, :LOGITS].tolist()


def _write_run(folder: Path, made: Any, model: dict[str, Any], tokenizer: GPT2Tokenizer) -> None:
    """A run's folder, as far as loading its model needs one."""
    from gpt2x.tokenizer import base as tokenizers
    from gpt2x.training.checkpoint import Checkpoints

    shape = (f"model.{name}={json.dumps(value)}" for name, value in model.items())
    config = compose("train", TrainConfig, ["tokenizer=gpt2", *shape])
    state = {"step": 0, "best_step": None, "identity": {"tokenizer": tokenizer.fingerprint}}
    Checkpoints(folder / "checkpoints").save(state, {"model": dict(made.named_parameters())})
    write_atomic(folder / "config.yaml", to_yaml(config))
    tokenizers.save(tokenizer, folder)


def _reason(name: str, model: dict[str, Any]) -> str | None:
    """Why a contestant cannot take part."""
    if CONTESTANTS[name].form == "openai" and not model["tied_head"]:
        return "OpenAI's files hold no head of its own: use model.tied_head=true"
    return None


_COMMAND = module("gpt2x.benchmark.load_contestants")
