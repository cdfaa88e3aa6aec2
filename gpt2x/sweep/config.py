"""Settings of the sweep group: how the values of a sweep's runs are chosen."""

from __future__ import annotations

from dataclasses import dataclass

from gpt2x.config.option import ConfigError, option

SQLITE = "sqlite:///"
_OF_A_RUN = ("steps", "tokens", "seconds", "flops", "parameters", "trained_parameters", "peak_memory_bytes")
"""Numbers of result.json that no evaluation has."""


@dataclass(kw_only=True)
class SweepConfig:
    """What every way to sweep has. The sweep loop reads these two; the rest is for the search."""

    params: dict[str, str] = option(
        {}, "setting or group: its values as typed after =, such as 'optimizer.lr': '1e-4,3e-4'; the command line's win"
    )
    on_error: str = option(
        "continue", "when a run fails: go on with the others, or start no further one", choices=("continue", "stop")
    )


@dataclass(kw_only=True)
class GridConfig(SweepConfig):
    """Every combination of the values, the last one changing fastest."""

    _target_: str = "gpt2x.sweep.search.Grid"


@dataclass(kw_only=True)
class PairedConfig(SweepConfig):
    """The first values together, then the second ones, and so on: all lists are as long."""

    _target_: str = "gpt2x.sweep.search.Paired"


@dataclass(kw_only=True)
class OneAtATimeConfig(SweepConfig):
    """The first values of all lists, then the same but for one value, in turn: what each option does alone."""

    _target_: str = "gpt2x.sweep.search.OneAtATime"


LISTED = (GridConfig, PairedConfig, OneAtATimeConfig)
"""Those whose runs are known before the first one starts."""


@dataclass(kw_only=True)
class OptunaConfig(SweepConfig):
    """A search with Optuna, in which what the runs before have reached decides what is tried next."""

    _target_: str = "gpt2x.sweep.optuna.OptunaSearch"
    sampler: str = option(
        "tpe",
        "who proposes: tpe, a tree-structured Parzen estimator (Bergstra et al., 2011); nsgaii, a genetic algorithm (Deb et "
        "al., 2002), for several objectives and many trials; random, nobody",
        choices=("tpe", "nsgaii", "random"),
    )
    n_trials: int = option(20, "trials to make, those of all processes together; more when the sweep is resumed", minimum=1)
    startup_trials: int = option(
        8,
        "trials at random before tpe learns, or in a generation of nsgaii; those to end before median gives up any",
        minimum=2,
    )
    objectives: list[str] = option(
        ["val/loss"],
        "what is to become small, or large with max: in front: numbers of result.json, such as val/loss (its lowest), "
        "last.val/loss, max:val/accuracy, seconds, parameters, peak_memory_bytes; of several, Pareto's front is sought",
    )
    pruner: str = option(
        "none",
        "give a run up at an evaluation: median, if it is worse than half of the runs there; hyperband, if it is not in the "
        "best third at one of some few steps (Li et al., 2018)",
        choices=("none", "median", "hyperband"),
    )
    min_steps: int = option(100, "steps that every run takes before it is given up", minimum=1)
    storage: str | None = option(
        None, "sqlite:///FILE: the study, shared by several processes; null: study.db in the sweep's folder", verbatim=True
    )
    study: str = option("sweep", "the study's name in that file", verbatim=True)

    def check(self) -> None:
        names = [objective.removeprefix("max:") for objective in self.objectives]
        if not all(names) or len(set(names)) < max(1, len(names)):
            raise ConfigError("objectives", self.objectives, "at least one is needed, and none twice", "such as [val/loss]")
        if self.pruner != "none" and len(names) > 1:
            problem = f"a run is given up for one objective, and there are {len(names)}"
            raise ConfigError("pruner", self.pruner, problem, "use sweep.pruner=none, or a single objective")
        if self.pruner != "none" and (names[0] in _OF_A_RUN or names[0].startswith("last.")):
            problem = f"no evaluation tells it, and sweep.pruner={self.pruner} goes by evaluations"
            raise ConfigError("objectives", self.objectives, problem, "use sweep.pruner=none, or a metric such as val/loss")
        if self.storage is not None and not (self.storage.startswith(SQLITE) and self.storage != SQLITE):
            raise ConfigError("storage", self.storage, "expected sqlite:///FILE", f"such as {SQLITE}study.db")
