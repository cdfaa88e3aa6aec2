"""Searches that learn from the runs before, with Optuna: a sampler proposes trials, a pruner gives hopeless runs up.

All that is known of a search stands in its study, a sqlite file: which trials there are, and what came of them. Several
processes may share it. Each proposal is drawn with a seed of its own, from the search's seed and the trial's number, so
that a search which was stopped and goes on proposes what it would have proposed anyway.

The trials of a study carry two notes: "job", the number by which the sweep knows the trial, and "folder", the sweep
that runs it. A job that failed and is run again is a second trial of the study with the same "job"; the newest one counts.
A trial with the values of a job that finished takes its result, is not run, and has the note "same_as". So it is not where
several are asked for at once, before any has finished: the random sampler alone then makes such a run twice.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2x.config.option import ConfigError, show
from gpt2x.errors import UserError
from gpt2x.sweep.config import SQLITE
from gpt2x.sweep.search import Choices, Interval, Search, Space, Trial, check_space
from gpt2x.tracking.tracker import one_line

if TYPE_CHECKING:
    from filelock import FileLock
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

log = logging.getLogger(__name__)


class OptunaSearch(Search):
    """Asks a study for trials and tells it what came of them. `OptunaConfig` describes the settings.

    Args:
        space: what is searched; at least one axis.
        folder: the sweep's folder. It holds study.db, unless `storage` names another file. Of a study that is shared,
            only what the sweep of this folder has begun is asked again.
        seed: of the proposals.
        settings: those of the sweep loop.

    Raises ConfigError for a space that cannot be searched, and if the study is there and is another search's. As long as no
    trial of a study that is not shared has reached anything, it may be given other objectives.
    """

    def __init__(
        self,
        space: Space,
        *,
        folder: Path,
        seed: int,
        sampler: str,
        n_trials: int,
        startup_trials: int,
        objectives: list[str],
        pruner: str,
        min_steps: int,
        storage: str | None,
        study: str,
        **settings: Any,
    ):
        check_space(space)
        self.space, self.distributions = space, _distributions(space)
        self.objectives = [Objective.read(text) for text in objectives]
        self.sampler, self.n_trials, self.startup_trials, self.seed = sampler, n_trials, startup_trials, seed
        # At random, and with nobody else there, all trials may be asked at once, whatever comes of them.
        self.learns = sampler != "random" or pruner != "none" or storage is not None
        self.best_are = "best" if len(objectives) == 1 else "pareto"
        self._folder, self._shared = Path(folder).resolve(), storage is not None
        path = (Path(storage.removeprefix(SQLITE)) if storage is not None else Path(folder) / "study.db").resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        watch = Pruning(str(path), study, pruner, self.objectives[0], startup_trials, min_steps)
        self.pruning = watch if pruner != "none" else None
        self._lock = _lock(path)
        with self._lock:
            self.study = self._open(path, study)
            self._begun = self._left_over()

    def ask(self, n: int) -> list[Trial]:
        """First what was begun and did not finish, when an earlier process ended; then new trials, `n_trials` in all."""
        asked: list[Trial] = []
        with self._lock:
            while self._begun and len(asked) < n:
                asked.append(self._again(self._begun.pop(0)))
            jobs = set(_newest(self.study))
            while len(jobs) < self.n_trials and len(asked) < n:
                trial, known = self._new()
                jobs.add(trial.number)
                if not known:
                    asked.append(trial)
        return asked

    def tell(self, trial: Trial, result: dict[str, Any] | None) -> None:
        """Note what a run has reached, or that it failed. One that is never told stays open, to be asked again.

        Raises ConfigError if a result lacks an objective.
        """
        from optuna.trial import TrialState

        status = "failed" if result is None else result["status"]
        state, values = TrialState.FAIL, None
        if status == "finished" and result.get("pruned"):
            state = TrialState.PRUNED
        elif status == "finished":
            reached = [objective.of(result) for objective in self.objectives]
            if all(map(math.isfinite, reached)):
                state, values = TrialState.COMPLETE, reached
        with self._lock:
            self.study.tell(_newest(self.study)[trial.number].number, values, state, skip_if_finished=True)

    def best(self) -> list[Path]:
        """The run with the best objective; of several objectives, all that no other one beats (Pareto-optimal). In a study
        that is shared they may be another sweep's."""
        own = [trial for trial in self.study.best_trials if "same_as" not in trial.user_attrs]
        trials = sorted(own, key=lambda trial: trial.user_attrs["job"])
        best = [self._folder_of(trial) / str(trial.user_attrs["job"]) for trial in trials]
        return best if len(self.objectives) > 1 else best[:1]

    def _folder_of(self, trial: FrozenTrial) -> Path:
        """The sweep that runs a trial: this one, wherever it lies now, if the study is its own."""
        return Path(trial.user_attrs["folder"]) if self._shared else self._folder

    def _open(self, path: Path, name: str) -> Study:
        import optuna

        directions = ["maximize" if objective.maximize else "minimize" for objective in self.objectives]
        asked = {
            "space": {key: dataclasses.asdict(axis) for key, axis in self.space.items()},
            "objectives": [str(objective) for objective in self.objectives],
        }
        asked = json.loads(json.dumps(asked))  # as it comes back
        storage = _storage(path)
        begun: list[FrozenTrial] = []
        if name in optuna.get_all_study_names(storage):
            study = optuna.load_study(storage=storage, study_name=name)
            before = study.user_attrs.get("search", {})
            differing = [what for what in asked if before.get(what) != asked[what]]
            if not differing:
                return study
            begun = study.get_trials()
            if (
                differing != ["objectives"]
                or self._shared
                or any(trial.state.name in ("COMPLETE", "PRUNED") for trial in begun)
            ):
                what = differing[0]
                old, new = show(before.get(what)), show(asked[what])
                problem = f"the study in {path} has another {what.removesuffix('s')}: {old}, not {new}"
                raise ConfigError("sweep.study", name, problem, "give the new search another sweep.study")
            optuna.delete_study(storage=storage, study_name=name)  # Optuna fixes how many objectives a study has
        study = optuna.create_study(storage=storage, study_name=name, directions=directions)
        study.set_user_attr("search", asked)
        for trial in begun:
            kept = {"params": trial.params, "distributions": trial.distributions, "user_attrs": trial.user_attrs}
            study.add_trial(optuna.trial.create_trial(state=trial.state, **kept))
        return study

    def _left_over(self) -> list[int]:
        """The jobs of this sweep that an earlier process began and did not finish."""
        from optuna.trial import TrialState

        for trial in self.study.get_trials(states=(TrialState.RUNNING,)):
            if "job" not in trial.user_attrs:  # a process was killed while it asked, and nobody knows of the trial
                self.study.tell(trial.number, state=TrialState.FAIL)
        return [
            job
            for job, trial in sorted(_newest(self.study).items())
            if trial.state in (TrialState.RUNNING, TrialState.FAIL) and self._folder_of(trial) == self._folder
        ]

    def _again(self, job: int) -> Trial:
        from optuna.trial import TrialState, create_trial

        trial = _newest(self.study)[job]
        if trial.state == TrialState.FAIL:
            again = create_trial(
                state=TrialState.RUNNING,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs={"job": job, "folder": str(self._folder)},
            )
            self.study.add_trial(again)
        return self._trial(job, trial.params)

    def _new(self) -> tuple[Trial, bool]:
        """A trial, and whether its result is known already, and told."""
        self.study.sampler = self._sampler(len(self.study.get_trials(deepcopy=False)))
        trial = self.study.ask(self.distributions)
        trial.set_user_attr("folder", str(self._folder))
        new = self._trial(trial.number, trial.params)
        same = self._finished(new.values)
        if same is not None:
            trial.set_user_attr("same_as", same.user_attrs["job"])
        trial.set_user_attr("job", trial.number)  # last: from here on the trial counts
        if same is not None:
            self.study.tell(trial, same.values)
            values = " ".join(f"{key}={value}" for key, value in new.values.items())
            print(f"trial {new.number} is trial {same.user_attrs['job']} once more, its result is taken: {values}", flush=True)
        return new, same is not None

    def _finished(self, values: dict[str, str]) -> FrozenTrial | None:
        """The trial of this sweep that finished with `values`."""
        for job, trial in _newest(self.study).items():
            ours = (
                trial.state.name == "COMPLETE" and "same_as" not in trial.user_attrs and self._folder_of(trial) == self._folder
            )
            if ours and self._trial(job, trial.params).values == values:
                return trial
        return None

    def _trial(self, job: int, params: dict[str, Any]) -> Trial:
        return Trial(job, {key: _typed(axis, params[key]) for key, axis in self.space.items()})

    def _sampler(self, number: int) -> BaseSampler:
        """What proposes the trial `number`: of a search that goes on, the same as if it had never stopped."""
        from optuna.samplers import NSGAIISampler, RandomSampler, TPESampler

        from gpt2x.training.streams import RandomStreams  # which needs torch

        seed = RandomStreams(self.seed).number("search", number)
        if self.sampler == "tpe":
            return TPESampler(seed=seed, n_startup_trials=self.startup_trials)
        if self.sampler == "nsgaii":
            return NSGAIISampler(seed=seed, population_size=self.startup_trials)
        return RandomSampler(seed=seed)


@dataclass(frozen=True)
class Objective:
    """A number of a run's result that is to become small, or large."""

    name: str
    maximize: bool = False

    @classmethod
    def read(cls, text: str) -> Objective:
        """ "val/loss", or "max:val/accuracy"."""
        return cls(text.removeprefix("max:"), text.startswith("max:"))

    def __str__(self) -> str:
        return f"max:{self.name}" if self.maximize else self.name

    def of(self, result: dict[str, Any]) -> float:
        """Its value in the content of a result.json: the best value of the run's metric, of other metrics the last one.

        Raises ConfigError naming all numbers that there are.
        """
        last = {name: value for name, value in (result.get("last") or {}).items() if _is_number(value)}
        numbers = {name: value for name, value in result.items() if _is_number(value)} | last
        numbers |= {f"last.{name}": value for name, value in last.items()}
        if metric := result.get("metric"):
            numbers[metric["name"]] = metric["value"]
        if self.name not in numbers:
            problem = "a finished run has no such number in its result.json; resume the sweep with another one"
            raise ConfigError("sweep.objectives", str(self), problem, f"there are: {', '.join(sorted(numbers))}")
        return float(numbers[self.name])


@dataclass(frozen=True)
class Pruning:
    """How the runs of a search are watched: plain values, which can be sent to the process that makes a run.

    `path` is the study's file, `study` its name, `pruner` "median" or "hyperband".
    """

    path: str
    study: str
    pruner: str
    objective: Objective
    startup_trials: int
    min_steps: int

    def __call__(self, job: int) -> Callable[[int, dict[str, Any]], bool]:
        """What the trainer of trial `job` calls with each evaluation: it notes it in the study, and says whether to give up.

        An evaluation that is made again, after a resume, is noted once. Raises ConfigError if the objective is not in it.
        """
        studies: list[Study] = []

        def hopeless(step: int, row: dict[str, Any]) -> bool:
            from optuna.exceptions import StorageInternalError
            from optuna.trial import Trial as Reporter

            if not _is_number(row.get(self.objective.name)):
                there = ", ".join(name for name, value in row.items() if _is_number(value))
                problem = f"sweep.pruner={self.pruner} needs an objective that every evaluation measures"
                raise ConfigError("sweep.objectives", str(self.objective), problem, f"there are: {there}")
            if step == 0:  # nothing is learnt yet
                return False
            try:
                study = studies[0] if studies else self._load()
                studies[:] = [study]
                trial = _newest(study)[job]
                if trial.state.is_finished():
                    return False
                reporter = Reporter(study, trial._trial_id)
                if step not in trial.intermediate_values:
                    reporter.report(row[self.objective.name], step)
                return bool(reporter.should_prune())
            except (StorageInternalError, UserError) as error:  # no reason for the run to end
                log.warning("the study could not be asked whether to go on: %s", one_line(error))
                return False

        return hopeless

    def _load(self) -> Study:
        import optuna

        pruner = optuna.pruners.HyperbandPruner(min_resource=self.min_steps)
        if self.pruner == "median":
            pruner = optuna.pruners.MedianPruner(n_startup_trials=self.startup_trials, n_warmup_steps=self.min_steps)
        return optuna.load_study(storage=_storage(Path(self.path)), study_name=self.study, pruner=pruner)


def _storage(path: Path) -> Any:
    """The studies in a sqlite file, made if it is missing. Raises UserError if the file is another one."""
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    waits = {"connect_args": {"timeout": 60}}  # seconds, while another process writes
    try:
        return optuna.storages.RDBStorage(f"{SQLITE}{path}", engine_kwargs=waits)
    except (SQLAlchemyError, RuntimeError) as error:  # RuntimeError: of another version of Optuna
        raise UserError(f"{path} cannot be used as a study: {one_line(error)}") from None


def _newest(study: Study) -> dict[int, FrozenTrial]:
    """Job -> its trial; of one that was made again, the newest."""
    return {t.user_attrs["job"]: t for t in study.get_trials(deepcopy=False) if "job" in t.user_attrs}


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    distributions: dict[str, BaseDistribution] = {}
    for key, axis in space.items():
        if isinstance(axis, Choices):
            distributions[key] = CategoricalDistribution(axis.values)
        elif axis.integer:
            distributions[key] = IntDistribution(math.ceil(axis.low), math.floor(axis.high), log=axis.log)
        else:
            distributions[key] = FloatDistribution(axis.low, axis.high, log=axis.log)
    return distributions


def _typed(axis: Choices | Interval, value: Any) -> str:
    """A value as one would type it; a number with four digits, or as many more as a narrow interval needs."""
    if isinstance(axis, Choices) or axis.integer:
        return str(value)
    width = (axis.high - axis.low) / max(abs(axis.low), abs(axis.high), 1e-300)
    digits = 4 + max(0, -math.ceil(math.log10(width))) if width > 0 else 17
    return repr(min(max(float(f"{value:.{digits}g}"), axis.low), axis.high))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _lock(path: Path) -> FileLock:
    """Held while a process looks what there is and adds to it."""
    from filelock import FileLock

    return FileLock(path.with_name(f"{path.name}.lock"))
