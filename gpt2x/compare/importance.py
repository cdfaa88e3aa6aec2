"""Which settings mattered: how much worse a forest predicts a metric when it is lied to about one of them.

Takes the table of runs and the names of the settings that differ; gives page.py, or a notebook, numbers to draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

MIN_RUNS = 10
RUNS_PER_SETTING = 3


@dataclass(frozen=True)
class Importance:
    """`settings` from the most important one on, with the `mean` and the standard `error` of each, of `n` runs.

    An importance is the share of the variance of the metric's rank that hangs on a setting, alone or together with others
    (0 none, 1 all; settings that act together count twice, so the sum may be more): Sobol's total index, as a forest sees
    it that explains the share `r2` in runs it has not seen. Settings that always change together cannot be told apart and
    share a line ("a = b").
    """

    settings: list[str]
    mean: list[float]
    error: list[float]
    r2: float
    n: int


def importance(table: pd.DataFrame, settings: Sequence[str], metric: Sequence[float], seed: int = 0) -> Importance | str:
    """Permutation importance (Breiman, Random Forests, 2001) in five-fold cross-validation, halved, as a shuffled setting
    errs on both sides (Gregorutti et al., Correlation and variable importance in random forests, 2017).

    The metric's rank is predicted, not its value, so that one diverged run does not decide everything.

    Args:
        table: one row a run.
        settings: the columns of `table` to judge, of numbers or of anything else.
        metric: of each run; runs where it is missing or not finite are left out.

    Returns:
        The importances, or, where an honest answer cannot be given, the reason why in a sentence.
    """
    import numpy as np
    import pandas as pd

    values = np.asarray(metric, dtype="float64")
    table, values = table[np.isfinite(values)], values[np.isfinite(values)]
    features = _features(table, settings)
    n, needed = len(values), max(MIN_RUNS, RUNS_PER_SETTING * len(features))
    if not features:
        return "No setting differs between the runs that have a result."
    if n < needed:
        return (
            f"Too few runs for an honest answer: {n} with a result, and {len(features)} settings that differ need {needed} "
            f"(at least {MIN_RUNS}, and {RUNS_PER_SETTING} a setting)."
        )
    if np.ptp(values) == 0:
        return "All runs have the same result."
    ranks = pd.Series(values).rank(pct=True).to_numpy()
    names, columns_NF = list(features), np.stack(list(features.values()), axis=1)
    r2, shares_BF = _shares(columns_NF, ranks, seed)
    if r2 <= 0:
        return (
            f"A forest that saw {n} runs cannot predict others from their settings (R² {r2:.2f}), so it says nothing of them."
        )
    mean, error = shares_BF.mean(axis=0), shares_BF.std(axis=0, ddof=1) / len(shares_BF) ** 0.5
    order = np.argsort(-mean, kind="stable")
    return Importance([names[i] for i in order], mean[order].tolist(), error[order].tolist(), r2, n)


def _features(table: pd.DataFrame, settings: Sequence[str]) -> dict[str, np.ndarray]:
    """A column of numbers (N,) for each setting that differs; one for those that divide the runs in the same way."""
    import pandas as pd

    by_partition: dict[bytes, tuple[list[str], np.ndarray]] = {}
    for name in settings:
        column = table[name]
        codes, levels = pd.factorize(column.map(str), sort=True)
        if len(levels) < 2:
            continue
        if not column.map(lambda value: isinstance(value, bool)).any():
            numbers = pd.to_numeric(column, errors="coerce")
            codes = numbers.to_numpy(dtype="float64") if numbers.notna().all() else codes
        partition = pd.factorize(column.map(str))[0].tobytes()
        by_partition.setdefault(partition, ([], codes.astype("float64")))[0].append(name)
    return {" = ".join(names): codes for names, codes in by_partition.values()}


def _shares(columns_NF: np.ndarray, target: np.ndarray, seed: int, repeats: int = 10) -> tuple[float, np.ndarray]:
    """R² in held-out runs, and the share of the variance that hangs on each of F settings in each of five folds (5, F)."""
    import numpy as np
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.model_selection import KFold

    rng = np.random.default_rng(seed)
    errors, shares = [], []
    for train, test in KFold(5, shuffle=True, random_state=seed).split(columns_NF):
        forest = RandomForestRegressor(100, random_state=seed).fit(columns_NF[train], target[train])
        error = (forest.predict(columns_NF[test]) - target[test]) ** 2
        errors.extend(error)
        more = []
        for i in range(columns_NF.shape[1]):
            shuffled_RTF = np.repeat(columns_NF[None, test], repeats, axis=0)
            shuffled_RTF[:, :, i] = rng.choice(columns_NF[:, i], shuffled_RTF.shape[:2])
            predicted_RT = forest.predict(shuffled_RTF.reshape(-1, columns_NF.shape[1])).reshape(repeats, -1)
            more.append(((predicted_RT - target[test]) ** 2).mean() - error.mean())
        shares.append(np.array(more) / (2 * target.var()))
    return float(1 - np.mean(errors) / target.var()), np.array(shares)
