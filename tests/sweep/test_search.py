"""Which trials a search asks for, against combinations counted by hand."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2x.config.option import ConfigError
from gpt2x.sweep.search import Choices, Grid, Interval, OneAtATime, Paired, Repeated, Search, Trial

VALUES = st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=4).map(tuple)
SPACES = st.dictionaries(st.text(min_size=1, max_size=5), VALUES.map(Choices), max_size=4)


def in_portions(search: Search, sizes: list[int]) -> list[Trial]:
    trials = []
    for size in sizes:
        asked = search.ask(size)
        assert len(asked) <= size
        trials += asked
    return trials + search.ask(10**6)


@given(SPACES, st.lists(st.integers(1, 5), max_size=4))
def test_a_grid_is_every_combination_in_order_however_it_is_asked(space, portions):
    trials = in_portions(Grid(space), portions)
    count = 1
    for axis in space.values():
        count *= len(axis.values)
    assert [trial.number for trial in trials] == list(range(count))
    for trial in trials:  # the number, written in the mixed base of the axes, says which values
        rest = trial.number
        for key, axis in reversed(space.items()):
            rest, digit = divmod(rest, len(axis.values))
            assert trial.values[key] == axis.values[digit]
        assert list(trial.values) == list(space)


@given(SPACES, st.integers(1, 4), st.lists(st.integers(1, 5), max_size=4))
def test_repetitions_stand_beside_each_other(space, times, portions):
    seeds = tuple(map(str, range(times)))
    trials = in_portions(Repeated(Grid(space), "the seed", seeds), portions)
    expected = [t.values | {"the seed": seed} for t in Grid(space).ask(10**6) for seed in seeds]
    assert [trial.values for trial in trials] == expected
    assert [trial.number for trial in trials] == list(range(len(expected)))


def test_pairs_are_taken_side_by_side():
    space = {"a": Choices(("1", "2", "3")), "b": Choices(("x", "y", "z"))}
    values = [trial.values for trial in Paired(space).ask(9)]
    assert values == [{"a": "1", "b": "x"}, {"a": "2", "b": "y"}, {"a": "3", "b": "z"}]
    assert [trial.values for trial in Paired({"a": Choices(("1", "2"))}).ask(9)] == [{"a": "1"}, {"a": "2"}]


@given(SPACES)
def test_one_value_at_a_time_is_another_than_the_first(space):
    first, *others = [trial.values for trial in OneAtATime(space).ask(10**6)]
    assert first == {key: axis.values[0] for key, axis in space.items()} | {"name": "plain"}
    for values, (key, value) in zip(others, [(k, v) for k, axis in space.items() for v in axis.values[1:]], strict=True):
        assert list(values) == [*space, "name"]
        assert {k for k in space if values[k] != first[k]} <= {key}
        assert values[key] == value
        assert re.fullmatch(r"[\w.+-]{1,100}", values["name"])


def test_each_of_them_is_named_after_what_is_changed():
    space = {
        "model.mlp": Choices(("gelu", "relu2", "swiglu")),
        "optimizer": Choices(("adamw", "muon")),
        "a.b": Choices(("1", "True")),
    }
    search = Repeated(OneAtATime(space), "seed", ("1",))
    assert [trial.values["name"] for trial in search.ask(9)] == ["plain", "mlp-relu2", "mlp-swiglu", "optimizer-muon", "b-true"]
    assert search.told_by == "name"
    assert Repeated(Grid(space), "seed", ("1",)).told_by is None
    with pytest.raises(ConfigError, match="name=a,b: sweep=one_at_a_time names each run"):
        OneAtATime({"name": Choices(("a", "b"))})


def test_lists_of_unequal_lengths_and_intervals_are_refused():
    with pytest.raises(ConfigError, match="b=x,y: 2 values, and a has 3"):
        Paired({"a": Choices(("1", "2", "3")), "b": Choices(("x", "y"))})
    for cls in (Grid, Paired, OneAtATime):
        with pytest.raises(ConfigError, match=r"lr=interval\(0.001,1\): an interval is for a search"):
            cls({"lr": Interval(1e-3, 1)})


class Told(Search):
    learns = True

    def __init__(self):
        self.numbers, self.told = iter(range(100)), []

    def ask(self, n):
        return [Trial(number, {"lr": "1"}) for _, number in zip(range(n), self.numbers)]

    def tell(self, trial, result):
        self.told.append((trial.number, result))


def test_a_search_is_told_the_mean_of_the_repetitions_once_all_are_done():
    search = Told()
    repeated = Repeated(search, "seed", ("1", "2"))
    trials = repeated.ask(3)  # of two of its trials; the fourth run is asked next time
    assert repeated.learns
    results = [{"status": "finished", "metric": {"name": "val/loss", "value": value, "step": 1}} for value in (1.0, 2.0)]
    repeated.tell(trials[1], results[1])
    assert search.told == []
    repeated.tell(trials[0], results[0])
    ((number, result),) = search.told
    assert (number, result["metric"]["value"], result["status"]) == (0, 1.5, "finished")
    repeated.tell(trials[2], results[0])
    repeated.tell(*repeated.ask(1), None)
    assert search.told[1:] == [(1, None)]
    failed = results[0] | {"status": "failed"}  # after its first evaluation
    trials = repeated.ask(2)
    repeated.tell(trials[0], results[0])
    repeated.tell(trials[1], failed)
    assert search.told[2:] == [(2, failed)]
