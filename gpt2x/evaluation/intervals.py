"""How far a measured number may be off: 95 % confidence intervals.

A share of independent trials has Wilson's interval (Wilson, 1927). What is no share of trials gets one from the bootstrap
(Efron, 1979): the rows of a split are drawn anew many times, with replacement, and the number is computed each time. A
number of resamples is computed at once, from how often each row was drawn. Where a row that is drawn twice counts for less
than two rows, as where different things are counted, the jackknife (Tukey, 1958) leaves out each row in turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

_Z = 1.959963984540054  # of the normal distribution, 95 % lie within as many standard deviations
_CELLS = 1 << 21  # numbers in memory at once: 16 MB


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % interval (low, high) of a share, of which `successes` in `trials` were seen; trials is at least 1."""
    share, z2 = successes / trials, _Z * _Z / trials
    middle = (share + z2 / 2) / (1 + z2)
    half = _Z * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials)) / (1 + z2)
    return min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))


def bootstrap(statistics: Callable[[np.ndarray], np.ndarray], strata: np.ndarray, *, samples: int, seed: int) -> np.ndarray:
    """Statistics of `samples` resamples, (samples, M).

    `statistics` gets (B, N) how often each of the N rows was drawn in each of B resamples, and gives (B, M). Rows are
    drawn within their stratum: every resample has as many rows with the same number in `strata` (N,) as there are.
    """
    return np.concatenate([statistics(counts_BN) for counts_BN in _resamples(strata, samples, seed)])


def _resamples(strata: np.ndarray, samples: int, seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    at_once = max(1, _CELLS // len(strata))
    for start in range(0, samples, at_once):
        n_resamples = min(at_once, samples - start)
        counts_BN = np.empty((n_resamples, len(strata)))
        for rows in members:
            drawn = rng.integers(0, len(rows), (n_resamples, len(rows)))
            drawn += len(rows) * np.arange(n_resamples)[:, None]  # each resample counts in places of its own
            counts_BN[:, rows] = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
        yield counts_BN


def interval(
    estimate: float, resampled: np.ndarray, *, lower: float = 0.0, upper: float = 1.0
) -> tuple[float, float] | tuple[None, None]:
    """The middle 95 % of `resampled` (samples,), moved so that their mean is the estimate, within `lower` and `upper`.

    The move matters where resampling itself shifts a number, as it does the calibration error: drawing rows again adds
    noise, which only ever makes that one larger. Resamples in which the number is not defined (NaN) are left out.
    """
    resampled = resampled[~np.isnan(resampled)]
    if len(resampled) == 0:
        return None, None
    low, high = np.quantile(resampled, [0.025, 0.975]) + (estimate - resampled.mean())
    return float(min(estimate, max(lower, low))), float(max(estimate, min(upper, high)))  # rounding may not cut it off


def measured(value: float | None, low: float | None = None, high: float | None = None) -> dict[str, float | None]:
    """A number with its interval, as reports have it: {"value", "low", "high"}, all None where it is not defined (NaN)."""
    if value is None or np.isnan(value):
        return {"value": None, "low": None, "high": None}
    return {"value": float(value), "low": low, "high": high}


def share(hits: int, trials: int) -> dict[str, float | None]:
    """A share of independent trials with Wilson's interval; not defined without any."""
    return measured(hits / trials, *wilson(int(hits), int(trials))) if trials else measured(None)


def ratio(
    parts_N: np.ndarray, wholes_N: np.ndarray, *, samples: int, seed: int, lower: float = 0.0, upper: float = 1.0
) -> dict[str, float | None]:
    """The sum of N rows' parts by that of their wholes, with the bootstrap's interval; a mean, where all wholes are 1.

    Without resamples the interval is None; ratios of the same N rows with the same seed are of the same resamples.
    """

    def ratios(counts_BN: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):  # 0 / 0 is what is not defined
            return ((counts_BN @ parts_N) / (counts_BN @ wholes_N))[:, None]

    parts_N, wholes_N = np.asarray(parts_N, dtype=float), np.asarray(wholes_N, dtype=float)
    value = float(ratios(np.ones((1, len(parts_N)))).item())
    draws = bootstrap(ratios, np.zeros(len(parts_N), dtype=int), samples=samples, seed=seed)[:, 0] if samples else np.empty(0)
    return measured(value, *interval(value, draws, lower=lower, upper=upper))


def jackknife(estimate: float, without: np.ndarray) -> tuple[float, float] | tuple[None, None]:
    """The 95 % interval of a share, within 0 and 1, from what it is without each of the N rows in turn: (N,).

    None where it is not defined without some row (NaN).
    """
    half = _Z * math.sqrt((len(without) - 1) / len(without) * float(((without - without.mean()) ** 2).sum()))
    if math.isnan(half):
        return None, None
    return max(0.0, estimate - half), min(1.0, estimate + half)
