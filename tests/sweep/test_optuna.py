"""The search with Optuna: against the package itself, across processes, killed and continued."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from searches import finished, loss, run, search, states

from gpt2x.config.option import ConfigError
from gpt2x.errors import UserError
from gpt2x.sweep.config import OptunaConfig
from gpt2x.sweep.optuna import Objective, Pruning, _typed
from gpt2x.sweep.search import Choices, Interval, Trial
from gpt2x.training.streams import RandomStreams


@pytest.mark.parametrize("sampler", ["tpe", "nsgaii", "random"])
def test_the_proposals_are_optunas_own(tmp_path, sampler):
    """Asked by hand, in memory, with a sampler that is made for each trial from the seed and its number."""
    one = search(tmp_path, sampler=sampler, n_trials=8, startup_trials=3, seed=7)
    mine = {trial.number: trial for trial in run(one)}
    make = {
        "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, n_startup_trials=3),
        "nsgaii": lambda seed: optuna.samplers.NSGAIISampler(seed=seed, population_size=3),
        "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    }[sampler]
    study = optuna.create_study()
    for number in range(8):
        study.sampler = make(RandomStreams(7).number("search", number))
        asked = study.ask()
        lr = asked.suggest_float("optimizer.lr", 1e-4, 1e-1, log=True)
        layers, model = asked.suggest_int("model.n_layer", 1, 6), asked.suggest_categorical("model", ["nano", "micro"])
        trial = mine[one.study.trials[number].user_attrs.get("same_as", number)]  # nsgaii makes copies, which are not run
        assert (trial.values["model.n_layer"], trial.values["model"]) == (str(layers), model)
        assert float(trial.values["optimizer.lr"]) == pytest.approx(lr, rel=1e-3)
        study.tell(asked, loss(trial))


def test_a_search_that_stops_and_goes_on_is_the_one_that_never_stopped(tmp_path):
    whole = run(search(tmp_path / "whole", n_trials=10, startup_trials=3))
    parts = [run(search(tmp_path / "parts", n_trials=10, startup_trials=3), n) for n in (1, 4, 3, 100)]
    assert [len(part) for part in parts] == [1, 4, 3, 2]
    assert list(itertools.chain(*parts)) == whole
    assert search(tmp_path / "parts", n_trials=10).ask(5) == []
    assert len(run(search(tmp_path / "parts", n_trials=12))) == 2


def test_objectives_can_be_replaced_until_a_trial_has_reached_something(tmp_path):
    first = search(tmp_path, objectives=["nope"])
    asked = first.ask(3)
    first.tell(asked[0], None)
    second = search(tmp_path, objectives=["val/loss", "max:val/bpb"])
    assert second.ask(3) == asked
    assert [direction.name for direction in second.study.directions] == ["MINIMIZE", "MAXIMIZE"]
    second.tell(asked[1], finished(1.0))
    with pytest.raises(ConfigError, match="another objective"):
        search(tmp_path, objectives=["val/loss"])
    shared = {"storage": f"sqlite:///{tmp_path}/shared.db"}
    search(tmp_path, **shared).ask(1)
    with pytest.raises(ConfigError, match="another objective"):  # another process may be at it
        search(tmp_path, objectives=["seconds"], **shared)


def test_what_a_killed_process_had_begun_is_asked_again_first_and_what_failed_once_more(tmp_path):
    first = search(tmp_path, n_trials=6)
    asked = first.ask(4)
    assert [trial.number for trial in asked] == [0, 1, 2, 3]
    first.tell(asked[0], finished(1.0))
    first.tell(asked[1], {"status": "failed", "metric": None, "error": "no"})
    second = search(tmp_path, n_trials=6)
    again = second.ask(3)
    assert again == asked[1:]
    for trial in again:
        second.tell(trial, finished(2.0))
    assert states(second) == {"COMPLETE": 4, "FAIL": 1}
    new = second.ask(10)
    assert len(new) == 2
    assert not {trial.number for trial in new} & {0, 1, 2, 3}
    for trial in new:
        second.tell(trial, None)
    assert second.ask(10) == []  # failures do not end a search, and are not tried for ever
    third = search(tmp_path, n_trials=6)
    assert sorted(trial.number for trial in third.ask(10)) == sorted(trial.number for trial in new)


def test_telling_twice_changes_nothing(tmp_path):
    one = search(tmp_path)
    (trial,) = one.ask(1)
    one.tell(trial, finished(1.0))
    one.tell(trial, finished(2.0))
    assert one.study.best_value == 1.0


def test_an_infinite_loss_is_a_failure(tmp_path):
    one = search(tmp_path)
    (trial,) = one.ask(1)
    one.tell(trial, finished(float("nan")))
    assert states(one) == {"FAIL": 1}


def test_a_trial_that_a_killed_process_was_only_about_to_make_does_not_count(tmp_path):
    one = search(tmp_path, n_trials=2)
    one.study.ask(one.distributions)  # and nobody has heard of it
    assert len(search(tmp_path, n_trials=2).ask(5)) == 2


def test_another_search_in_the_same_study_is_refused(tmp_path):
    run(search(tmp_path), 1)
    with pytest.raises(ConfigError, match=r"sweep\.study=sweep: the study in .* has another space.*\n.*another sweep\.study"):
        search(tmp_path, {"seed": Choices(("1", "2"))})
    with pytest.raises(ConfigError, match="another objective"):
        search(tmp_path, objectives=["seconds"])
    assert search(tmp_path, {"seed": Choices(("1", "2"))}, study="other").ask(1)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "nothing to search"),
        ({"a": Interval(2, 1)}, r"a=interval\(2,1\): the interval starts above"),
        ({"a": Interval(0, 1, log=True)}, r"a=interval\(0,1\): logarithms are of numbers above 0"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(tmp_path, space, message):
    with pytest.raises(ConfigError, match=message):
        search(tmp_path, space)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objectives": []}, "at least one"),
        ({"objectives": ["val/loss", "max:val/loss"]}, "none twice"),
        ({"objectives": ["val/loss", "seconds"], "pruner": "median"}, "a run is given up for one objective"),
        ({"objectives": ["max:last.val/loss"], "pruner": "median"}, "no evaluation tells it"),
        ({"objectives": ["peak_memory_bytes"], "pruner": "hyperband"}, "no evaluation tells it"),
        ({"storage": "study.db"}, "expected sqlite:///FILE"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        OptunaConfig(**changes).check()


def test_an_objective_is_any_number_of_the_result(tmp_path):
    result = finished(3.0, seconds=7, parameters=100, peak_memory_bytes=5, error=None, pruned=False)
    read = {name: Objective.read(name).of(result) for name in ("val/loss", "last.val/loss", "max:val/bpb", "seconds")}
    assert read == {"val/loss": 3.0, "last.val/loss": 4.0, "max:val/bpb": 2.0, "seconds": 7.0}
    with pytest.raises(ConfigError, match=r"no such number.*\n.*there are: .*parameters, peak_memory_bytes, seconds, val/bpb"):
        Objective.read("val/los").of(result)
    one = search(tmp_path, objectives=["max:val/accuracy"])
    with pytest.raises(ConfigError, match="there are: last.val/bpb"):
        one.tell(*one.ask(1), finished(1.0))


@settings(max_examples=200)
@given(low=st.floats(-1e6, 1e6), width=st.floats(1e-6, 1e6), where=st.floats(0, 1))
def test_a_number_is_typed_shortly_and_stays_in_its_interval(low, width, where):
    axis = Interval(low, low + width)
    value = min(max(low + width * where, axis.low), axis.high)
    typed = float(_typed(axis, value))
    assert axis.low <= typed <= axis.high
    assert abs(typed - value) <= 5.1e-3 * width + 1e-9


def test_typed_numbers_are_short():
    assert _typed(Interval(1e-4, 1e-1, log=True), 0.0034567891) == "0.003457"
    assert _typed(Interval(0.9999, 0.99999), 0.99993456789) == "0.99993457"


def test_the_pareto_front_is_that_of_brute_force(tmp_path):
    one = search(tmp_path, objectives=["val/loss", "max:speed"], n_trials=25, sampler="random")
    reached = {}
    for i, trial in enumerate(one.ask(25)):
        reached[trial.number] = (i * 7 % 25 / 5 // 1, i * 11 % 25 / 3 // 1)  # with ties
        one.tell(trial, finished(reached[trial.number][0], speed=reached[trial.number][1]))

    def beats(a, b):
        return a[0] <= b[0] and a[1] >= b[1] and a != b

    front = [n for n, mine in reached.items() if not any(beats(other, mine) for other in reached.values())]
    assert one.best() == [tmp_path / str(job) for job in front]
    assert 1 < len(front) < 25
    assert one.best_are == "pareto"


WORKER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from searches import finished, loss, search
folder, study, n_trials, seed, seconds = sys.argv[1:]
one = search(Path(folder), storage="sqlite:///" + study, n_trials=int(n_trials), startup_trials=5, seed=int(seed))
while asked := one.ask(1):
    print(asked[0].number, flush=True)
    time.sleep(float(seconds))
    one.tell(asked[0], finished(loss(asked[0])))
"""


def worker(folder: Path, study: Path, n_trials: int, seed: int, seconds: float) -> subprocess.Popen:
    code = WORKER.format(tests=str(Path(__file__).parent.parent))
    argv = [sys.executable, "-c", code, str(folder), str(study), str(n_trials), str(seed), str(seconds)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)


def test_two_processes_share_a_study_and_one_that_is_killed_loses_nothing(tmp_path):
    study = tmp_path / "shared" / "study.db"
    one, two = (worker(tmp_path / name, study, 16, seed, 0.1) for seed, name in enumerate(["a", "b"]))
    numbers = [[int(line) for line in process.communicate(timeout=120)[0].split()] for process in (one, two)]
    assert (one.returncode, two.returncode) == (0, 0)
    assert sorted(itertools.chain(*numbers)) == list(range(16))
    assert all(numbers)  # each did some

    third = worker(tmp_path / "c", study, 30, 3, 60)  # raises the number, takes one and is killed over it
    begun = int(third.stdout.readline())
    os.kill(third.pid, signal.SIGKILL)
    third.wait()
    other = search(tmp_path / "a", storage=f"sqlite:///{study}", n_trials=20, seed=0)
    assert len(run(other)) == 3  # not the one that c has begun
    again = search(tmp_path / "c", storage=f"sqlite:///{study}", n_trials=20, seed=0)
    assert [trial.number for trial in again.ask(5)] == [begun]
    again.tell(Trial(begun, {}), finished(0.0))
    assert states(again) == {"COMPLETE": 20}


# -- pruning ------------------------------------------------------------------------------------------------------


def watched(tmp_path: Path, pruner: str, curves: list[list[float]], **changes) -> list[int | None]:
    """Run trials with these losses at steps 0, 10, 20, ...; the step at which each was given up."""
    one = search(tmp_path, pruner=pruner, n_trials=len(curves), min_steps=10, **changes)
    given_up = []
    for curve in curves:
        (trial,) = one.ask(1)
        hook = one.pruning(trial.number)
        at = next((10 * i for i, value in enumerate(curve) if hook(10 * i, {"val/loss": value})), None)
        given_up.append(at)
        one.tell(trial, finished(min(curve)) | ({} if at is None else {"pruned": True}))
    counted = states(one)
    assert counted.get("PRUNED", 0) == sum(at is not None for at in given_up)
    return given_up


def test_median_gives_up_what_is_worse_than_half_of_the_others_and_nothing_else(tmp_path):
    good = [[9.0, 5.0 + i / 10, 4.0, 3.0] for i in range(4)]
    bad = [9.0, 8.0, 7.0, 6.0]
    assert watched(tmp_path, "median", [*good, bad, good[0]], startup_trials=4) == [None] * 4 + [10, None]


def test_hyperband_gives_up_most_bad_runs_and_no_good_one(tmp_path):
    good, bad = [9.0, *(3.0 - i / 10 for i in range(9))], [9.0] + [8.0] * 9
    given_up = watched(tmp_path, "hyperband", [good] * 4 + [bad] * 8)
    assert given_up[:4] == [None] * 4
    assert sum(at is not None for at in given_up[4:]) >= 4


def test_a_resumed_trial_reports_a_step_once_and_a_finished_one_is_not_pruned(tmp_path, recwarn):
    one = search(tmp_path, pruner="median", min_steps=10)
    (trial,) = one.ask(1)
    hook = one.pruning(trial.number)
    assert not hook(0, {"val/loss": 9.0})
    assert not hook(10, {"val/loss": 3.0})
    again = one.pruning(trial.number)  # as in the process that resumes the run
    assert not again(10, {"val/loss": 4.0})
    assert not again(20, {"val/loss": 2.0})
    assert one.study.trials[0].intermediate_values == {10: 3.0, 20: 2.0}
    one.tell(trial, finished(2.0))
    assert not again(30, {"val/loss": 99.0})
    assert not [warning for warning in recwarn if "already reported" in str(warning.message)]


def test_a_run_goes_on_when_the_study_is_gone_and_an_objective_that_is_not_evaluated_is_refused(tmp_path, caplog):
    one = search(tmp_path, pruner="median")
    (trial,) = one.ask(1)
    with pytest.raises(ConfigError, match=r"sweep\.objectives=seconds: .*\n.*there are: val/loss$"):
        Pruning(one.pruning.path, "sweep", "median", Objective("seconds"), 1, 1)(0)(0, {"val/loss": 1.0})
    hook = one.pruning(trial.number)
    (tmp_path / "study.db").write_bytes(b"no database any more")
    assert not hook(100, {"val/loss": 1.0})
    with pytest.raises(UserError, match=r"study\.db cannot be used as a study: .*not a database"):
        search(tmp_path)
    assert "the study could not be asked" in caplog.text
