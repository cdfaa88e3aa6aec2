"""What a judge's scores and verdicts show, and how far that may be chance.

Scores (N,) or the winners of pairs come in, plain numbers that can be written as JSON go out; a number with its 95 %
interval is {"value", "low", "high"}. The answers are what is drawn anew for an interval (intervals.py): it tells how far the
number may be off for other questions of the kind, asked of the same judge, not whether that one is right.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from gpt2x.evaluation.intervals import bootstrap as resampled
from gpt2x.evaluation.intervals import interval, measured, ratio, share

_Z = 1.959963984540054  # of the normal distribution, 95 % lie within as many standard deviations
_BINS = 10
_STEPS, _SMALL = 100, 1e-9  # of Newton's method, which takes about five, and how small the last one is


def mean(
    values_N: np.ndarray, *, lower: float = -np.inf, upper: float = np.inf, bootstrap: int = 1000, seed: int = 1
) -> dict[str, float | None]:
    """The mean of N answers' values, with an interval within `lower` and `upper`; not defined without any."""
    if len(values_N) == 0:
        return measured(None)
    return ratio(values_N, np.ones(len(values_N)), samples=bootstrap, seed=seed, lower=lower, upper=upper)


def distribution(scores_N: np.ndarray, scale: tuple[float, float]) -> list[dict[str, Any]]:
    """How many scores lie where on the scale: {"low", "high", "answers"} of ten parts of equal width, each without its upper
    end but the last; where all are of ten or fewer whole numbers, of each of these, low = high."""
    (low, high), scores_N = scale, np.asarray(scores_N, dtype=float)
    if high - low < _BINS and (scores_N % 1 == 0).all():
        values = np.arange(low, high + 1)
        return [{"low": float(v), "high": float(v), "answers": int((scores_N == v).sum())} for v in values]
    counts, edges = np.histogram(scores_N, _BINS, scale)
    return [{"low": float(a), "high": float(b), "answers": int(n)} for a, b, n in zip(edges, edges[1:], counts)]


def sign_test(wins: int, losses: int) -> float:
    """The two-sided p of so many wins, or more, where winning and losing are equally likely (exact binomial); ties say
    nothing and are left out. 1 without any win or loss."""
    from scipy.stats import binomtest

    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def difference(
    a_N: np.ndarray, b_N: np.ndarray, *, span: float = np.inf, bootstrap: int = 1000, seed: int = 1
) -> dict[str, Any]:
    """How much higher N values are than others of the same questions: of each question the difference is looked at, so that
    what is hard for both does not widen the interval (paired bootstrap).

    difference             mean of a - b, whose interval lies within -span and span
    wins, ties, losses     how often a is higher, the same, lower
    sign_test              p of these wins and losses, if there were no difference
    """
    gains = np.asarray(a_N, dtype=float) - np.asarray(b_N, dtype=float)
    wins, losses = int((gains > 0).sum()), int((gains < 0).sum())
    return {
        "difference": mean(gains, lower=-span, upper=span, bootstrap=bootstrap, seed=seed),
        "wins": wins,
        "ties": len(gains) - wins - losses,
        "losses": losses,
        "sign_test": sign_test(wins, losses),
    }


def verdict(orders: Sequence[dict[str, Any]]) -> str | None:
    """Which answer is better, "a", "b" or "tie", by a judge that saw both in either order; None where it failed in one.

    Each order is {"first": "a" or "b", "winner": "first", "second", "tie" or None}. An answer wins that does so in both orders;
    whatever depends on the order is a tie (Zheng et al., "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena", 2023).
    """
    votes = [_vote(order) for order in orders]
    if None in votes:
        return None
    return {1: "a", -1: "b"}.get(votes[0], "tie") if votes[0] == votes[1] else "tie"


def pairwise(
    orders_N: Sequence[Sequence[dict[str, Any]]], *, failed_as: float | None = None, bootstrap: int = 1000, seed: int = 1
) -> dict[str, Any]:
    """What N pairs show, of each of which there are two orders as `verdict` wants them.

    judged                   pairs with a verdict; the others are left out, or count as a preference of `failed_as`
    wins, ties, losses       of a
    win_rate                 mean preference for a: 1 a win, 0.5 a tie, 0 a loss
    sign_test                p of the wins and losses, if neither were better
    consistency              share of judged pairs of which both orders say the same
    first                    share of the decisions of judged pairs that went to the answer which stood first: 0.5 of a judge
                             that does not care for the order
    first_twice, second_twice  pairs in which the answer that stood there won in both orders
    position_test            p of those two, if the judge did not care for the order
    """
    votes = np.array([[_vote(order) or 0 for order in orders] for orders in orders_N]).reshape(-1, 2)
    judged = np.array([None not in map(_vote, orders) for orders in orders_N], dtype=bool)
    preferences = preference([verdict(orders) for orders in orders_N], failed_as)
    preferences = preferences[~np.isnan(preferences)]
    wins, losses = int((preferences > 0.5).sum()), int((preferences < 0.5).sum())
    winners = [[order["winner"] for order in orders] for orders, good in zip(orders_N, judged) if good]
    firsts, seconds = (np.array([pair.count(place) for pair in winners], dtype=int) for place in ("first", "second"))
    settings = {"bootstrap": bootstrap, "seed": seed}
    return {
        "judged": len(winners),
        "wins": wins,
        "ties": len(preferences) - wins - losses,
        "losses": losses,
        "win_rate": mean(preferences, lower=0.0, upper=1.0, **settings),
        "sign_test": sign_test(wins, losses),
        "consistency": share(int((votes[judged, 0] == votes[judged, 1]).sum()), len(winners)),
        "first": ratio(firsts, firsts + seconds, samples=bootstrap, seed=seed) if winners else measured(None),
        "first_twice": int((firsts == 2).sum()),
        "second_twice": int((seconds == 2).sum()),
        "position_test": sign_test(int((firsts == 2).sum()), int((seconds == 2).sum())),
    }


def preference(verdicts: Iterable[str | None], failed_as: float | None = None) -> np.ndarray:
    """Verdicts as preferences for a (N,): 1, 0.5 of a tie, 0; NaN, or `failed_as`, where there is none."""
    failed = np.nan if failed_as is None else failed_as
    return np.array([{"a": 1.0, "tie": 0.5, "b": 0.0, None: failed}[verdict] for verdict in verdicts])


def length_controlled(preferences_N: np.ndarray, a_N: np.ndarray, b_N: np.ndarray, *, penalty: float = 1e-2) -> dict[str, Any]:
    """The win rate of a if its answers were as long as those of b: {"value", "low", "high", "error", "length"}.

    Judges like long answers. A logistic regression of the preferences (0 to 1) on tanh(d / s) tells the two apart, where d are
    the lengths `a_N` - `b_N` (in any unit) and s is their standard deviation; the win rate is what it predicts at d = 0. It is
    that of AlpacaEval 2 (Dubois et al., "Length-Controlled AlpacaEval", 2024) without the term of each instruction's
    difficulty, which needs many models. `penalty` / 2 * weight ** 2 is added to the loss, so that the weight of the length is
    finite where length alone decides.

    error    standard error, from the sandwich covariance of the weights: preferences of 0.5 vary less than coins do. The
             interval is the one of the log-odds, so that it stays within 0 and 1
    length   the weight, {"value", "low", "high"}: above 0 where longer answers win more
    All but "value" is None where a wins all or none, which no finite weights predict; all where there is no preference.
    """
    y = np.asarray(preferences_N, dtype=float)
    if len(y) == 0 or np.isin(y.mean(), (0.0, 1.0)):
        return measured(y.mean() if len(y) else None) | {"error": None, "length": measured(None)}
    d = np.asarray(a_N, dtype=float) - np.asarray(b_N, dtype=float)
    x_N2 = np.column_stack([np.ones(len(d)), np.tanh(d / (d.std() or 1.0))])
    ridge = np.array([0.0, penalty])
    w = np.zeros(2)

    def probabilities(w: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x_N2 @ w))

    def objective(w: np.ndarray) -> float:
        z = x_N2 @ w
        return float((np.logaddexp(0, z) - y * z).sum() + (ridge * w * w).sum() / 2)

    def curvature(p: np.ndarray) -> np.ndarray:
        return (x_N2.T * (p * (1 - p))) @ x_N2 + np.diag(ridge)

    for _ in range(_STEPS):
        p = probabilities(w)
        step = np.linalg.solve(curvature(p), x_N2.T @ (p - y) + ridge * w)
        while objective(w - step) > objective(w) and abs(step).max() > _SMALL:  # too far: the loss is no parabola there
            step /= 2
        w = w - step
        if abs(step).max() <= _SMALL:
            break
    p = probabilities(w)
    inverse = np.linalg.inv(curvature(p))
    noise = x_N2 * (y - p)[:, None]
    deviations = np.sqrt((inverse @ (noise.T @ noise) @ inverse).diagonal())
    low, value, high = (1 / (1 + np.exp(-w[0] - z * deviations[0])) for z in (-_Z, 0.0, _Z))
    length = measured(w[1], *(float(w[1] + z * deviations[1]) for z in (-_Z, _Z)))
    return measured(value, float(low), float(high)) | {"error": float(value * (1 - value) * deviations[0]), "length": length}


def spearman(a_N: np.ndarray, b_N: np.ndarray, *, bootstrap: int = 1000, seed: int = 1) -> dict[str, float | None]:
    """Spearman's rank correlation of two judges' scores; equal scores share their mean rank. Not defined where a judge gives
    every answer the same. Ranks are taken anew in each resample."""
    if len(a_N) == 0:
        return measured(None)
    ranks = [_Ranks(np.asarray(scores, dtype=float)) for scores in (a_N, b_N)]

    def correlations(counts_BN: np.ndarray) -> np.ndarray:
        totals_B1 = counts_BN.sum(axis=1, keepdims=True)
        a_BN, b_BN = (rank(counts_BN) - (totals_B1 + 1) / 2 for rank in ranks)
        squares = (counts_BN * a_BN**2).sum(axis=1) * (counts_BN * b_BN**2).sum(axis=1)
        with np.errstate(invalid="ignore"):  # a judge without any difference
            return ((counts_BN * a_BN * b_BN).sum(axis=1) / np.sqrt(squares))[:, None]

    value = float(np.clip(correlations(np.ones((1, len(a_N)))).item(), -1, 1))
    draws = np.empty(0)
    if bootstrap:
        draws = resampled(correlations, np.zeros(len(a_N), dtype=int), samples=bootstrap, seed=seed)[:, 0]
    return measured(value, *interval(value, draws, lower=-1.0))


def agreement(
    a_N: np.ndarray, b_N: np.ndarray, *, within: float, span: float = np.inf, bootstrap: int = 1000, seed: int = 1
) -> dict[str, Any]:
    """How far two judges, or a judge and a person, agree on the same N answers.

    answers         N
    spearman        rank correlation: whether they find the same answers better
    difference      mean of a - b: whether one is milder
    distance        mean of |a - b|
    exact           share of answers with the same score
    within          {"points", "value", "low", "high"}: share of answers with scores at most `within` points apart
    """
    gains = np.asarray(a_N, dtype=float) - np.asarray(b_N, dtype=float)
    settings = {"bootstrap": bootstrap, "seed": seed}
    near = abs(gains) <= within + 1e-9  # scores have few decimals, their differences may not
    return {
        "answers": len(gains),
        "spearman": spearman(a_N, b_N, **settings),
        "difference": mean(gains, lower=-span, upper=span, **settings),
        "distance": mean(abs(gains), lower=0.0, upper=span, **settings),
        "exact": share(int((gains == 0).sum()), len(gains)),
        "within": {"points": within} | share(int(near.sum()), len(gains)),
    }


class _Ranks:
    """Mean ranks (B, N) of scores (N,) that count `counts_BN` times: 1 of the lowest, equal ones together."""

    def __init__(self, scores_N: np.ndarray):
        self.order = np.argsort(scores_N, kind="stable")
        self.starts = np.flatnonzero(np.diff(scores_N[self.order], prepend=-np.inf))  # of the runs of equal scores
        self.group = np.searchsorted(self.starts, np.argsort(self.order), side="right") - 1

    def __call__(self, counts_BN: np.ndarray) -> np.ndarray:
        counts_BG = np.add.reduceat(counts_BN[:, self.order], self.starts, axis=1)
        return (counts_BG.cumsum(axis=1) - (counts_BG - 1) / 2)[:, self.group]


def _vote(order: dict[str, Any]) -> int | None:
    """1 for a, -1 for b, 0 for neither; None where the judge failed."""
    if order["winner"] in (None, "tie"):
        return None if order["winner"] is None else 0
    return 1 if (order["first"] == "a") == (order["winner"] == "first") else -1
