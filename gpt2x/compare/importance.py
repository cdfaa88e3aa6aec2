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

    An importance is what the forest's R² on runs it has not seen loses when that setting is shuffled among them; 0 is
    none, and about `r2`, what the forest reaches unshuffled, is all there is. Settings that always change together
    cannot be told apart and share a line ("a = b").
    """

    settings: list[str]
    mean: list[float]
    error: list[float]
    r2: float
    n: int


def importance(table: pd.DataFrame, settings: Sequence[str], metric: Sequence[float], seed: int = 0) -> Importance | str:
    """Permutation importance (Breiman, Random Forests, 2001), on held-out runs of five-fold cross-validation.

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
    r2, drops_BF = _drops(columns_NF, ranks, seed)
    if r2 <= 0:
        return f"A forest cannot predict the result from the settings here (R² {r2:.2f} on runs it has not seen), so it has no say."
    mean, error = drops_BF.mean(axis=0), drops_BF.std(axis=0, ddof=1) / len(drops_BF) ** 0.5
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


def _drops(columns_NF: np.ndarray, target: np.ndarray, seed: int) -> tuple[float, np.ndarray]:
    """The mean R² on held-out runs, and what of it is lost without each of F settings in each of five folds (5, F)."""
    import numpy as np
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance
    from sklearn.model_selection import KFold

    scores, drops = [], []
    for train, test in KFold(5, shuffle=True, random_state=seed).split(columns_NF):
        forest = RandomForestRegressor(100, random_state=seed).fit(columns_NF[train], target[train])
        if np.ptp(target[test]) == 0:
            continue
        scores.append(forest.score(columns_NF[test], target[test]))
        found = permutation_importance(forest, columns_NF[test], target[test], n_repeats=5, random_state=seed)
        drops.append(found.importances_mean)
    return float(np.mean(scores)), np.array(drops)
