"""Real runs that a search gives up, and what stays of them."""

from __future__ import annotations

import json

import pytest
from searches import search, states

from gpt2x.sweep.search import Choices
from gpt2x.training.run import train

GOOD, BAD = ("3e-3", "4e-3", "5e-3", "6e-3"), "1e-7"
STEPS = {"trainer.max_steps": 60, "trainer.eval_every": 15, "sample_prompt": None}


def result(folder) -> dict:
    return json.loads((folder / "result.json").read_text())


def test_a_hopeless_learning_rate_is_given_up_and_good_ones_are_not(small_run, tmp_path):
    rates = (*GOOD, BAD, "7e-3")
    space = {"optimizer.lr": Choices(rates)}
    one = search(tmp_path, space, pruner="median", n_trials=6, startup_trials=4, min_steps=15)
    ended = []
    for number, rate in enumerate(rates):
        one.study.enqueue_trial({"optimizer.lr": rate})
        (trial,) = one.ask(1)
        assert trial.values == {"optimizer.lr": rate}
        folder = tmp_path / str(number)
        train(small_run(**STEPS, **{"optimizer.lr": float(rate)}), folder, prune=one.pruning(number))
        ended.append(result(folder))
        one.tell(trial, ended[-1])
    *good, bad, best = ended
    assert [run["steps"] for run in (*good, best)] == [60] * 5
    assert not any("pruned" in run for run in (*good, best))
    assert (bad["status"], bad["steps"], bad["pruned"]) == ("finished", 15, True)
    assert bad["metric"]["value"] > max(run["metric"]["value"] for run in good)
    assert states(one) == {"COMPLETE": 5, "PRUNED": 1}
    assert one.best() != [tmp_path / "4"]
    assert "the search gives this run up" in (tmp_path / "4" / "run.log").read_text()
    assert bad["metric"]["value"] == min(one.study.trials[4].intermediate_values.values())


def test_a_run_that_was_given_up_can_be_made_whole(small_run, tmp_path):
    """Resumed outside the search, it goes on from where it was, to the bits of one that never stopped."""
    config = small_run(**STEPS)
    train(config, tmp_path / "whole")
    seen = []

    def prune(step, metrics):
        seen.append((step, metrics["val/loss"]))
        return step >= 30

    train(small_run(**STEPS), tmp_path / "pruned", prune=prune)
    assert [step for step, _ in seen] == [0, 15, 30]
    assert (result(tmp_path / "pruned")["steps"], result(tmp_path / "pruned")["pruned"]) == (30, True)
    train(small_run(**STEPS, resume=str(tmp_path / "pruned")), tmp_path / "pruned")
    again, whole = result(tmp_path / "pruned"), result(tmp_path / "whole")
    assert "pruned" not in again
    assert again["metric"] == whole["metric"]
    assert again["last"] == whole["last"]


def test_the_last_evaluation_prunes_nothing(small_run, tmp_path):
    train(small_run(**STEPS), tmp_path / "run", prune=lambda step, metrics: step == 60)
    assert "pruned" not in result(tmp_path / "run")
    assert result(tmp_path / "run")["steps"] == 60


def test_an_error_of_the_search_ends_the_run_in_order(small_run, tmp_path):
    from gpt2x.config.option import ConfigError

    one = search(tmp_path, {"seed": Choices(("1", "2"))}, pruner="median", objectives=["val/nonsense"])
    (trial,) = one.ask(1)
    with pytest.raises(ConfigError, match=r"sweep.pruner=median needs an objective that every evaluation measures"):
        train(small_run(**STEPS), tmp_path / "0", prune=one.pruning(trial.number))
    assert result(tmp_path / "0")["status"] == "failed"
