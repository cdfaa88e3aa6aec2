"""What the numbers of runs show, and what they do not: means over seeds, and verdicts between two settings.

Runs in, groups of runs that differ in nothing but the seed out, each with the mean, its standard error, and the 95 %
interval of its difference to another one. Only finished runs count: one that was stopped early has another result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING

from gpt2x.compare.runs import AXES, Runs
from gpt2x.config.check import similar
from gpt2x.config.option import ConfigError
from gpt2x.config.schema import REPEATED

if TYPE_CHECKING:
    import pandas as pd

CONFIDENCE = 0.95
_GROWING = {"accuracy", "balanced_accuracy", "f1", "auroc", "precision", "recall", "tokens_per_s"}


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed.

    `settings` are those that other groups have otherwise, by the names of the table's columns. `runs` are all of the runs,
    `values` the metric of each seed that finished with one; a seed that ran more than once counts once, with the mean, and
    a run of which no seed is known does not count.
    """

    settings: dict[str, object]
    runs: list[str]
    values: dict[int, float]

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        return math.fsum(self.values.values()) / self.n if self.n else math.nan

    @property
    def deviation(self) -> float:
        """The standard deviation over seeds; NaN below two."""
        if self.n < 2:
            return math.nan
        return math.sqrt(math.fsum((value - self.mean) ** 2 for value in self.values.values()) / (self.n - 1))

    @property
    def error(self) -> float:
        """The standard error of the mean; NaN below two."""
        return self.deviation / math.sqrt(self.n) if self.n else math.nan


@dataclass(frozen=True)
class Verdict:
    """Whether one group is better than another: `difference` of the means and the half width of its 95 % interval.

    `n` are the seeds of the two, one number where they are `paired`. Where an interval needs more seeds, `half` is NaN.
    """

    difference: float
    half: float
    n: tuple[int, ...]
    paired: bool
    grows: bool = False

    @property
    def shown(self) -> bool:
        """Whether the interval leaves no doubt about the sign."""
        return self.difference != 0 and abs(self.difference) > self.half

    @property
    def better(self) -> bool:
        return self.shown and (self.difference > 0) == self.grows

    def __str__(self) -> str:
        seeds = f"n={' and '.join(map(str, self.n))}"
        if math.isnan(self.half):
            return f"{seeds}: no verdict"
        how = f"(95 %, {seeds}, {'paired' if self.paired else 'unpaired'})"
        if not self.shown:
            return f"no difference shown: {rounded(self.difference, self.half, sign=True)} {how}"
        return f"{'better' if self.better else 'worse'} by {rounded(abs(self.difference), self.half)} {how}"


def higher_is_better(metric: str) -> bool:
    """Whether a metric, such as "val/accuracy", is the better the larger it is; a loss is not."""
    return not _GROWING.isdisjoint(metric.removeprefix("last.").split("/"))


def values(runs: Runs, metric: str) -> pd.Series:
    """The metric of each run, NaN where it was not measured: its best over the run, with "last.NAME" its last evaluation's.

    Raises:
        ConfigError: no run has it.
    """
    table = runs.table
    if metric.startswith("last."):
        if metric in table:
            return table[metric]
    elif metric in runs.metrics:
        best = runs.metrics.groupby("run", observed=False)[metric].agg("max" if higher_is_better(metric) else "min")
        series = best.reindex(table.index).astype("float64")
        return series.fillna(table["metric"].where(table["metric_name"] == metric)).rename(metric)
    elif metric == "val/loss":  # which every run has in the end
        return table["metric"].rename(metric)
    logged = sorted((name for name in runs.metrics if name not in ("run", *AXES)), key=lambda name: not name.startswith("val/"))
    found = [*logged, *(name for name in table if name.startswith("last."))]
    close = similar(metric, found)
    problem = "none of these runs has logged it" + (f"; did you mean {close[0]}?" if close else "")
    raise ConfigError("metric", metric, problem, f"there are: {', '.join(found) or 'none'}")


def decisive(runs: Runs) -> list[str]:
    """The columns of settings that decide what a run computes, but for the seed and the number of threads."""
    return runs.setting_columns(REPEATED)


def seeds(runs: Runs) -> pd.Series:
    """The seed of each run; missing where its configuration tells none."""
    import pandas as pd

    known = runs.table["config.seed"] if "config.seed" in runs.table else [None] * len(runs)
    whole = [seed if isinstance(seed, Integral) and 0 <= seed < 2**32 else None for seed in known]
    return pd.Series(whole, index=runs.table.index, dtype="Int64")


def groups(runs: Runs, metric: str) -> list[Group]:
    """Runs that differ in nothing but the seed, together; the best mean first, groups that have none last."""
    settings = decisive(runs)
    texts = runs.table[settings].map(str)
    differing = [column for column in settings if texts[column].nunique() > 1]
    measured = values(runs, metric).where(runs.table["status"] == "finished")
    found, seed = [], seeds(runs)
    keys = texts[differing].agg("\0".join, axis=1) if differing else texts.index.map(lambda run: "")
    for _, part in runs.table.groupby(list(keys), sort=False):
        by_seed = measured[part.index].dropna().groupby(seed[part.index]).mean()
        first = part.iloc[0]
        found.append(
            Group(
                {column: first[column] for column in differing},
                list(part.index),
                {int(seed): float(value) for seed, value in by_seed.items()},
            )
        )
    sign = -1 if higher_is_better(metric) else 1
    return sorted(found, key=lambda group: (group.n == 0, sign * group.mean))


def compare(values: Mapping[int, float], baseline: Mapping[int, float], *, grows: bool = False) -> Verdict:
    """Is what gave `values` better than what gave `baseline`? Both are a metric by seed; `grows`: larger is better.

    Of the same seeds, two or more, the differences of each are looked at (Student's paired t interval): what a seed does to
    both sides falls out. Else the two means are, over all seeds of each (Welch, 1947). Pairs of the seeds that both happen to
    have would leave out the others, so that the difference would not be the one of the means, and a seed that went badly on
    one side alone would go unseen; Welch's interval is at worst too wide, where seeds act on both sides alike. The choice
    depends on the seeds alone, never on the result. The interval takes the mean for normally distributed over seeds, and
    holds for one comparison; of many, a twentieth will be off.
    """
    from scipy.stats import t

    n = len(values)
    same = set(values) == set(baseline)
    if same and n >= 2:
        mean, variance = _mean_and_variance([values[seed] - baseline[seed] for seed in sorted(values)])
        half = t.ppf((1 + CONFIDENCE) / 2, n - 1) * math.sqrt(variance / n)
        return Verdict(mean, float(half), (n,), True, grows)
    sizes = (len(values), len(baseline))
    if 0 in sizes:
        return Verdict(math.nan, math.nan, sizes, False, grows)
    (mean, variance), (other_mean, other_variance) = map(_mean_and_variance, (list(values.values()), list(baseline.values())))
    if 1 in sizes:
        return Verdict(mean - other_mean, math.nan, (1,) if same else sizes, False, grows)
    a, b = variance / sizes[0], other_variance / sizes[1]
    half = 0.0
    if a + b > 0:
        freedom = (a + b) ** 2 / (a**2 / (sizes[0] - 1) + b**2 / (sizes[1] - 1))
        half = float(t.ppf((1 + CONFIDENCE) / 2, freedom) * math.sqrt(a + b))
    return Verdict(mean - other_mean, half, sizes, False, grows)


def _mean_and_variance(numbers: list[float]) -> tuple[float, float]:
    mean = math.fsum(numbers) / len(numbers)
    return mean, math.fsum((x - mean) ** 2 for x in numbers) / (len(numbers) - 1) if len(numbers) > 1 else math.nan


def rounded(value: float, error: float = math.nan, *, sign: bool = False) -> str:
    """A number as exactly as its error allows, two digits of that one: "1.8123 ± 0.0041"; without one, four decimals."""
    plus = "+" if sign else ""
    if math.isnan(value):
        return "-"
    if not error > 0 or not math.isfinite(error):  # unknown, or none at all
        text = f"{value:{plus}.4f}"
        return text if math.isnan(error) else f"{text} ± 0"
    decimals = min(12, max(0, 1 - math.floor(math.log10(error))))
    return f"{value:{plus}.{decimals}f} ± {error:.{decimals}f}"
