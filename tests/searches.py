"""Searches for tests: a small space, settings by name, and results as runs leave them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from gpt2x.sweep.config import OptunaConfig
from gpt2x.sweep.optuna import OptunaSearch
from gpt2x.sweep.search import Choices, Interval, Trial

SPACE = {
    "optimizer.lr": Interval(1e-4, 1e-1, log=True),
    "model.n_layer": Interval(1, 6, integer=True),
    "model": Choices(("nano", "micro")),
}


def search(folder: Path, space=SPACE, seed=1, **changes) -> OptunaSearch:
    config = OptunaConfig(**changes)
    config.check()
    return OptunaSearch(space, folder=folder, seed=seed, **{k: v for k, v in vars(config).items() if k != "_target_"})


def finished(loss: float, **more) -> dict:
    metric = {"name": "val/loss", "value": loss, "step": 9}
    return {"status": "finished", "metric": metric, "last": {"val/loss": loss + 1, "val/bpb": 2.0}} | more


def loss(trial: Trial) -> float:
    """A bowl with its bottom at 3e-3, two layers and micro."""
    values = trial.values
    return (
        (float(values["optimizer.lr"]) - 3e-3) ** 2 * 1e3 + abs(int(values["model.n_layer"]) - 2) + (values["model"] == "nano")
    )


def run(one: OptunaSearch, n: int = 10**6) -> list[Trial]:
    """Ask and tell until nothing is left, or `n` trials are done."""
    done = []
    while len(done) < n and (asked := one.ask(1)):
        one.tell(asked[0], finished(loss(asked[0])))
        done += asked
    return done


def states(one: OptunaSearch) -> dict[str, int]:
    return dict(Counter(trial.state.name for trial in one.study.get_trials()))
