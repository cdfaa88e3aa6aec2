"""The comparison page: runs in, one HTML file out that holds all it needs and opens without a network.

`write_page` takes what `load_runs` read, and makes of it what page.html (the frame), page.css and page.js (the glue
between the libraries) show: plotly draws, DataTables (as itables ships it) sorts and filters. Texts of runs are data
here, never markup: Jinja2 escapes them in the frame, the JSON for page.js cannot leave its element, and plotly's labels
are escaped once more, as plotly reads tags in them.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2x import __version__
from gpt2x.compare.importance import Importance, importance
from gpt2x.compare.runs import AXES, Runs
from gpt2x.compare.statistics import Group, decisive, groups, higher_is_better, seeds, values
from gpt2x.compare.tables import said, short_keys, varied
from gpt2x.config.option import show
from gpt2x.files import write_atomic

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

AXIS_NAMES = {"step": "step", "tokens": "tokens", "seconds": "seconds", "flops": "FLOPs (estimated)"}
MAX_POINTS = 2_000  # of a curve: more than a screen has columns
MIN_POINTS = 50
ALL_POINTS = 1_200_000  # of all curves on a page, of 4 bytes each: about 6 MB as text
PARALLEL_SETTINGS = 10  # as many axes as can be read
PARALLEL_TICKS = 20  # of an axis, as many as have room
SAMPLES_PER_RUN = 6
SAMPLE_CHARACTERS = 4_000

_HERE = Path(__file__).parent


def write_page(runs: Runs, path: str | Path, *, metric: str = "val/loss", title: str = "Comparing runs") -> None:
    """Write the page that compares `runs` to `path`, atomically.

    Args:
        runs: from `load_runs`; any number of them, in whatever state.
        metric: what the runs are ranked by: their best value over the run, with "last.NAME" that of the last evaluation.
        title: the page's heading.

    Raises:
        ConfigError: no run has the metric (val/loss may be missing: the page then says so).
    """
    import jinja2
    from markupsafe import Markup  # comes with Jinja2

    page = _Page(runs, metric)
    scripts = _scripts()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, loader=jinja2.FileSystemLoader(_HERE))
    text = environment.get_template("page.html").render(
        title=title,
        policy=_policy(scripts),
        style=Markup(_datatables(".css") + (_HERE / "page.css").read_text(encoding="utf-8")),
        data=Markup(_json(page.data())),
        **{name: Markup(script) for name, script in scripts.items()},
        **page.words(),
    )
    write_atomic(path, text)


class _Page:
    """What the frame and the script need to know of `runs`."""

    def __init__(self, runs: Runs, metric: str):
        import numpy as np

        self.runs, self.table, self.metric = runs, runs.table, metric
        self.names = [str(name) for name in self.table.index]
        found = values(runs, metric).to_numpy(dtype="float64")
        self.values = np.where(np.isfinite(found), found, np.nan)
        self.settings = runs.differing()
        self.varied = varied(runs)
        self.metrics = _by_interest([name for name in runs.metrics if name not in ("run", *AXES)], runs.metrics)
        self.axes = [name for name in AXES if name in runs.metrics and np.isfinite(runs.metrics[name]).any()] or ["step"]
        self.groups, self.seeds = groups(runs, metric), seeds(runs).dropna().to_dict()
        self.places = {name: i for i, name in enumerate(self.names)}
        worse = -self.values if higher_is_better(metric) else self.values
        self.order = np.argsort(worse, kind="stable").tolist()  # the best run first, those without a value last
        finished = (self.table["status"] == "finished").to_numpy()
        self.importance = importance(self.table[finished], self.varied, self.values[finished])
        self.parallel = self._parallel()
        self.samples = self._samples()
        self.points = self._points()

    # ---- what is said in words

    def words(self) -> dict[str, Any]:
        counts = self.table["status"].value_counts()
        left = self.metric if self.metric in self.metrics else next(iter(self.metrics), None)
        others = [name for name in ("train/loss", "val/loss", *self.metrics) if name in self.metrics and name != left]
        columns, rows = self._table()
        return {
            "counted": f"{len(self.table)} run{'s' * (len(self.table) != 1)}: "
            + ", ".join(f"{count} {status}" for status, count in counts.items()),
            "when": _when(self.table["started"]),
            "source": str(self.runs.root),
            "best": self._best(),
            "metric": self.metric,
            "warnings": self._warnings(),
            "problems": self.runs.problems,
            "columns": columns,
            "rows": [list(zip(rows[i], columns, strict=True)) for i in self.order],
            "metrics": self.metrics,
            "axes": [(name, AXIS_NAMES[name]) for name in self.axes],
            "left": left,
            "right": next(iter(others), left),
            "repeated": any(len(group.runs) > 1 for group in self.groups),
            "curves_note": self._curves_note(),
            "parallel": bool(self.parallel),
            "settings_note": self._settings_note(),
            "importance_note": self._importance_note(),
            "importance_label": self._importance_label(),
            "samples_note": f"Texts are the last ones that a run generated, at most {SAMPLES_PER_RUN}."
            if self.samples
            else "None of the runs has generated texts.",
            "made": f"Made by gpt2x {__version__} on {time.strftime('%d %B %Y')}. "
            "Everything is in this file; it loads nothing from anywhere.",
        }

    def _best(self) -> dict[str, str | None] | None:
        import numpy as np

        if not np.isfinite(self.values).any() or self.runs.apart():
            return None
        best = self.order[0]
        row = self.table.iloc[best]
        known = row["metric_name"] == self.metric and not math.isnan(row["best_step"])
        return {
            "run": self.names[best],
            "value": _number(self.values[best]),
            "step": f"{row['best_step']:,.0f}" if known else None,
        }

    def _warnings(self) -> list[str]:
        import numpy as np

        warnings = []
        if not np.isfinite(self.values).any():
            warnings.append(f"None of the runs has a {self.metric} yet.")
        if apart := self.runs.apart():
            warnings.append(f"{apart} Filter the table by them.")
        return warnings

    def _curves_note(self) -> str:
        longest = int(self.runs.metrics.groupby("run", observed=True).size().max()) if len(self.runs.metrics) else 0
        rows = math.ceil(longest / self.points)
        return (
            "Drag to zoom, double-click to go back, point at a curve for its run. Smoothing is an exponential moving average "
            "whose half-life is 0.5, 2 or 8 % of a curve's points."
            + (f" A point is the mean of up to {rows} logged rows." if rows > 1 else "")
        )

    def _settings_note(self) -> str:
        if not self.varied:
            return "No setting that decides anything differs between the runs: there is nothing to draw."
        if not self.parallel:
            return f"No run has a {self.metric}: there is nothing to draw."
        cut = f" These are {PARALLEL_SETTINGS} of {len(self.varied)} settings." if len(self.varied) > PARALLEL_SETTINGS else ""
        return (
            "A line is a run; of settings that always change together one is drawn. Drag along an axis to keep a part of it, "
            f"or an axis by its name to move it.{cut}"
        )

    def _importance_note(self) -> str:
        if isinstance(self.importance, str):
            return self.importance
        found = self.importance
        return (
            f"How much of the differences in {self.metric} (the variance of its rank) hangs on a setting, alone or with "
            f"others, as a random forest sees it that explains {found.r2:.0%} of them in runs it has not seen. n = {found.n} "
            "finished runs; ± standard error over five folds. It is about these runs and the range they tried, nothing else."
        )

    def _importance_label(self) -> str | None:
        if isinstance(self.importance, str):
            return None
        found = self.importance
        lines = (f"{_short(n)} {m:.3f} ± {e:.3f}" for n, m, e in zip(found.settings, found.mean, found.error, strict=True))
        return "Importance: " + ", ".join(lines)

    # ---- the table

    def _table(self) -> tuple[list[dict[str, Any]], list[list[dict[str, str]]]]:
        """Its columns and its rows of cells; best runs first."""
        import pandas as pd

        table = self.table
        named = {"run": pd.Series(self.names, index=table.index), "status": table["status"]}
        named[self.metric] = pd.Series(self.values, index=table.index)
        hidden = {"error", "parameters", "flops", "started", "overrides", "git_commit"}
        for name in ("best_step", "steps", "tokens", "seconds"):
            named[name.replace("_", " ")] = table[name]
        if table["error"].notna().any():
            named["error"] = table["error"]
        named |= {_short(name): table[name] for name in self.settings}
        hidden |= {_short(name) for name in self.settings if name in decisive(self.runs) and name not in self.varied}
        for name in [name for name in table if name.startswith("last.")]:
            if table[name].notna().any() and name != self.metric:
                named[f"last {name[5:]}"] = table[name]
                hidden |= {f"last {name[5:]}"} if _seldom(name[5:]) else set()
        named |= {name: table[name] for name in ("parameters", "flops", "started", "overrides", "git_commit")}
        named = {title: column for title, column in named.items() if title in ("run", "status") or column.notna().any()}
        if len(table) > 1:  # what is the same in all tells nothing
            hidden |= {title for title, column in named.items() if column.map(str).nunique() == 1} - {
                "run",
                "status",
                self.metric,
            }
        columns = [{"title": title, "number": _is_number(column), "hidden": title in hidden} for title, column in named.items()]
        cells = [
            [_cell(value, column["number"], column["title"]) for value in cells]
            for column, cells in zip(columns, named.values(), strict=True)
        ]
        return columns, [[column[i] for column in cells] for i in range(len(table))]

    # ---- what the script draws

    def data(self) -> dict[str, Any]:
        arrays = _Arrays()
        curves = self._curves(arrays)
        settings = {_short(name): [_shown(value) for value in self.table[name]] for name in self.settings}
        about = {
            "status": self.table["status"].tolist(),
            self.metric: [_number(value) for value in self.values],
            "steps": [_number(value) for value in self.table["steps"]],
        }
        if self.table["error"].notna().any():
            about["error"] = ["" if error is None else str(error) for error in self.table["error"]]
        return {
            "runs": self.names,
            "labels": [_label(name) for name in self.names],
            "order": self.order,
            "groups": [
                {
                    "settings": self._group_settings(group),
                    "n": self._counted_as(group),
                    "runs": [self.places[run] for run in group.runs],
                }
                for group in self.groups
            ],
            "axes": AXIS_NAMES,
            "curves": curves,
            "arrays": arrays.encoded,
            "metric": _label(self.metric),
            "parallel": self.parallel,
            "importance": self._importance_bars(),
            "about": about,
            "settings": settings,
            "samples": self.samples,
        }

    def _group_settings(self, group: Group) -> dict[str, str | None]:
        """Its settings that others have otherwise, by short names, None where it has none: what the script names it by."""
        named = {name: said(column, group.settings.get(column)) for column, name in short_keys(self.varied).items()}
        return {_label(name): None if value is None else _label(_shown(value), 32) for name, value in named.items()}

    def _counted_as(self, group: Group) -> str:
        return f"n={group.n}" if group.n else f"n={len(self._counted(group))}, none of which counts for a verdict"

    def _counted(self, group: Group) -> list[list[int]]:
        """The runs that a group's mean is taken over, those of each seed together: the finished ones, if there are any.

        A run of which no seed is known counts where there is nothing else, by itself."""
        finished = [run for run in group.runs if self.table.at[run, "status"] == "finished"]
        by_seed: dict[int | None, list[int]] = {}
        for run in finished or group.runs:
            by_seed.setdefault(self.seeds.get(run), []).append(self.places[run])
        unknown = by_seed.pop(None, [])
        return list(by_seed.values()) or [[place] for place in unknown]

    def _points(self) -> int:
        """How many points a curve may have for the page to stay small."""
        arrays = (len(self.table) + 2 * len(self.groups)) * (len(self.metrics) + 1)
        return min(MAX_POINTS, max(MIN_POINTS, ALL_POINTS // arrays))

    def _curves(self, arrays: _Arrays) -> dict[str, dict[str, list]]:
        """For each metric {"run": [curve of each run], "group": [curve of each group]}: a curve is None or
        {"x": {axis: array}, "y": array, "error": array}, each array given by its number."""
        import numpy as np

        metrics = self.runs.metrics
        codes = metrics["run"].cat.codes.to_numpy()
        starts = np.searchsorted(codes, np.arange(len(self.names) + 1))  # the rows of a run lie together
        axes = {axis: metrics[axis].to_numpy(dtype="float64") for axis in self.axes}
        columns = {metric: metrics[metric].to_numpy(dtype="float64") for metric in self.metrics}
        whole = [  # of each run, each metric where it was measured: {axis: values, "y": values}
            {metric: _measured(axes, column, slice(*span)) for metric, column in columns.items()} for span in pairwise(starts)
        ]
        return {
            metric: {
                "run": [self._curve(arrays, curves[metric]) for curves in whole],
                "group": [
                    self._curve(
                        arrays, _mean([_mean([whole[i][metric] for i in same]) for same in self._counted(group)], error=True)
                    )
                    for group in self.groups
                ],
            }
            for metric in self.metrics
        }

    def _curve(self, arrays: _Arrays, curve: dict[str, np.ndarray] | None) -> dict[str, Any] | None:
        if curve is None:
            return None
        thin = {name: arrays.add(_thin(values, self.points)) for name, values in curve.items()}
        return {"x": {axis: thin[axis] for axis in self.axes}} | {name: thin[name] for name in ("y", "error") if name in thin}

    def _importance_bars(self) -> dict[str, Any] | None:
        if not isinstance(self.importance, Importance):
            return None
        found = self.importance
        return {"labels": [_label(_short(name)) for name in found.settings], "mean": found.mean, "error": found.error}

    def _parallel(self) -> list[dict[str, Any]]:
        """The axes of the parallel coordinates: the settings that differ, then the metric; values of runs without it null."""
        import numpy as np
        import pandas as pd

        measured = np.isfinite(self.values)
        if not measured.any() or not self.varied:
            return []
        first = self.importance.settings if isinstance(self.importance, Importance) else []
        important = [name for names in first for name in names.split(" = ")]
        varied = sorted(self.varied, key=lambda name: important.index(name) if name in important else len(important))
        axes = [_axis(_short(name), self.table[name]) for name in varied[:PARALLEL_SETTINGS]]
        return [*axes, _axis(self.metric, pd.Series(self.values), measured=True)]

    def _samples(self) -> dict[int, list[dict[str, str]]]:
        """The texts that each run generated last, by the run's position."""
        samples = self.runs.samples
        if not len(samples):
            return {}
        last = samples[samples["step"] == samples.groupby("run")["step"].transform("max")]
        found: dict[int, list[dict[str, str]]] = {}
        for row in last.to_dict("records"):
            texts = found.setdefault(self.places[row["run"]], [])
            if len(texts) < SAMPLES_PER_RUN:
                asked = row["question"] if isinstance(row["question"], str) else row["prompt"]
                known = {"step": f"{row['step']:,}", "prompt": asked, "text": row["text"], "reference": row["reference"]}
                texts.append({name: _cut(text) for name, text in known.items() if isinstance(text, str)})
        return found


class _Arrays:
    """Columns of float32 as base64, each kept once: the steps and tokens of a sweep's runs are mostly the same."""

    def __init__(self):
        self.encoded: list[str] = []
        self._known: dict[bytes, int] = {}

    def add(self, values: np.ndarray) -> int:
        """Its number."""
        import numpy as np

        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and not drawn
            packed = values.astype("<f4").tobytes()
        if packed not in self._known:
            self._known[packed] = len(self.encoded)
            self.encoded.append(base64.b64encode(packed).decode("ascii"))
        return self._known[packed]


def _by_interest(metrics: list[str], frame: pd.DataFrame) -> list[str]:
    """Those that were ever measured: losses first, then what else was evaluated, then the rest."""
    known = [name for name in metrics if frame[name].notna().any()]
    first = ["val/loss", "train/loss"]
    return sorted(known, key=lambda name: first.index(name) if name in first else 2 if name.startswith("val/") else 3)


def _seldom(metric: str) -> bool:
    """Whether a last value is looked at so seldom that its column is hidden at first: what is of a part of the data."""
    return metric.count("/") > 1 or metric.startswith("train/")


def _measured(axes: dict[str, np.ndarray], column: np.ndarray, rows: slice) -> dict[str, np.ndarray] | None:
    import numpy as np

    values = column[rows]
    known = np.isfinite(values)
    if not known.any():
        return None
    return {axis: steps[rows][known] for axis, steps in axes.items()} | {"y": values[known]}


def _mean(curves: list[dict[str, np.ndarray] | None], *, error: bool = False) -> dict[str, np.ndarray] | None:
    """The mean of some curves, with its standard `error` if wanted, at the steps that all of them have; None without any."""
    import numpy as np

    curves = [curve for curve in curves if curve is not None]
    if not curves:
        return None
    shared = curves[0]["step"]
    for curve in curves[1:]:
        shared = np.intersect1d(shared, curve["step"])
    at = [np.searchsorted(curve["step"], shared) for curve in curves]
    stacked = {name: np.stack([curve[name][i] for curve, i in zip(curves, at)]) for name in curves[0]}
    mean = {name: values.mean(axis=0) for name, values in stacked.items()}
    if error and len(curves) > 1:
        mean["error"] = stacked["y"].std(axis=0, ddof=1) / len(curves) ** 0.5
    return mean if len(shared) else None


def _thin(values: np.ndarray, points: int) -> np.ndarray:
    """At most `points` values: the means of as many stretches of equal length. Means, not every k-th value: what is
    smoothed afterwards must not depend on which rows were met."""
    import numpy as np

    if len(values) <= points:
        return values
    starts = np.linspace(0, len(values), points + 1).astype(int)
    return np.add.reduceat(values, starts[:-1]) / np.diff(starts)


def _axis(label: str, column: pd.Series, measured: bool = False) -> dict[str, Any]:
    """An axis of the parallel coordinates: a number for each run and what the ticks say. A setting has ticks at the values
    that were tried; what was `measured` may be missing (null) for some runs. A wide range is logarithmic."""
    import numpy as np
    import pandas as pd

    if measured or (_is_number(column) and column.notna().all()):
        values = pd.to_numeric(column).to_numpy(dtype="float64")
        known = np.unique(values[np.isfinite(values)])
        log = known[0] > 0 and known[-1] / known[0] >= 30
        ticks = None
        if len(known) <= 8 and not measured:
            ticks = known
        elif log:
            ticks = 10 ** np.arange(np.ceil(np.log10(known[0])), np.log10(known[-1]))
        values = np.log10(values) if log else values
        if ticks is not None:
            ticks = _apart(np.log10(ticks) if log else ticks)
        axis = {"label": _label(label), "values": [None if math.isnan(value) else value for value in values.tolist()]}
        if ticks is not None:
            axis["tickvals"] = ticks
            axis["ticktext"] = [_number(float(f"{10**tick:.12g}") if log else tick) for tick in ticks]
        return axis
    codes, levels = pd.factorize(column.map(lambda value: _shown(said(label, value))), sort=True)
    ticks = _apart(np.arange(len(levels)))
    return {
        "label": _label(label),
        "values": codes.tolist(),
        "tickvals": ticks,
        "ticktext": [_label(levels[tick], 24) for tick in ticks],
    }


def _apart(ticks: np.ndarray) -> list[float]:
    """Of an axis' ticks in ascending order those that have room for their texts: the first, the last, and what is between."""
    room = (ticks[-1] - ticks[0]) / PARALLEL_TICKS if len(ticks) else 0
    kept: list[float] = []
    for tick in ticks.tolist():
        if not kept or tick - kept[-1] >= room:
            kept.append(tick)
    if kept and kept[-1] != ticks[-1]:
        kept[-1] = ticks[-1].item()
    return kept


def _is_number(column: pd.Series) -> bool:
    known = column.dropna()
    return len(known) > 0 and known.map(lambda value: isinstance(value, (int, float)) and not isinstance(value, bool)).all()


def _cell(value: Any, number: bool, title: str) -> dict[str, str]:
    """What a cell of the table says, and what it is sorted by; a missing number comes last."""
    import pandas as pd

    missing = not isinstance(value, (list, tuple, dict)) and pd.isna(value)
    if title == "started":
        return {"text": "" if missing else f"{value:%Y-%m-%d %H:%M}", "order": "" if missing else value.isoformat()}
    if number:
        if missing:
            return {"text": "", "order": "1e308"}
        return {"text": f"{value:,.1f}" if title == "seconds" else _number(value), "order": repr(float(value))}
    text = "" if missing else _shown(value)
    return {"text": text, "order": text}


def _shown(value: Any) -> str:
    """A value as one types it; a number that is missing, or a setting that a run does not have, as a dash."""
    if isinstance(value, float) and math.isnan(value):
        return "–"
    return value if isinstance(value, str) else show(value.item() if hasattr(value, "item") else value)


def _number(value: float) -> str:
    """Short, and with enough digits to tell runs apart."""
    if math.isnan(value):
        return "–"
    if not math.isfinite(value):
        return str(value)
    if value == int(value):
        return f"{value:,.0f}" if abs(value) < 1e9 else f"{value:.3e}"
    return f"{value:.5g}" if abs(value) < 1e4 else f"{value:,.1f}" if abs(value) < 1e9 else f"{value:.3e}"


def _short(setting: str) -> str:
    return setting.replace("config.", "")


def _label(text: str, length: int = 48) -> str:
    """Text as plotly draws it, which would take tags in it for markup; a long one without its middle."""
    if len(text) > length:
        text = f"{text[: length // 2]}…{text[-(length // 2 - 1) :]}"
    return html.escape(text.replace("\n", " "), quote=False)


def _cut(text: str) -> str:
    return text if len(text) <= SAMPLE_CHARACTERS else f"{text[:SAMPLE_CHARACTERS]} … ({len(text):,} characters)"


def _when(started: pd.Series) -> str:
    """From the first start to the last."""
    known = started.dropna()
    if not len(known):
        return ""
    first, last = known.min(), known.max()
    end = f"{last:%H:%M}" if first.date() == last.date() else f"{last:%d %B %Y, %H:%M}"
    if len(known) == 1:
        return f"started {first:%d %B %Y, %H:%M} UTC"
    return f"started {first:%d %B %Y, %H:%M} to {end} UTC"


def _json(value: Any) -> str:
    """JSON that cannot end, or comment out, the script element that it stands in."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _datatables(ending: str) -> str:
    """DataTables with its extensions as itables ships it: one module, one style sheet."""
    import itables.options

    return Path(itables.options.dt_bundle).with_suffix(ending).read_text(encoding="utf-8")


def _scripts() -> dict[str, str]:
    """The page's scripts, in the order they run."""
    from plotly.offline import get_plotlyjs

    module = base64.b64encode(_datatables(".js").encode()).decode("ascii")
    return {
        "plotly": get_plotlyjs(),
        "imports": json.dumps({"imports": {"datatables": f"data:text/javascript;base64,{module}"}}),
        "script": (_HERE / "page.js").read_text(encoding="utf-8"),
    }


def _policy(scripts: dict[str, str]) -> str:
    """A content security policy: nothing is loaded from anywhere, and no script runs but these (so no event handler that
    came in with a text either)."""
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts.values())
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed} 'unsafe-eval' data:; "  # plotly compiles its shaders' drawing code
        "style-src 'unsafe-inline'; img-src data: blob:; font-src data:"
    )
