"""Intervals against published values, and against what they promise: how often they hold the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2x.evaluation import intervals
from gpt2x.evaluation.intervals import bootstrap, interval, jackknife, measured, ratio, share, wilson


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0000, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_is_the_published_one(successes, trials, low, high):
    """Newcombe, "Two-sided confidence intervals for the single proportion" (1998), table I, the score method."""
    assert wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 10**9), st.floats(0, 1))
def test_wilson_holds_the_share_and_is_symmetric(trials, share):
    successes = round(share * trials)
    low, high = wilson(successes, trials)
    assert 0 <= low <= successes / trials <= high <= 1
    assert wilson(trials - successes, trials) == pytest.approx((1 - high, 1 - low), abs=1e-9)


def test_resamples_have_each_stratum_as_often_as_the_rows_do():
    strata = np.array([0, 1, 1, 2, 1, 2, 0, 1])
    drawn = bootstrap(lambda counts_BN: counts_BN, strata, samples=500, seed=3)
    assert drawn.shape == (500, 8)
    for stratum, size in enumerate(np.bincount(strata)):
        assert (drawn[:, strata == stratum].sum(axis=1) == size).all()
    assert drawn.mean(axis=0) == pytest.approx(np.ones(8), abs=0.2)  # every row as likely as any other of its stratum
    assert drawn[:, 1].var() == pytest.approx(0.75, abs=0.15)  # of 4 draws with a chance of 1/4


def test_resamples_depend_on_the_seed_alone(monkeypatch):
    def drawn(seed: int) -> np.ndarray:
        return bootstrap(lambda counts_BN: counts_BN, np.zeros(7, dtype=int), samples=20, seed=seed)

    whole = drawn(1)
    assert (drawn(1) == whole).all()
    assert (drawn(2) != whole).any()
    monkeypatch.setattr(intervals, "_CELLS", 1)  # one resample at a time, as with very many rows
    assert (drawn(1) == whole).all()


def test_the_interval_of_a_mean_holds_the_truth_as_often_as_it_says():
    rng, held = np.random.default_rng(0), 0
    for seed in range(300):
        values = rng.exponential(size=60)
        means = bootstrap(
            lambda counts_BN, values=values: (counts_BN @ values / 60)[:, None], np.zeros(60), samples=300, seed=seed
        )
        low, high = interval(values.mean(), means[:, 0])
        held += low <= 1 <= high
    assert 0.88 < held / 300 < 0.98  # 95 %, a little fewer for 60 rows of a skewed distribution


def test_what_resampling_adds_is_taken_off_and_limits_are_kept():
    assert interval(0.1, np.linspace(0.3, 0.5, 1001)) == pytest.approx((0.005, 0.195))
    assert interval(0.02, np.linspace(0.3, 0.5, 1001))[0] == 0
    assert interval(0.98, np.linspace(0.3, 0.5, 1001))[1] == 1
    assert interval(0.0, np.linspace(0.3, 0.5, 1001), lower=-1.0) == pytest.approx((-0.095, 0.095))
    assert interval(0.5, np.array([np.nan, 0.5, np.nan])) == (0.5, 0.5)
    assert interval(0.5, np.array([np.nan])) == (None, None)
    assert interval(0.5, np.array([])) == (None, None)


def test_the_jackknife_of_a_mean_has_its_standard_error():
    values = np.random.default_rng(0).random(50)
    without = (values.sum() - values) / 49
    half = 1.959964 * values.std(ddof=1) / math.sqrt(50)
    assert jackknife(values.mean(), without) == pytest.approx((values.mean() - half, values.mean() + half), abs=1e-6)


def test_the_jackknife_stays_within_0_and_1_and_is_not_defined_without_a_row_that_all_hangs_on():
    assert jackknife(0.9, np.array([0.0, 1.0])) == (0.0, 1.0)
    assert jackknife(0.5, np.array([0.5, np.nan])) == (None, None)


def test_what_is_not_defined_has_no_interval_either():
    nothing = {"value": None, "low": None, "high": None}
    assert measured(float("nan"), 0.1, 0.2) == measured(None) == share(0, 0) == nothing
    assert ratio(np.zeros(3), np.zeros(3), samples=10, seed=1) == nothing
    assert measured(np.float32(0.5)) == {"value": 0.5, "low": None, "high": None}


def test_a_share_has_wilson_s_interval():
    low, high = wilson(15, 148)
    assert share(np.int64(15), np.int64(148)) == {"value": 15 / 148, "low": low, "high": high}


def test_a_ratio_of_sums_is_drawn_with_both_of_its_parts():
    rng = np.random.default_rng(0)
    wholes = rng.integers(1, 50, 40)
    parts = rng.binomial(wholes, 0.3)
    got = ratio(parts, wholes, samples=200, seed=4)
    counts = bootstrap(lambda counts_BN: counts_BN, np.zeros(40), samples=200, seed=4)
    expected = [(parts * drawn).sum() / (wholes * drawn).sum() for drawn in counts]
    assert got["value"] == pytest.approx(parts.sum() / wholes.sum())
    assert (got["low"], got["high"]) == pytest.approx(interval(got["value"], np.array(expected)))
    assert ratio(parts, wholes, samples=0, seed=4) == {"value": got["value"], "low": None, "high": None}
    alike = ratio(np.full(5, 7.0), np.ones(5), samples=20, seed=1, upper=math.inf)  # a mean, of which nothing can vary
    assert alike == {"value": 7, "low": 7, "high": 7}


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 9)), min_size=1, max_size=20), st.integers(0, 9))
def test_the_interval_of_a_ratio_holds_it(rows, seed):
    shares, wholes = np.array(rows).T
    got = ratio(shares * wholes, wholes, samples=20, seed=seed)
    assert 0 <= got["low"] <= got["value"] <= got["high"]
    assert got["value"] == pytest.approx((shares * wholes).sum() / wholes.sum())
