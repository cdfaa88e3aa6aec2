"""Runs as tables: run folders in, pandas frames out.

`load_runs` finds run folders and reads what training wrote into them: config.yaml, overrides.txt, result.json,
metrics.jsonl, samples.jsonl. Nothing of a run is written, and no torch is needed. The frames go to statistics.py,
tables.py, curves.py and page.py, or into a notebook.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2x.config.check import check
from gpt2x.config.compose import plain_yaml
from gpt2x.config.option import ConfigError, show
from gpt2x.config.schema import BESIDE, TrainConfig, is_any_of
from gpt2x.errors import UserError
from gpt2x.tracking.result import read_result, status_of

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

_log = logging.getLogger(__name__)

AXES = ("step", "tokens", "seconds", "flops")
"""Columns of `Runs.metrics` that say how far a run was."""

_WITHOUT_RUNS = {"checkpoints", "cache", "wandb", "plots"}  # folders
_WHAT_IS_LEARNED = ("config.task._target_", "config.data.name", "config.data.path", "config.data.builtin", "config.tokenizer.")
_COLUMNS = [
    *("folder", "sweep", "job", "name", "status", "metric", "metric_name", "best_step", "steps", "tokens", "seconds", "flops"),
    *("parameters", "started", "config_hash", "git_commit", "error", "overrides"),
]
_NUMBERS = ["metric", "best_step", "steps", "tokens", "seconds", "flops", "parameters"]
_SAMPLES = ["run", "step", "prompt", "text", "question", "reference"]


@dataclass(frozen=True)
class Runs:
    """What is known of some runs, as pandas frames that share the names of the runs.

    `table` has one row a run. Its index "run" is the folder's path from `root`, the folder above all of them. Columns:
    folder (absolute), sweep and job (None where a run is not a job of a sweep), name, status ("finished", "failed",
    "interrupted", "pruned", "running", "killed"), metric (lowest validation loss, in nats), metric_name, best_step, steps,
    tokens, seconds, flops, parameters, started (UTC), config_hash, git_commit, error, overrides (as they were typed), then
    "config.<dotted key>" for every setting and "last.<metric>" for the last evaluation. What is not known is missing.

    `metrics` has one row for each row that a run logged: run (a category), step, tokens, seconds, flops, and a column of
    floats for each metric, such as "train/loss"; NaN where it was not measured. Tables of numbers are left out.

    `samples` has one row a generated text: run, step, prompt, text, question, reference.

    `problems` says what of the runs could not be read.
    """

    root: Path
    table: pd.DataFrame
    metrics: pd.DataFrame
    samples: pd.DataFrame
    problems: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.table)

    def select(self, names: Iterable[str]) -> Runs:
        """The same of some runs alone, by their names in the table's index."""
        names = list(names)
        metrics, samples = (frame[frame["run"].isin(names)].copy() for frame in (self.metrics, self.samples))
        metrics["run"] = metrics["run"].cat.set_categories(names)
        return Runs(self.root, self.table.loc[names], metrics, samples, self.problems)

    def curve(self, run: str, metric: str, x: str = "step") -> pd.DataFrame:
        """One run's `x` and `metric`, in the order they were logged, where both are known."""
        return self.metrics[self.metrics["run"] == run].reindex(columns=[x, metric]).dropna()

    def setting_columns(self, beside: tuple[str, ...] = ()) -> list[str]:
        """The columns of settings ("config.<dotted key>"), but for those `beside` (see schema.py)."""
        columns = [column for column in self.table if column.startswith("config.")]
        return [column for column in columns if not is_any_of(column.removeprefix("config."), beside)]

    def settings(self, run: str) -> dict[str, Any]:
        """One run's settings by their dotted names, those left out that are null or that it has not got."""
        found = {column.removeprefix("config."): self.table.at[run, column] for column in self.setting_columns()}
        return {key: getattr(value, "item", lambda value=value: value)() for key, value in found.items() if value is not None}

    def differing(self) -> list[str]:
        """The columns of settings that are not the same in all runs, but for where things lie."""
        return [column for column in self.setting_columns(BESIDE) if self.table[column].map(str).nunique() > 1]

    def apart(self) -> str | None:
        """Why the losses of these runs do not compare; None where they do."""
        apart = sorted({name.split(".")[1] for name in self.differing() if name.startswith(_WHAT_IS_LEARNED)})
        if not apart:
            return None
        return f"The runs differ in their {' and '.join(apart)}: losses of different tasks, data or tokenizers do not compare."

    def overview(self) -> pd.DataFrame:
        """The table with what one looks at first: status, result, and the settings that are not the same in all runs."""
        from gpt2x.compare.tables import short_keys

        settings = self.table[self.differing()].rename(columns=short_keys(self.differing()))
        known = [c for c in ("status", "metric", "best_step", "steps", "tokens", "seconds") if self.table[c].notna().any()]
        return self.table[known].join(settings)

    def __repr__(self) -> str:
        return f"Runs({len(self)} {'run' if len(self) == 1 else 'runs'}, {len(self.metrics)} logged rows, from {self.root})"

    def _repr_html_(self) -> str:
        return self.overview()._repr_html_()


def load_runs(*paths: str | os.PathLike) -> Runs:
    """Read all runs in some folders: run folders, sweeps, or any folder above.

    A run whose files are damaged is loaded as far as they can be read; what cannot is logged as a warning and listed in
    `problems`.

    Raises:
        UserError: a path is no folder, or there is no run in any.
    """
    if not paths:
        raise UserError("no folder is given in which to look for runs; runs lie under outputs")
    for path in paths:
        if not Path(path).is_dir():
            raise UserError(f"{path}: no such folder\n  runs lie under outputs/runs and outputs/sweeps")
    found = {folder.resolve(): folder for path in paths for folder in find_runs(os.path.abspath(path))}  # each once
    folders = sorted(found.values(), key=_in_order)
    if not folders:
        where = ", ".join(str(path) for path in paths)
        raise UserError(f"{where}: there is no run in it\n  a run's folder holds a config.yaml; gpt2x-train makes one")
    root = Path(os.path.commonpath([folder.parent for folder in folders]))
    names = [folder.relative_to(root).as_posix() for folder in folders]
    loaded = [_Run(folder) for folder in folders]
    problems = [problem for run in loaded for problem in run.problems]
    for problem in problems:
        _log.warning("%s", problem)
    return Runs(root, _table(names, loaded), _metrics(names, loaded), _samples(names, loaded), problems)


def find_runs(path: str | os.PathLike) -> Iterator[Path]:
    """The run folders at and below `path`."""
    for folder, inner, files in os.walk(path):
        if "config.yaml" in files and {"overrides.txt", "metrics.jsonl", "result.json", ".lock"} & set(files):
            inner.clear()
            yield Path(folder)
        elif "result.json" in files and read_result(Path(folder)):
            inner.clear()  # a job of a sweep that failed before it could begin
            yield Path(folder)
        inner[:] = [name for name in inner if name not in _WITHOUT_RUNS and not name.startswith(".")]


def _in_order(path: Path) -> list:
    """To sort by: jobs by their number, everything else by its name."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in path.parts]


class _Run:
    """What one folder holds, read as far as it can be."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.problems: list[str] = []
        self.result = read_result(folder, self.problems)
        self.config = self._config()
        self.metrics = _columns(self._lines("metrics.jsonl"))
        self.samples = self._lines("samples.jsonl")

    def _config(self) -> dict[str, Any]:
        path = self.folder / "config.yaml"
        if not path.exists():
            return {}
        try:
            plain = plain_yaml(path)
        except ConfigError as error:
            self.problems.append(" ".join(str(error).split()))
            return {}
        try:
            return asdict(check(TrainConfig, plain))  # settings that came later have their defaults
        except ConfigError as error:
            self.problems.append(f"{path}: read as it is, for another version wrote it ({str(error).splitlines()[0]})")
            return plain

    def _lines(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / name
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            self.problems.append(f"{path}: cannot be read ({error.strerror})")
            return []
        lines = text[: text.rfind(b"\n") + 1].splitlines()  # what is behind the last line end is being written, or torn
        try:
            rows = json.loads(b"[" + b",".join(lines) + b"]")  # at once: three times as fast as line by line
            if len(rows) == len(lines) and all(isinstance(row, dict) and isinstance(row.get("step"), int) for row in rows):
                return rows
        except ValueError:
            pass
        rows = []
        for number, line in enumerate(lines, 1):
            row = _object(line)
            if not isinstance(row.get("step"), int):
                if number < len(lines):
                    self.problems.append(f"{path}, line {number}: damaged, left out with all after it")
                break
            rows.append(row)
        return rows

    @property
    def status(self) -> str:
        return status_of(self.folder, self.result)

    @property
    def sweep(self) -> Path | None:
        above = self.folder.parent
        return above if (above / "sweep.yaml").exists() or (above / "multirun.yaml").exists() else None

    def row(self) -> dict[str, Any]:
        """The run's row of the table, by column."""
        result, logged = self.result, {name: _last(values) for name, values in self.metrics.items()}
        metric = result.get("metric") or (self._lowest("val/loss") if not result else {})
        row = {
            "folder": str(self.folder),
            "sweep": None if self.sweep is None else _sweep_name(self.sweep),
            "job": None if self.sweep is None else self.folder.name,
            "name": self.config.get("name"),
            "status": self.status,
            "metric": metric.get("value"),
            "metric_name": metric.get("name", "val/loss"),
            "best_step": metric.get("step"),
            "steps": result.get("steps", logged.get("step")),
            "tokens": result.get("tokens", logged.get("tokens")),
            "seconds": result.get("seconds", logged.get("seconds")),
            "flops": result.get("flops", logged.get("flops")),
            "parameters": result.get("parameters"),
            "started": result.get("started") or self._mtime("config.yaml"),
            "config_hash": result.get("config_hash"),
            "git_commit": result.get("git_commit"),
            "error": result.get("error"),
            "overrides": self._overrides(),
        }
        row |= {f"config.{key}": cell(value) for key, value in flat(self.config).items()}
        last = result.get("last") or {name: value for name, value in logged.items() if "/" in name}
        return row | {f"last.{name}": value for name, value in last.items() if not isinstance(value, (dict, list))}

    def _lowest(self, name: str) -> dict[str, Any]:
        import numpy as np

        values = self.metrics.get(name)
        if values is None:
            return {}
        at = np.nanargmin(values)
        return {"name": name, "value": values[at], "step": self.metrics["step"][at]}

    def _overrides(self) -> str:
        if "overrides" in self.result:
            return " ".join(self.result["overrides"])
        try:
            return " ".join((self.folder / "overrides.txt").read_text(encoding="utf-8").splitlines())
        except (OSError, UnicodeDecodeError):
            return ""

    def _mtime(self, name: str) -> Any:
        import pandas as pd

        path = self.folder / name
        return pd.Timestamp(path.stat().st_mtime, unit="s", tz="UTC") if path.exists() else None


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """All settings of a configuration, nested dicts, by their dotted names."""
    settings = {}
    for name, value in config.items():
        if isinstance(value, dict) and value:
            settings |= flat(value, f"{prefix}{name}.")
        else:
            settings[f"{prefix}{name}"] = value
    return settings


def cell(value: Any) -> Any:
    """A setting's value as a table can hold and sort it: lists as one types them, long ones and mappings as JSON."""
    if isinstance(value, (list, tuple)) and len(value) <= 20 and not any(isinstance(v, (list, tuple, dict)) for v in value):
        return show(value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, tuple, dict)) else value


def _sweep_name(folder: Path) -> str:
    """As training names it: from the folder "sweeps" on, where there is one."""
    parts = folder.parts
    if "sweeps" in parts[:-1]:
        return "/".join(parts[len(parts) - parts[::-1].index("sweeps") :])
    return folder.name


def _object(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _table(names: list[str], loaded: list[_Run]) -> pd.DataFrame:
    import pandas as pd

    rows = [run.row() for run in loaded]
    found = list(dict.fromkeys(name for row in rows for name in row))
    settings, last = ([name for name in found if name.startswith(prefix)] for prefix in ("config.", "last."))
    index = pd.Index(names, name="run", dtype=object)
    columns = {
        name: pd.Series([row.get(name) for row in rows], index=index, dtype=object) for name in [*_COLUMNS, *settings, *last]
    }
    for name in [*_NUMBERS, *last]:
        columns[name] = pd.to_numeric(columns[name], errors="coerce").astype("float64")
    for name in settings:  # whole numbers stay whole beside ones that are missing
        columns[name] = columns[name].infer_objects() if columns[name].notna().all() else columns[name]
    columns["started"] = pd.to_datetime(columns["started"], utc=True, errors="coerce", format="mixed")
    return pd.DataFrame(columns, index=index)


def _columns(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Rows of numbers as a column (rows,) for each name, NaN where a row has none; tables of numbers are left out."""
    import numpy as np

    columns = {}
    for name in dict.fromkeys(itertools.chain.from_iterable(dict.fromkeys(map(tuple, rows)))):
        values = [row.get(name) for row in rows]
        try:
            column = np.array(values, dtype="float64")  # None is NaN
        except (TypeError, ValueError):
            column = np.array([v if isinstance(v, (int, float)) else np.nan for v in values], dtype="float64")
        if not np.isnan(column).all():
            columns[name] = column
    return columns


def _last(values: np.ndarray) -> float:
    """The last one that is a number; there is one in every column."""
    import numpy as np

    return values[np.flatnonzero(~np.isnan(values))[-1]]


def _metrics(names: list[str], loaded: list[_Run]) -> pd.DataFrame:
    import numpy as np
    import pandas as pd

    n_rows = [len(run.metrics.get("step", ())) for run in loaded]
    found = dict.fromkeys([*AXES, *(name for run in loaded for name in run.metrics)])
    columns = {name: np.full(sum(n_rows), np.nan) for name in found}
    start = 0
    for run, n in zip(loaded, n_rows, strict=True):
        for name, values in run.metrics.items():
            columns[name][start : start + n] = values
        start += n
    columns["step"] = columns["step"].astype("int64")
    run = pd.Categorical.from_codes(np.repeat(np.arange(len(names)), n_rows), categories=names)
    return pd.DataFrame({"run": run, **columns})


def _samples(names: list[str], loaded: list[_Run]) -> pd.DataFrame:
    import pandas as pd

    rows = [{**row, "run": name} for name, run in zip(names, loaded, strict=True) for row in run.samples]
    return pd.DataFrame(rows).reindex(columns=_SAMPLES)
