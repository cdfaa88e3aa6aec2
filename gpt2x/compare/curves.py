"""Is my curve normal? Expected validation losses of known recipes, and whether a run keeps to them.

A curve is made from runs that differ in nothing but the seed (`make_curve`) and kept as a small JSON file: one's own lie in
the folder curves of the outputs, those that ship in curves/ beside this module. `judge` holds a run of the same settings
against it.

The band is where one more run of the recipe lies with 95 % probability, at all of its evaluations together: at each of K
steps Student's prediction interval, mean ± t * s * sqrt(1 + 1/n) with n - 1 degrees of freedom, at 1 - 0.05 / K
(Bonferroni). So of a hundred healthy runs five at most are told to be odd. It takes losses for normally distributed over
seeds. Few seeds make it wide: with 3 it is some 16 standard deviations at 10 steps, with 5 it is 6, with 10 it is 4.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpt2x.compare.runs import Runs, cell, flat
from gpt2x.compare.statistics import Group, groups, rounded, seeds
from gpt2x.config.check import defaults
from gpt2x.config.schema import OBSERVED, TrainConfig, is_any_of
from gpt2x.errors import UserError
from gpt2x.files import write_atomic
from gpt2x.tracking.result import read_result

SHIPPED = Path(__file__).parent / "curves"
METRIC = "val/loss"
AT_LEAST = 3  # seeds
CONFIDENCE = 0.95
ROUNDING = 1e-4
"""Nats by which rounding alone may move a loss: the least half width of a band."""


@dataclass(frozen=True)
class Curve:
    """An expected validation loss: at each of `steps` its `mean` (nats) and standard `deviation` over `seeds`.

    `settings` are those that decide it, by their dotted names; a run that has the same is held against it.
    """

    name: str
    settings: dict[str, Any]
    seeds: list[int]
    versions: dict[str, str]
    steps: list[int]
    mean: list[float]
    deviation: list[float]

    @property
    def half_widths(self) -> list[float]:
        """Half the width of the band at each step."""
        from scipy.stats import t

        n, share = len(self.seeds), (1 - CONFIDENCE) / len(self.steps)
        factor = float(t.ppf(1 - share / 2, n - 1)) * math.sqrt(1 + 1 / n)
        return [max(ROUNDING, factor * deviation) for deviation in self.deviation]

    def matches(self, settings: dict[str, Any]) -> bool:
        """Whether a run with these settings (`Runs.settings`) is one of this recipe.

        A setting that did not exist when the curve was made has its default.
        """
        known: dict[str, Any] = {}
        for key, value in self.settings.items():
            *path, name = key.split(".")
            functools.reduce(lambda node, part: node.setdefault(part, {}), path, known)[name] = value
        default = {key: cell(value) for key, value in flat(defaults(TrainConfig, known)).items() if value is not None}
        return _learned_from(default | self.settings) == _learned_from(settings)


@dataclass(frozen=True)
class Judgement:
    """How a run compares with a curve: its `losses` at the `steps` that both have, and the first of those outside the band."""

    curve: Curve
    steps: list[int]
    losses: list[float]
    expected: list[tuple[float, float]]  # mean and half width of the band
    first_outside: int | None  # an index into these

    @property
    def inside(self) -> bool:
        return self.first_outside is None

    def __str__(self) -> str:
        who = f"{self.curve.name} (n={len(self.curve.seeds)})"
        n_all = len(self.curve.steps)
        done = "" if len(self.steps) == n_all else f" of {n_all}, as far as both were evaluated"
        (mean, half), loss = self.expected[-1], self.losses[-1]
        end = f"at step {self.steps[-1]:,} {METRIC} is {loss:.4f}, {loss - mean:+.4f} from the mean; band {rounded(mean, half)}"
        if self.first_outside is None:
            return f"as expected of {who}: inside the 95 % band at all {len(self.steps)} steps{done}; {end}"
        at = self.first_outside
        (there, width), value = self.expected[at], self.losses[at]
        where = "above" if value > there else "below"
        n_outside = sum(abs(loss - mean) > half for loss, (mean, half) in zip(self.losses, self.expected, strict=True))
        first = f"first at step {self.steps[at]:,}: {value:.4f}, band {rounded(there, width)}"
        left = f"it is {where} the 95 % band, {first}"
        return f"not as expected of {who}: at {n_outside} of {len(self.steps)} steps{done} {left}; {end}"


def _learned_from(settings: dict[str, Any]) -> dict[str, Any]:
    """Of all settings, by dotted names, those that decide what is learned at a step, but for the seed."""
    return {key: value for key, value in settings.items() if not is_any_of(key, OBSERVED)}


def make_curve(runs: Runs, name: str) -> Curve:
    """The curve of runs that differ in nothing but the seed. Raises UserError if they differ, or are fewer than three."""
    finished = runs.select(runs.table.index[runs.table["status"] == "finished"])
    found = groups(finished, METRIC) if len(finished) else []
    if len(found) > 1:
        differing = ", ".join(column.removeprefix("config.") for column in found[0].settings)
        raise UserError(f"save_curve={name}: these runs are of {len(found)} recipes: they differ in {differing}")
    used = sorted(found[0].values) if found else []
    if len(used) < AT_LEAST:
        problem = f"{len(used)} finished with different seeds, and the spread of a curve takes {AT_LEAST}; 5 or more are better"
        raise UserError(f"save_curve={name}: {problem}")
    group: Group = found[0]
    table = finished.metrics[["run", "step", METRIC]].dropna()
    table["seed"] = table["run"].astype(object).map(seeds(finished))
    losses = table.groupby(["step", "seed"])[METRIC].mean().unstack("seed")[used].dropna()
    if losses.empty:
        raise UserError(f"save_curve={name}: these runs were never evaluated at the same steps")
    folder = Path(finished.table.loc[group.runs[0], "folder"])
    return Curve(
        name=name,
        settings=_learned_from(finished.settings(group.runs[0])),
        seeds=used,
        versions=read_result(folder).get("versions", {}),
        steps=[int(step) for step in losses.index],
        mean=[round(float(mean), 6) for mean in losses.mean(axis=1)],
        deviation=[round(float(deviation), 6) for deviation in losses.std(axis=1)],
    )


def save_curve(curve: Curve, folder: Path) -> Path:
    """Write a curve as a JSON file; returns its path."""
    path = Path(folder) / f"{curve.name}.json"
    write_atomic(path, json.dumps(asdict(curve), indent=1) + "\n")
    return path


def load_curves(*folders: Path) -> Iterator[Curve]:
    """The curves in some folders, which need not be there. Raises UserError for a file that holds none."""
    for path in (path for folder in folders for path in sorted(Path(folder).glob("*.json"))):
        try:
            curve = Curve(**json.loads(path.read_text(encoding="utf-8")))
            if not (len(curve.steps) == len(curve.mean) == len(curve.deviation) >= 1 and len(curve.seeds) >= AT_LEAST):
                raise ValueError("its lists do not belong together")
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{path}: this is no curve ({error})") from None
        yield curve


def judge(runs: Runs, run: str, curve: Curve) -> Judgement | None:
    """Hold a run against a curve; None if they have no step in common."""
    logged = runs.curve(run, METRIC)
    loss_at = dict(zip(logged["step"].astype(int), logged[METRIC].astype(float), strict=True))
    points = [
        (step, loss_at[step], (mean, half))
        for step, mean, half in zip(curve.steps, curve.mean, curve.half_widths, strict=True)
        if step in loss_at
    ]
    if not points:
        return None
    steps, losses, expected = map(list, zip(*points, strict=True))
    outside = [i for i, (loss, (mean, half)) in enumerate(zip(losses, expected, strict=True)) if abs(loss - mean) > half]
    return Judgement(curve, steps, losses, expected, outside[0] if outside else None)
