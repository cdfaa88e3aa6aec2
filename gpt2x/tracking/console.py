"""What a person sees while a run goes on: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)


class Progress:
    """Shows steps, losses, speed, time left and memory.

    `peak_memory()` gives bytes. Without a terminal, or with `bar` False, a line is logged every `log_seconds`.
    """

    def __init__(self, *, total_steps: int, log_seconds: float, peak_memory: Callable[[], int], bar: bool = True):
        self.total_steps, self.log_seconds, self.peak_memory = total_steps, log_seconds, peak_memory
        self.on_terminal = bar and _terminal_width() > 0
        self._bar = None
        self._val = ""

    @contextlib.contextmanager
    def running(self, step: int) -> Iterator[None]:
        """Show progress from `step` on until the block ends."""
        self._first, self._started = step, time.monotonic()
        self._logged = self._started
        if not self.on_terminal:
            yield
            return
        from tqdm import tqdm
        from tqdm.contrib.logging import logging_redirect_tqdm

        with (
            logging_redirect_tqdm([logging.getLogger("gpt2x")]),
            tqdm(total=self.total_steps, initial=step, unit="step", dynamic_ncols=True, smoothing=0.1) as self._bar,
        ):
            yield
        self._bar = None

    def step(self, step: int, loss: float, tokens_per_s: float) -> None:
        """One step was taken; `loss` is its training loss."""
        if self._bar is not None:
            memory = size(self.peak_memory())
            self._bar.set_postfix_str(f"loss {loss:.3f}{self._val}, {_count(tokens_per_s)} tok/s, {memory}", refresh=False)
            self._bar.update(step - self._bar.n)
            return
        now = time.monotonic()
        if now - self._logged < self.log_seconds:
            return
        self._logged = now
        left = (now - self._started) / max(1, step - self._first) * (self.total_steps - step)
        log.info(
            "step %d/%d  loss %.3f%s  %s tok/s  eta %s  memory %s",
            step, self.total_steps, loss, self._val, _count(tokens_per_s), clock(left), size(self.peak_memory()),
        )  # fmt: skip

    def evaluated(self, step: int, metrics: dict[str, float], best: bool) -> None:
        """An evaluation is done."""
        if "val/loss" in metrics:
            self._val = f" val {metrics['val/loss']:.3f}"
        shown = "  ".join(
            f"{name} {value:.4f}"
            for name, value in metrics.items()
            if not (name.endswith("perplexity") or name.count("/") > 1 or isinstance(value, (dict, list)))
        )
        log.info("step %d/%d  %s%s", step, self.total_steps, shown, "  (best so far)" if best and step else "")

    def sampled(self, sample: dict[str, str]) -> None:
        """A text was generated: after its prompt, or as the answer to a question. Empty lines are left out here."""
        if "question" in sample:
            text = f"{sample['question']}\n-> {sample['text'].strip()}\n   (reference: {sample['reference']})"
        else:
            text = sample["prompt"] + sample["text"]
        log.info("  | %s", "\n  | ".join(line for line in text.splitlines() if line.strip()))


def _terminal_width() -> int:
    """Columns of the terminal behind stderr; 0 where there is none, or one that does not know its size."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        return 0


def _count(n: float) -> str:
    return f"{n / 1000:.1f}k" if n >= 1000 else f"{n:.0f}"


def clock(seconds: float) -> str:
    """Seconds as 1:05 or 2:01:05."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


def size(n: float) -> str:
    """Bytes as 512 MB or 1.5 GB (of 10^9 bytes)."""
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.0f} MB"
