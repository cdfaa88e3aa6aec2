"""Which runs a sweep makes: a search is asked for trials and told what came of them.

The space comes from the command line and `sweep.params`; the sweep loop (config/multirun.py) turns each trial into the
overrides of a run. Nothing here knows how a run is made.
"""

from __future__ import annotations

import itertools
import re
import statistics
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2x.config.option import ConfigError


@dataclass(frozen=True)
class Choices:
    """Values to choose among, as one would type them in an override."""

    values: tuple[str, ...]


@dataclass(frozen=True)
class Interval:
    """Numbers from `low` to `high`, both included; `log`: their logarithms count; `integer`: whole ones only."""

    low: float
    high: float
    log: bool = False
    integer: bool = False


Space = dict[str, Choices | Interval]
"""Dotted name of a setting, or a group -> its values."""


@dataclass(frozen=True)
class Trial:
    """One run to make: `number` is the name of its folder, `values` its overrides beside those that all runs share."""

    number: int
    values: dict[str, str]


class Search(ABC):
    """Chooses the trials of a sweep.

    `learns` says whether results decide what comes next: such a search is asked for as many trials as run side by side,
    any other one for all at once.
    """

    learns = False
    pruning: Callable[[int], Any] | None = None
    """Makes, of a trial's number, what may give its run up (see Trainer); None: nothing does. It is sent to other processes."""

    told_by: str | None = None
    """The one value of a trial that says which it is, for a table that cannot show all; None: all of them are needed."""

    best_are = "best"
    """What `best` gives: the best one, or those that are "pareto"-optimal."""

    @abstractmethod
    def ask(self, n: int) -> list[Trial]:
        """The next trials, at most `n`; none when nothing is left."""

    @abstractmethod
    def tell(self, trial: Trial, result: dict[str, Any] | None) -> None:
        """Take what came of a trial that ended: the content of its result.json, or None if it failed without one.

        What was interrupted is not told; it is to be gone on with.
        """

    def best(self) -> list[Path] | None:
        """The folder of the best trial's run, or of all that no other one beats in several objectives; None: the lowest
        metric's."""
        return None


class Listed(Search):
    """Trials that are known from the start."""

    def __init__(self, values: Iterable[dict[str, str]]):
        self._trials: Iterator[Trial] = (Trial(number, chosen) for number, chosen in enumerate(values))

    def ask(self, n: int) -> list[Trial]:
        return list(itertools.islice(self._trials, n))

    def tell(self, trial: Trial, result: dict[str, Any] | None) -> None:
        """Nothing: what comes next does not depend on it."""


class Grid(Listed):
    """Every combination, the last axis changing fastest; of an empty space the one that sets nothing.

    `settings` are those of the sweep loop. Raises ConfigError for an interval, which has no list of values.
    """

    def __init__(self, space: Space, **settings: Any):
        combinations = itertools.product(*lists(space).values())
        super().__init__(dict(zip(space, values, strict=True)) for values in combinations)


class Paired(Listed):
    """The first values of all axes, then the second ones, ...; of an empty space the one that sets nothing.

    `settings` are those of the sweep loop. Raises ConfigError for an interval, and for axes of unequal lengths.
    """

    def __init__(self, space: Space, **settings: Any):
        axes = lists(space)
        for key, values in axes.items():
            if len(values) != (length := len(next(iter(axes.values())))):
                problem = f"{len(values)} values, and {next(iter(axes))} has {length}; sweep=paired takes one of each"
                raise ConfigError(key, ",".join(values), problem, "give lists of one length, or use sweep=grid")
        super().__init__(dict(zip(axes, values, strict=True)) for values in (zip(*axes.values()) if axes else [()]))


class OneAtATime(Listed):
    """The first values of all axes, which are the plain recipe; then that with one other value, of each axis in turn.

    Each trial is named after what is changed in it, such as "mlp-relu2", the first one "plain". `settings` are those of the
    sweep loop. Raises ConfigError for an interval, which has no list of values.
    """

    told_by = "name"

    def __init__(self, space: Space, **settings: Any):
        axes = lists(space)
        if "name" in axes:
            problem = "sweep=one_at_a_time names each run after what is changed in it"
            raise ConfigError("name", ",".join(axes["name"]), problem, "leave it out")
        plain = {key: values[0] for key, values in axes.items()}
        changes = [(key, value) for key, values in axes.items() for value in values[1:]]
        super().__init__(
            [
                plain | {"name": "plain"},
                *(plain | {key: value, "name": _label(key, value)} for key, value in changes),
            ]
        )


def _label(key: str, value: str) -> str:
    """A name for a run with this value, fit for a folder."""
    told = {"True": "true", "False": "false"}.get(value, value)
    return re.sub(r"[^\w.+-]", "_", f"{key.rpartition('.')[2]}-{told}")[:100]


class Repeated(Search):
    """Another search, none that gives runs up, each of whose trials is made once for each of `values` of the setting `key`,
    such as a seed.

    That search is told the mean of a trial's metrics, once all its repetitions are done.
    """

    def __init__(self, search: Search, key: str, values: tuple[str, ...]):
        self.search, self.key, self.values = search, key, values
        self.learns, self.best_are, self.told_by = search.learns, search.best_are, search.told_by
        self._next: deque[Trial] = deque()
        self._asked: dict[int, Trial] = {}
        self._results: dict[int, list[dict[str, Any] | None]] = {}

    def ask(self, n: int) -> list[Trial]:
        each = len(self.values)
        while len(self._next) < n and (more := self.search.ask(-(-(n - len(self._next)) // each))):
            for trial in more:
                self._asked[trial.number] = trial
                for i, value in enumerate(self.values):
                    self._next.append(Trial(trial.number * each + i, trial.values | {self.key: value}))
        return [self._next.popleft() for _ in range(min(n, len(self._next)))]

    def tell(self, trial: Trial, result: dict[str, Any] | None) -> None:
        number = trial.number // len(self.values)
        results = self._results.setdefault(number, [])
        results.append(result)
        if len(results) == len(self.values):
            self.search.tell(self._asked[number], mean_result(results))

    def best(self) -> list[Path] | None:
        best, each = self.search.best(), len(self.values)
        return None if best is None else [run.with_name(str(int(run.name) * each + i)) for run in best for i in range(each)]


def mean_result(results: list[dict[str, Any] | None]) -> dict[str, Any] | None:
    """The first result with the mean of everything that is a number. One that did not finish, or has no metric, or None
    stands for all: a trial is no better for the repetitions that failed."""
    for result in results:
        if result is None or result["status"] != "finished" or result.get("metric") is None:
            return result
    return _mean(results)


def _mean(values: list[Any]) -> Any:
    """The mean of numbers, of each entry of mappings; of anything else the first."""
    if all(isinstance(value, dict) for value in values):
        return {key: _mean([value[key] for value in values]) for key in values[0] if all(key in value for value in values)}
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    return statistics.fmean(values) if numbers else values[0]


def lists(space: Space) -> dict[str, tuple[str, ...]]:
    """The values of each axis. Raises ConfigError for an interval."""
    for key, axis in space.items():
        if isinstance(axis, Interval):
            interval = f"interval({axis.low:g},{axis.high:g})"
            remedy = f"list the values: {key}=...,..."
            raise ConfigError(key, interval, "an interval is for a search, such as gpt2x-train's sweep=random", remedy)
    return {key: axis.values for key, axis in space.items()}


def check_space(space: Space) -> None:
    """Raise ConfigError for a space in which nothing can be searched."""
    if not space:
        problem = "there is nothing to search: no setting has several values"
        raise ConfigError("", None, problem, "such as optimizer.lr='interval(1e-4,1e-2)' or model.n_layer=2,4,6")
    for key, axis in space.items():
        if isinstance(axis, Interval):
            interval = f"interval({axis.low:g},{axis.high:g})"
            if axis.low > axis.high:
                raise ConfigError(key, interval, "the interval starts above where it ends")
            if axis.log and axis.low <= 0:
                raise ConfigError(key, interval, "logarithms are of numbers above 0", "leave out the tag log")
