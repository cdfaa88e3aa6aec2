"""Groups and verdicts against scipy, by hand, and by simulation."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from compare.synthetic import runs as synthetic_runs
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gpt2x.compare import load_runs
from gpt2x.compare.statistics import Group, Verdict, compare, groups, higher_is_better, rounded, values
from gpt2x.errors import UserError

NUMBERS = st.floats(-100, 100).map(lambda x: round(x, 3))
SAMPLES = st.dictionaries(st.integers(0, 50), NUMBERS, min_size=2, max_size=8)


def test_runs_that_differ_in_nothing_but_the_seed_are_one_group(outputs):
    runs = load_runs(outputs / "sweeps")
    best, other = groups(runs, "val/loss")
    assert (best.settings, other.settings) == ({"config.optimizer.lr": 0.003}, {"config.optimizer.lr": 0.001})
    assert (best.runs, other.runs) == (["0", "1", "2"], ["3", "4", "5"])
    metric = runs.table["metric"]
    assert best.values == {1: metric["0"], 2: metric["1"], 3: metric["2"]}
    assert best.mean == pytest.approx(np.mean(metric[:3]), rel=1e-14)
    assert best.deviation == pytest.approx(np.std(metric[:3], ddof=1), rel=1e-12)
    assert best.error == pytest.approx(stats.sem(metric[:3]), rel=1e-12)


@pytest.mark.parametrize(("column", "splits"), [
    ("config.name", False), ("config.paths.cache", False), ("config.device.threads", False), ("config.logger.project", False),
    ("config.resume", False), ("config.seeds", False), ("config.sweep.trials", False), ("config.sweep", False),
    ("config.model.n_layer", True), ("config.trainer.eval_every", True), ("config.sampling.top_k", True),
])  # fmt: skip
def test_what_decides_nothing_does_not_split_a_group(column, splits):
    runs = synthetic_runs(settings=1, seeds=4)
    runs.table[column] = [1, 1, 2, 2]
    assert len(groups(runs, "val/loss")) == (2 if splits else 1)


def test_unfinished_runs_and_repeated_seeds_do_not_count_as_evidence():
    runs = synthetic_runs(settings=1, seeds=4)
    runs.table.loc["3", "status"] = "failed"
    runs.table["config.seed"] = [1, 2, 2, 3]
    (group,) = groups(runs, "val/loss")
    best = values(runs, "val/loss")
    assert group.values == {1: best["0"], 2: pytest.approx((best["1"] + best["2"]) / 2, rel=1e-14)}
    assert len(group.runs) == 4


@pytest.mark.parametrize("seed", ["abc", None, 1.5, math.inf, 10**400, "[1,2]"], ids=lambda seed: str(seed)[:5])
def test_a_run_of_which_no_seed_is_known_is_no_evidence(seed):
    runs = synthetic_runs(settings=1, seeds=3)
    runs.table["config.seed"] = pd.Series([1, seed, 3], index=runs.table.index, dtype=object)
    (group,) = groups(runs, "val/loss")
    best = values(runs, "val/loss")
    assert (group.values, len(group.runs)) == ({1: best["0"], 3: best["2"]}, 3)


def test_where_no_configuration_could_be_read_there_is_no_seed():
    runs = synthetic_runs(settings=1, seeds=3)
    runs = replace(runs, table=runs.table.filter(regex=r"^(?!config\.)"))
    (group,) = groups(runs, "val/loss")
    assert (group.n, len(group.runs)) == (0, 3)


def test_the_metric_may_be_the_best_over_the_run_or_the_last():
    runs = synthetic_runs(settings=2, seeds=2, **{"val/accuracy": 0.5})
    of = runs.metrics.groupby("run", observed=True)
    np.testing.assert_array_equal(values(runs, "val/loss"), of["val/loss"].min())
    np.testing.assert_array_equal(values(runs, "val/accuracy"), of["val/accuracy"].max())
    np.testing.assert_array_equal(values(runs, "last.val/loss"), runs.table["last.val/loss"])
    with pytest.raises(
        UserError,
        match="metric=val/los: none .* did you mean val/loss.\n  there are: val/loss, val/acc.*, train/loss, lr, last",
    ):
        values(runs, "val/los")


@pytest.mark.parametrize("metric", ["val/accuracy", "last.test/f1", "val/f1/spam", "val/auroc", "tokens_per_s"])
def test_what_is_the_better_the_larger(metric):
    assert higher_is_better(metric)
    assert not higher_is_better(metric.replace(metric.split("/")[-1], "loss") if "f1/" not in metric else "val/ece")


@given(SAMPLES, st.data())
def test_the_paired_interval_is_scipy_s(a, data):
    b = {seed: data.draw(NUMBERS) for seed in a}
    x, y = np.array(list(a.values())), np.array([b[seed] for seed in a])
    verdict = compare(a, b)
    assert verdict.paired
    assert verdict.n == (len(a),)
    assert verdict.difference == pytest.approx(np.mean(x - y), abs=1e-9)
    if np.ptp(x - y) > 1e-6:
        low, high = stats.ttest_rel(x, y).confidence_interval(0.95)
        assert (verdict.difference - verdict.half, verdict.difference + verdict.half) == pytest.approx((low, high), abs=1e-6)


@given(SAMPLES, SAMPLES)
def test_the_unpaired_interval_is_scipy_s(a, b):
    b = {seed + 100: value for seed, value in b.items()}
    x, y = list(a.values()), list(b.values())
    verdict = compare(a, b)
    assert not verdict.paired
    assert verdict.n == (len(a), len(b))
    if min(np.ptp(x), np.ptp(y)) > 1e-6:
        low, high = stats.ttest_ind(x, y, equal_var=False).confidence_interval(0.95)
        assert (verdict.difference - verdict.half, verdict.difference + verdict.half) == pytest.approx((low, high), abs=1e-6)


@given(SAMPLES, SAMPLES)
def test_a_comparison_the_other_way_round_says_the_opposite(a, b):
    one, other = compare(a, b), compare(b, a)
    assert one.difference == pytest.approx(-other.difference, abs=1e-12)
    assert one.half == pytest.approx(other.half, rel=1e-9, abs=1e-12)
    assert one.shown == other.shown
    assert not (one.better and other.better)


@pytest.mark.parametrize("start", [0, 2, 10])
def test_the_interval_covers_the_truth_as_often_as_it_says(start):
    """Normal noise, a part of it common to both sides of a seed: 95 % of 4,000 intervals, give or take 1.4 (four sigma).

    The seeds of the two are the same, the same in part, or others: then the interval may be wider.
    """
    rng = np.random.default_rng(1)
    covered, n = 0, 4000
    for _ in range(n):
        seeds = rng.normal(0, 1, 15)
        a = dict(enumerate(2.0 + seeds[:5] + rng.normal(0, 0.3, 5)))
        b = dict(enumerate(1.9 + seeds[start : start + 5] + rng.normal(0, 0.3, 5), start))
        verdict = compare(a, b)
        covered += abs(verdict.difference - 0.1) <= verdict.half
    assert 0.936 <= covered / n <= {0: 0.964, 10: 0.975}.get(start, 1)  # Welch's is a little wide with few seeds


def test_pairing_sees_what_the_seeds_would_hide():
    seeds = [0.0, 1.0, 2.0, 3.0, 4.0]
    a, b = {i: 3 + s for i, s in enumerate(seeds)}, {i: 2.9 + s + 0.01 * (i % 2) for i, s in enumerate(seeds)}
    assert str(compare(a, b)).startswith("worse by 0.0960 ± 0.0068 (95 %, n=5, paired)")
    assert str(compare(a, {i + 10: v for i, v in b.items()})) == "no difference shown: +0.1 ± 2.3 (95 %, n=5 and 5, unpaired)"


def test_seeds_that_both_have_in_part_are_not_paired():
    """The difference is that of the means which stand beside it, and no seed goes unseen."""
    a, b = {1: 1.0, 2: 1.1, 3: 9.0}, {1: 1.05, 2: 1.16}
    verdict = compare(a, b)
    assert verdict.difference == pytest.approx(np.mean(list(a.values())) - np.mean(list(b.values())))
    assert str(verdict) == "no difference shown: +3 ± 11 (95 %, n=3 and 2, unpaired)"
    low, high = stats.ttest_ind(list(a.values()), list(b.values()), equal_var=False).confidence_interval(0.95)
    assert (verdict.difference - verdict.half, verdict.difference + verdict.half) == pytest.approx((low, high))


@given(SAMPLES, SAMPLES)
def test_a_verdict_is_about_the_means_whatever_seeds_they_have_in_common(a, b):
    expected = np.mean(list(a.values())) - np.mean(list(b.values()))
    verdict = compare(a, b)
    assert verdict.difference == pytest.approx(expected, abs=1e-9)
    assert verdict.paired == (set(a) == set(b))


def test_what_one_seed_shows_is_nothing():
    assert str(compare({1: 1.0}, {1: 2.0})) == "n=1: no verdict"
    assert str(compare({1: 1.0}, {2: 2.0, 3: 2.5})) == "n=1 and 2: no verdict"
    assert str(compare({}, {1: 2.0})) == "n=0 and 1: no verdict"
    assert math.isnan(Group({}, [], {1: 2.0}).error)


def test_more_is_better_where_it_is():
    a, b = {1: 0.9, 2: 0.91, 3: 0.89}, {1: 0.8, 2: 0.81, 3: 0.79}
    assert compare(a, b, grows=True).better
    assert not compare(a, b).better


def test_equal_numbers_are_no_difference():
    same = {1: 1.5, 2: 1.7, 3: 1.6}
    assert str(compare(same, same)) == "no difference shown: +0.0000 ± 0 (95 %, n=3, paired)"
    assert not Verdict(0.0, 0.0, (3,), True).shown


@pytest.mark.parametrize(("value", "error", "text"), [
    (1.81234, 0.0041, "1.8123 ± 0.0041"), (1.81234, 0.41, "1.81 ± 0.41"), (1234.5, 56.7, "1234 ± 57"),
    (1.81234, math.nan, "1.8123"), (1.5, 0.0, "1.5000 ± 0"), (math.nan, 0.1, "-"), (3.0, 1e-9, "3.0000000000 ± 0.0000000010"),
])  # fmt: skip
def test_numbers_are_as_exact_as_their_error_allows(value, error, text):
    assert rounded(value, error) == text
