"""The learning-rate range test: from the losses of a run whose rate rose all the time to a rate that is worth trying.

Data comes in as the rows of metrics.jsonl of a run with schedule=range_test, and leaves as a number and a picture.
After Smith, "Cyclical Learning Rates for Training Neural Networks" (2015).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt2x.files import replacing
from gpt2x.tracking.tracker import read_metrics


@dataclass(frozen=True)
class LRRange:
    """What a range test found; `lr`, `loss` and `smoothed` (nats) are arrays of one number a step.

    `suggested` is the rate at which the smoothed loss fell fastest on its way down; None if it never fell.
    """

    lr: np.ndarray
    loss: np.ndarray
    smoothed: np.ndarray
    suggested: float | None


def lr_range(lr: np.ndarray, loss: np.ndarray) -> LRRange:
    """Find where the loss falls fastest on a logarithmic axis of rising learning rates.

    The loss is averaged with a Gaussian around each step, whose width is a fiftieth of the steps: an average of past
    steps alone would lag, and put everything at too high a rate. Only what comes before its lowest point counts.
    """
    lr, loss = np.asarray(lr, dtype=float), np.asarray(loss, dtype=float)
    distance = np.arange(len(loss))[:, None] - np.arange(len(loss))
    weights = np.exp(-0.5 * (distance / max(1.0, len(loss) / 50)) ** 2)
    smoothed = weights @ loss / weights.sum(axis=1)
    way_down = slice(0, int(smoothed.argmin()) + 1)
    suggested = None
    if way_down.stop > 2:
        slope = np.gradient(smoothed[way_down], np.log(lr[way_down]))
        suggested = float(lr[slope.argmin()]) if slope.min() < 0 else None
    return LRRange(lr, loss, smoothed, suggested)


def read_lr_range(run_dir: Path) -> LRRange | None:
    """The range test of a run's folder; None if it logged fewer than ten steps."""
    rows = [row for row in read_metrics(run_dir) if row.get("train/loss") is not None]
    if len(rows) < 10:
        return None
    return lr_range(np.array([row["lr"] for row in rows]), np.array([row["train/loss"] for row in rows]))


def plot_lr_range(found: LRRange, path: Path, title: str, setting: str) -> None:
    """Draw the loss over the learning rate, which is a `setting`, the suggestion marked, as a PNG."""
    from matplotlib.figure import Figure  # without pyplot there is no window system to look for

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(found.lr, found.loss, color="tab:blue", linewidth=0.8, alpha=0.4, label="training loss")
    axes.plot(found.lr, found.smoothed, color="tab:blue", label="smoothed")
    if found.suggested is not None:
        axes.axvline(found.suggested, color="tab:orange", linestyle="--", label=f"falls fastest at {found.suggested:.2g}")
    low, high = found.smoothed.min(), found.smoothed[: len(found.smoothed) // 4 + 1].max()
    margin = 0.2 * (high - low) + 1e-3
    axes.set(title=title, xlabel=setting, ylabel="loss (nats)", xscale="log", ylim=(low - margin, high + 2 * margin))
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
