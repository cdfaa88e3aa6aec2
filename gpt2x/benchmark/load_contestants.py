"""Who takes part in suite=load, and the process that each of them is.

The suite (load.py) starts `python -m gpt2x.benchmark.load_contestants` anew for every measurement. It reads a job, one line
of JSON, imports what the contestant needs, loads the model, writes what came of it as another line, and ends.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOGITS = 16  # as many of the last position's tell whether the weights are the right ones
Load = Callable[[str], Any]  # from a folder to a model, a call of which gives logits (B, T, V), or an object that has them


@dataclass(frozen=True)
class Contestant:
    """Loads what the suite has written in the folder `form`; `prepare` imports what is needed, and gives what loads."""

    form: str
    prepare: Callable[[], Load]
    requires: tuple[str, ...] = ()


def _gpt2x() -> Load:
    """What every command does with checkpoint=FOLDER: the tokenizer comes with it, and what has checksums is checked."""
    from gpt2x.interop import huggingface, openai, pretrained, tensorflow  # noqa: F401
    from gpt2x.training.load import load_run

    return lambda folder: load_run(folder).model


def _transformers() -> Load:
    """The model alone, in fp32."""
    from transformers import GPT2LMHeadModel

    return lambda folder: GPT2LMHeadModel.from_pretrained(folder, local_files_only=True).eval()


CONTESTANTS = {
    "run": Contestant("run", _gpt2x),
    "openai": Contestant("openai", _gpt2x),
    "hf-safetensors": Contestant("safetensors", _gpt2x),
    "hf-bin": Contestant("bin", _gpt2x),
    "transformers": Contestant("safetensors", _transformers, ("transformers",)),
}


def measure(job: dict[str, Any]) -> dict[str, Any]:
    import psutil
    import torch

    from gpt2x.device import peak_memory

    torch.set_num_threads(job["threads"])
    load = CONTESTANTS[job["contestant"]].prepare()
    held = psutil.Process().memory_info().rss
    started = time.perf_counter()
    model = load(str(Path(job["folder"]) / CONTESTANTS[job["contestant"]].form))
    loaded = time.perf_counter()
    with torch.inference_mode():
        logits = model(torch.tensor([job["tokens"]]))
    logits = getattr(logits, "logits", logits)[0, -1, :LOGITS].tolist()
    used = time.perf_counter()  # whoever maps the file reads it only now
    return {
        "load_seconds": loaded - started,
        "ready_seconds": used - started,
        "held_bytes": held,
        "peak_memory_bytes": peak_memory(),
        "logits": logits,
    }


if __name__ == "__main__":
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)  # what a library prints must not mix with the answer
        print(json.dumps(measure(json.loads(sys.stdin.readline()))), file=answers)
