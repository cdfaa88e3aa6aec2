"""A small training run as a real process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
SMALL = [
    "model.n_layer=2", "model.n_head=2", "model.n_embd=32", "model.context_length=32", "model.dropout=0.1",
    "tokenizer.vocab_size=300", "data.batch_size=4", "device.threads=1", "logger=none", "sampling.max_new_tokens=5",
    "trainer.max_steps=150", "trainer.eval_every=25", "trainer.checkpoint_every=10", "trainer.log_every=1",
    "trainer.ema_decay=0.9", "trainer.accumulate=2", "data.val_fraction=0.02", "device.kernels=true",
]  # fmt: skip


def start(run_dir: Path, *overrides: str) -> subprocess.Popen:
    """Start gpt2x-train in `run_dir`, whose parent holds the cache too."""
    where = [f"paths.outputs={run_dir.parent / 'outputs'}", f"hydra.run.dir={run_dir}"]
    return _start(*SMALL, *where, *overrides)


def resume(run_dir: Path, *overrides: str, **settings) -> subprocess.Popen:
    """Start gpt2x-train to go on with the run in `run_dir`; `settings` go to Popen."""
    return _start(f"resume={run_dir}", *overrides, **settings)


def _start(*arguments: str, **settings) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *arguments]
    environment = os.environ | {"WANDB_MODE": "disabled"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, **settings)


def wait_for(condition, process: subprocess.Popen, seconds: float = 120) -> None:
    """Wait until `condition()`; fails if the process ends first."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "the moment never came"
        time.sleep(0.005)


def finish(process: subprocess.Popen) -> str:
    """Wait for a run that must succeed; returns what it printed."""
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 0, output
    return output


def rows(run_dir: Path) -> int:
    """Whole lines in metrics.jsonl."""
    path = run_dir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def outcome(run_dir: Path) -> dict[str, bytes]:
    """The bytes of the last checkpoint's tensors, and the metrics without what depends on the clock."""
    import json

    folder = sorted((run_dir / "checkpoints").glob("step-*"))[-1]
    result = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    result["metrics"] = json.dumps(
        [{k: v for k, v in line.items() if k not in ("seconds", "tokens_per_s")} for line in lines]
    ).encode()
    result["samples"] = (run_dir / "samples.jsonl").read_bytes()
    return result
