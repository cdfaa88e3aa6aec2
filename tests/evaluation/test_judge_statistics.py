"""What scores and verdicts show, against scipy and scikit-learn, and before judges whose faults are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from gpt2x.evaluation.intervals import bootstrap, interval
from gpt2x.evaluation.judge.statistics import (
    agreement,
    difference,
    distribution,
    length_controlled,
    mean,
    pairwise,
    preference,
    sign_test,
    spearman,
    verdict,
)

SCORES = st.lists(st.integers(0, 100), min_size=1, max_size=12)
PAIRS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12)
WINNERS = st.sampled_from(["first", "second", "tie", None])


def both_orders(winner_a_first: str | None, winner_b_first: str | None) -> list[dict]:
    return [{"first": "a", "winner": winner_a_first}, {"first": "b", "winner": winner_b_first}]


def judging(rng: np.random.Generator, a_better_N: np.ndarray, *, first: float = 0.5) -> list[list[dict]]:
    """A judge that finds a better with the chances (N,); those log-odds are shifted by the ones of `first` to the first."""
    found = []
    for chance in a_better_N:
        odds = [chance / (1 - chance), (1 - chance) / chance]
        odds = [o * first / (1 - first) for o in odds]
        found.append(both_orders(*("first" if rng.random() < o / (1 + o) else "second" for o in odds)))
    return found


# -- scores ----------------------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(SCORES, st.integers(0, 5))
def test_the_interval_of_a_mean_holds_it_and_stays_on_the_scale(scores, seed):
    got = mean(np.array(scores), lower=0, upper=100, bootstrap=100, seed=seed)
    assert got["value"] == pytest.approx(np.mean(scores))
    assert 0 <= got["low"] <= got["value"] <= got["high"] <= 100
    assert mean(np.array(scores), bootstrap=0)["low"] is None


def test_nothing_has_no_mean():
    assert mean(np.array([])) == {"value": None, "low": None, "high": None}


def test_the_distribution_has_ten_parts_or_a_scale_s_whole_numbers():
    parts = distribution(np.array([0, 9.9, 10, 55, 90, 100]), (0, 100))
    assert [part["answers"] for part in parts] == [2, 1, 0, 0, 0, 1, 0, 0, 0, 2]
    assert (parts[1]["low"], parts[1]["high"]) == (10, 20)
    grades = distribution(np.array([1, 5, 5, 3]), (1, 5))
    assert [(part["low"], part["high"], part["answers"]) for part in grades] == [
        (1, 1, 1),
        (2, 2, 0),
        (3, 3, 1),
        (4, 4, 0),
        (5, 5, 2),
    ]
    assert [part["answers"] for part in distribution(np.array([1, 3.5]), (1, 5))] == [1, 0, 0, 0, 0, 0, 1, 0, 0, 0]


@settings(max_examples=50)
@given(st.integers(0, 40), st.integers(0, 40))
def test_the_sign_test_is_the_exact_binomial(wins, losses):
    n, most = wins + losses, max(wins, losses)
    tail = sum(math.comb(n, k) for k in range(most, n + 1)) / 2**n
    assert sign_test(wins, losses) == pytest.approx(min(1.0, 2 * tail))
    assert sign_test(wins, losses) == sign_test(losses, wins)


@settings(max_examples=30)
@given(PAIRS)
def test_a_difference_the_other_way_round_is_its_negative(pairs):
    a, b = np.array(pairs).T
    got, back = difference(a, b, span=9, bootstrap=50), difference(b, a, span=9, bootstrap=50)
    assert got["difference"]["value"] == pytest.approx(-back["difference"]["value"])
    assert got["difference"]["low"] == pytest.approx(-back["difference"]["high"])
    assert (got["wins"], got["ties"], got["losses"]) == (back["losses"], back["ties"], back["wins"])
    assert got["sign_test"] == back["sign_test"]
    assert -9 <= got["difference"]["low"] <= got["difference"]["value"] <= got["difference"]["high"] <= 9


@given(SCORES)
def test_scores_tie_with_themselves(scores):
    got = difference(np.array(scores), np.array(scores), bootstrap=20)
    assert got["difference"] == {"value": 0, "low": 0, "high": 0}
    assert (got["wins"], got["ties"], got["losses"], got["sign_test"]) == (0, len(scores), 0, 1)


def test_the_paired_interval_is_scipy_s_and_narrower_than_that_of_two_means():
    rng = np.random.default_rng(0)
    hard = rng.normal(50, 25, 80)  # questions differ more than models do
    a, b = hard + rng.normal(4, 5, 80), hard + rng.normal(0, 5, 80)
    got = difference(a, b, bootstrap=4000)["difference"]
    theirs = scipy.stats.bootstrap((a - b,), np.mean, method="percentile", n_resamples=4000, rng=1).confidence_interval
    assert (got["low"], got["high"]) == pytest.approx(
        (theirs.low, theirs.high), abs=0.15
    )  # both are drawn: sd 0.8 / sqrt(4000)
    alone = mean(a, bootstrap=1000)
    assert got["high"] - got["low"] < (alone["high"] - alone["low"]) / 2


# -- two judges ------------------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(PAIRS)
def test_spearman_is_scipy_s_with_ties(pairs):
    a, b = np.array(pairs, dtype=float).T
    got = spearman(a, b, bootstrap=30)
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert got["value"] is None
        return
    assert got["value"] == pytest.approx(scipy.stats.spearmanr(a, b).statistic, abs=1e-12)
    assert -1 <= got["low"] <= got["value"] <= got["high"] <= 1


def test_spearman_s_interval_ranks_each_resample_anew():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 8, 30)
    b = a + rng.integers(0, 8, 30)
    drawn = bootstrap(lambda counts_BN: counts_BN, np.zeros(30, dtype=int), samples=40, seed=7).astype(int)
    theirs = np.array([scipy.stats.spearmanr(np.repeat(a, counts), np.repeat(b, counts)).statistic for counts in drawn])
    value = scipy.stats.spearmanr(a, b).statistic
    got = spearman(a, b, bootstrap=40, seed=7)
    assert (got["low"], got["high"]) == pytest.approx(interval(value, theirs, lower=-1), abs=1e-12)


def test_agreement_worked_out_by_hand():
    got = agreement(np.array([90, 50, 0, 100]), np.array([80, 50, 20, 99]), within=10, bootstrap=50)
    assert (got["answers"], got["distance"]["value"], got["difference"]["value"]) == (4, 31 / 4, (10 - 20 + 1) / 4)
    assert (got["exact"]["value"], got["within"]["value"], got["within"]["points"]) == (0.25, 0.75, 10)
    assert got["spearman"]["value"] == 1
    assert agreement(np.array([0.3]), np.array([0.2]), within=0.1, bootstrap=0)["within"]["value"] == 1  # not 0.09999...
    other = agreement(np.array([80, 50, 20, 99]), np.array([90, 50, 0, 100]), within=10, bootstrap=50)
    assert other["difference"]["value"] == -got["difference"]["value"]


# -- pairs -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a_first", "b_first", "expected"),
    [
        ("first", "second", "a"),
        ("second", "first", "b"),
        ("tie", "tie", "tie"),
        ("first", "first", "tie"),  # the place won, not the answer
        ("second", "second", "tie"),
        ("first", "tie", "tie"),
        (None, "first", None),
        ("tie", None, None),
    ],
)
def test_an_answer_wins_in_both_orders_or_not_at_all(a_first, b_first, expected):
    orders = both_orders(a_first, b_first)
    assert verdict(orders) == verdict(orders[::-1]) == expected


def test_pairs_worked_out_by_hand():
    pairs = [
        ("first", "second"),
        ("first", "second"),
        ("second", "first"),
        ("first", "first"),
        ("tie", "second"),
        ("tie", None),
    ]
    got = pairwise([both_orders(*pair) for pair in pairs], bootstrap=50)
    assert (got["judged"], got["wins"], got["ties"], got["losses"]) == (5, 2, 2, 1)
    assert got["win_rate"]["value"] == 3 / 5
    assert got["consistency"]["value"] == 3 / 5
    assert got["first"]["value"] == 5 / 9  # of nine decisions
    assert (got["first_twice"], got["second_twice"], got["position_test"]) == (1, 0, 1)
    assert got["sign_test"] == 1
    strict = pairwise([both_orders(*pair) for pair in pairs], failed_as=0.0, bootstrap=50)
    assert (strict["judged"], strict["losses"], strict["win_rate"]["value"]) == (5, 2, 3 / 6)


def test_no_verdict_at_all_is_no_win_rate():
    got = pairwise([both_orders(None, "first")] * 3, bootstrap=20)
    assert (got["judged"], got["wins"], got["sign_test"], got["position_test"]) == (0, 0, 1, 1)
    assert got["win_rate"]["value"] is got["consistency"]["value"] is got["first"]["value"] is None


@settings(max_examples=50)
@given(st.lists(st.tuples(WINNERS, WINNERS), min_size=1, max_size=10))
def test_a_and_b_the_other_way_round_turn_every_figure_of_a_and_none_of_the_judge(pairs):
    orders = [both_orders(*pair) for pair in pairs]
    swapped = [[order | {"first": "b" if order["first"] == "a" else "a"} for order in pair] for pair in orders]
    got, back = pairwise(orders, bootstrap=30), pairwise(swapped, bootstrap=30)
    assert (got["wins"], got["ties"], got["losses"]) == (back["losses"], back["ties"], back["wins"])
    for name in ("judged", "consistency", "first", "first_twice", "second_twice", "sign_test", "position_test"):
        assert got[name] == back[name]
    if got["judged"]:
        assert got["win_rate"]["value"] == pytest.approx(1 - back["win_rate"]["value"])
        assert 0 <= got["win_rate"]["low"] <= got["win_rate"]["value"] <= got["win_rate"]["high"] <= 1
        assert got["wins"] + got["ties"] + got["losses"] == got["judged"]


def test_a_judge_that_prefers_the_first_place_is_caught_and_its_answers_tie():
    biased = pairwise(judging(np.random.default_rng(0), np.full(300, 0.5), first=0.8))
    assert 0.7 < biased["first"]["low"] < 0.8 < biased["first"]["high"] < 0.9
    assert biased["position_test"] < 1e-6
    assert biased["consistency"]["high"] < 0.5
    assert biased["win_rate"]["low"] < 0.5 < biased["win_rate"]["high"]
    fair = pairwise(judging(np.random.default_rng(1), np.full(300, 0.5)))
    assert fair["first"]["low"] < 0.5 < fair["first"]["high"]
    assert fair["position_test"] > 0.05


def test_a_judge_that_knows_what_is_better_says_so_in_both_orders():
    got = pairwise(judging(np.random.default_rng(0), np.repeat([1 - 1e-9, 1e-9], [70, 30])))
    assert (got["wins"], got["losses"], got["win_rate"]["value"], got["consistency"]["value"]) == (70, 30, 0.7, 1)
    assert got["first"]["value"] == 0.5
    assert got["sign_test"] == pytest.approx(scipy.stats.binomtest(70, 100).pvalue)


# -- lengths ---------------------------------------------------------------------------------------------------------------


def long_winded(n: int, seed: int, liking: float = 1.4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Preferences of a judge that likes length between answers of equal quality, of which those of a are longer."""
    rng = np.random.default_rng(seed)
    a, b = rng.poisson(28, n), rng.poisson(24, n)
    drawn = [rng.random(n) < 1 / (1 + np.exp(-liking * np.tanh((a - b) / (a - b).std()))) for _ in range(2)]
    return (drawn[0] + drawn[1].astype(float)) / 2, a, b  # 1, 0.5 or 0


@pytest.mark.parametrize("seed", range(4))
def test_the_length_controlled_win_rate_is_scikit_learn_s_regression(seed):
    y, a, b = long_winded(150, seed)
    got = length_controlled(y, a, b)
    x = np.tanh((a - b) / (a - b).std())[:, None]
    # a preference of 0.5 is half a win and half a loss
    model = LogisticRegression(C=100.0, tol=1e-10, max_iter=1000)
    model.fit(np.concatenate([x, x]), np.repeat([1, 0], len(y)), sample_weight=np.concatenate([y, 1 - y]))
    assert got["value"] == pytest.approx(model.predict_proba([[0.0]])[0, 1], abs=1e-6)
    assert got["length"]["value"] == pytest.approx(model.coef_.item(), abs=1e-5)


def test_a_judge_that_likes_length_is_corrected():
    y, a, b = long_winded(2000, seed=0)
    assert y.mean() > 0.57
    got = length_controlled(y, a, b)
    assert got["low"] < 0.5 < got["high"]
    assert got["high"] < y.mean()
    assert got["length"]["low"] < 1.4 < got["length"]["high"]
    shorter = length_controlled(y, b, a)  # the judge's liking as it would look if the lengths were the others'
    assert shorter["length"]["value"] == pytest.approx(-got["length"]["value"])


def test_what_is_better_stays_better_at_equal_length():
    rng = np.random.default_rng(3)
    a, b = rng.poisson(20, 800), rng.poisson(30, 800)
    y = (rng.random(800) < 0.7).astype(float)  # whatever the length
    got = length_controlled(y, a, b)
    assert got["low"] < 0.7 < got["high"]
    assert got["length"]["low"] < 0 < got["length"]["high"]


def test_the_standard_error_is_that_of_fits_to_other_answers():
    y, a, b = long_winded(200, seed=5)
    got, rng = length_controlled(y, a, b), np.random.default_rng(0)
    fits = [length_controlled(y[rows], a[rows], b[rows])["value"] for rows in rng.integers(0, 200, (400, 200))]
    assert got["error"] == pytest.approx(np.std(fits), rel=0.15)  # 400 fits tell it to 4 %, and s is drawn anew with them


def test_its_interval_holds_the_truth_as_often_as_it_says():
    held = 0
    for seed in range(200):
        got = length_controlled(*long_winded(120, seed))
        held += got["low"] <= 0.5 <= got["high"]
    assert 0.91 < held / 200 < 0.99


VERDICTS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=20
)


@settings(max_examples=100)
@given(VERDICTS)
def test_the_other_way_round_the_rates_add_up_to_one(rows):
    y, a, b = np.array(rows).T
    got, back = length_controlled(y, a, b), length_controlled(1 - y, b, a)
    assert 0 <= got["value"] <= 1
    assert got["value"] == pytest.approx(1 - back["value"], abs=1e-6)
    if got["error"] is not None:
        assert got["error"] == pytest.approx(back["error"], abs=1e-6)
        assert 0 <= got["low"] <= got["value"] <= got["high"] <= 1
    else:
        assert y.mean() in (0, 1)


def test_equal_lengths_change_nothing_and_a_clean_sweep_has_no_interval():
    y = preference(["a", "a", "tie", "b", None])
    assert y[:4].tolist() == [1, 1, 0.5, 0]
    assert math.isnan(y[4])
    assert length_controlled(y[:4], np.full(4, 7), np.full(4, 7))["value"] == pytest.approx(0.625)
    swept = length_controlled(np.ones(9), np.arange(9), np.zeros(9))
    assert swept == {"value": 1, "low": None, "high": None, "error": None, "length": {"value": None, "low": None, "high": None}}
    assert length_controlled(np.array([]), np.array([]), np.array([]))["value"] is None


def test_length_that_decides_everything_has_a_finite_weight():
    d = np.concatenate([np.arange(1, 40), -np.arange(1, 40)])
    got = length_controlled((d > 0).astype(float), d, np.zeros(len(d)))
    assert got["value"] == pytest.approx(0.5, abs=1e-6)
    assert 3 < got["length"]["value"] < 100
