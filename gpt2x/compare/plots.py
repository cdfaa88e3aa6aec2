"""A metric of many runs as one picture, for a paper or a README."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2x.compare.curves import Judgement
from gpt2x.compare.runs import Runs
from gpt2x.compare.statistics import Group
from gpt2x.compare.tables import short_keys
from gpt2x.config.option import show
from gpt2x.errors import UserError
from gpt2x.files import replacing

if TYPE_CHECKING:
    import pandas as pd

LABELS = {"step": "step", "tokens": "tokens", "seconds": "seconds of work", "flops": "training FLOPs"}
_SHOWN = 12  # groups that a legend names


def smooth(values: pd.Series, smoothing: float) -> pd.Series:
    """A series' exponential moving average: each point weighs `smoothing` of what the next one does, the first one included."""
    return values.ewm(alpha=1 - smoothing, adjust=True).mean() if smoothing else values


def plot_curves(
    runs: Runs,
    path: Path,
    groups: list[Group],
    *,
    metric: str,
    x: str = "step",
    smoothing: float = 0.0,
    log_x: bool = False,
    log_y: bool = False,
    judgements: Sequence[Judgement] = (),
) -> Path:
    """Draw `metric` over `x`, a line a run, runs that differ in nothing but the seed in one colour; returns `path`.

    The file's ending says of which kind it is. Over steps, the bands that runs were judged by are drawn too.

    Raises:
        UserError: there is nothing to draw.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure  # without pyplot there is no window system to look for

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    n_drawn, names = 0, short_keys(list(groups[0].settings))
    for number, group in enumerate(groups):
        label = " ".join(f"{names[column]}={show(value)}" for column, value in group.settings.items()) or metric
        for run in group.runs:
            curve = runs.curve(run, metric, x)
            if log_x:
                curve = curve[curve[x] > 0]
            if curve.empty:
                continue
            color = colormaps["tab10"](number % 10) if len(groups) <= 10 else colormaps["viridis"](number / len(groups))
            marker = "o" if len(curve) <= 30 else None
            y = smooth(curve[metric], smoothing)
            axes.plot(curve[x], y, color=color, label=label, linewidth=1, markersize=3, marker=marker, alpha=0.8)
            label, n_drawn = None, n_drawn + 1
    if not n_drawn:
        raise UserError(f"{path}: no run has both {metric} and {x} to draw")
    for curve in {judgement.curve.name: judgement.curve for judgement in judgements if x == "step"}.values():
        low, high = ([m + sign * h for m, h in zip(curve.mean, curve.half_widths, strict=True)] for sign in (-1, 1))
        axes.fill_between(curve.steps, low, high, color="gray", alpha=0.25, label=f"expected of {curve.name}: 95 % band")
    axes.set(xlabel=LABELS[x], ylabel=metric, xscale="log" if log_x else "linear", yscale="log" if log_y else "linear")
    axes.grid(alpha=0.3, which="both")
    if len(groups) <= _SHOWN:
        axes.legend(fontsize="small")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format=path.suffix[1:])
    return path
