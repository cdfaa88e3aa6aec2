"""Tables of runs, to read and to write: only the settings that differ, the metric, and what it shows over seeds.

`run_table` and `group_table` make frames of plain values, which can be written to a file; `shown` turns the cells into
short text, `fitting` takes what a terminal is wide enough for, and `render` lays it out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gpt2x.compare.runs import Runs, cell
from gpt2x.compare.statistics import Group, compare, decisive, higher_is_better, rounded, values
from gpt2x.config.check import similar
from gpt2x.config.option import ConfigError, show
from gpt2x.evaluation.output import cut, table
from gpt2x.tracking.console import clock

if TYPE_CHECKING:
    import pandas as pd

_NAMED = ("run", "sweep", "job", "name", "status")  # what one can ask for beside settings


def short_keys(columns: list[str]) -> dict[str, str]:
    """Each setting's column as the shortest end of its dotted key that only it has: "config.optimizer.lr" is "lr".

    What a group is made of has the group's name: "config.tokenizer._target_" is "tokenizer".
    """
    keys = {column: column.removeprefix("config.").removesuffix("._target_").split(".") for column in columns}
    ends = {column: [".".join(parts[-n:]) for n in range(1, len(parts) + 1)] for column, parts in keys.items()}
    taken = [end for group in ends.values() for end in group]
    return {column: next((end for end in group if taken.count(end) == 1), group[-1]) for column, group in ends.items()}


def varied(runs: Runs) -> list[str]:
    """The settings that differ and decide something; of those that always change together one, such as data.name.

    Where runs differ in what a group is made of, say task._target_, settings that only some of the choices have are left
    out: they say nothing that the choice does not. Nor does task._target_ beside a task.name.
    """
    differing, decide, chosen = runs.differing(), set(decisive(runs)), {}
    made_otherwise = {name.rpartition(".")[0] for name in differing if name.endswith("._target_")}
    for name in sorted(differing, key=lambda name: name.endswith("._target_")):
        column, group = runs.table[name], name.rpartition(".")[0]
        if name.endswith("._target_") and f"{group}.name" in chosen.values():
            continue
        if name in decide and not (column.isna().any() and group in made_otherwise):
            chosen.setdefault(_division(column), name)
    return [name for name in differing if name in chosen.values()]


def _division(column: pd.Series) -> bytes:
    """The same for settings that divide the runs in the same way, into fewer parts than there are runs."""
    import pandas as pd

    codes, levels = pd.factorize(column.map(show))
    return codes.tobytes() if 2 * len(levels) <= len(codes) else str(column.name).encode()


def run_table(runs: Runs, metric: str) -> pd.DataFrame:
    """One row a run, the best first: status, `metric`, step of the best, steps, time in seconds, then the settings that
    differ and decide something, and the seed, the most varied first."""
    told = set(varied(runs)) | {"config.seed"}
    settings = by_variety(runs, [column for column in runs.differing() if column in told])
    frame = runs.table[["status"]].copy()
    frame[metric] = values(runs, metric)
    if metric == "val/loss":
        frame["at step"] = runs.table["best_step"]
    frame["steps"] = runs.table["steps"]
    frame["time"] = runs.table["seconds"]
    for column, name in short_keys(settings).items():
        frame[name] = runs.table[column].map(lambda value, column=column: said(column, value))
    return frame.sort_values(metric, ascending=not higher_is_better(metric), kind="stable", na_position="last")


def said(column: str, value: Any) -> Any:
    """A setting's value as tables say it: of what a group is made of without the modules, "BPETokenizer.from_corpus"."""
    if not column.endswith("._target_") or not isinstance(value, str):
        return value
    *modules, last = value.split(".")
    return ".".join([*(part for part in modules if part[:1].isupper()), last])


def by_variety(runs: Runs, columns: list[str]) -> list[str]:
    """The same settings, those with the most different values first."""
    return sorted(columns, key=lambda column: -runs.table[column].map(show).nunique())


def group_table(
    groups: list[Group], metric: str, baseline: Group | None = None, settings: list[str] | None = None
) -> pd.DataFrame:
    """One row a group of runs that differ in nothing but the seed: the settings in which groups differ (or those named), n,
    mean, standard error, the best seed's value, and the difference to `baseline` with the half width of its 95 % interval,
    and in words."""
    import pandas as pd

    grows = higher_is_better(metric)
    names = short_keys(list(groups[0].settings) if settings is None else settings)
    rows = []
    for group in groups:
        row = {name: said(column, group.settings[column]) for column, name in names.items()}
        row |= {"n": group.n, metric: group.mean, "standard error": group.error}
        row |= {"best seed": (max if grows else min)(group.values.values(), default=math.nan)}
        if baseline is not None:
            verdict = compare(group.values, baseline.values, grows=grows)
            itself = group is baseline
            row |= {
                "difference": math.nan if itself else verdict.difference,
                "interval": math.nan if itself else verdict.half,
                "verdict": "the baseline" if itself else str(verdict),
            }
        rows.append(row)
    return pd.DataFrame(rows)


def matching(runs: Runs, where: Mapping[str, Any], setting: str) -> list[str]:
    """The names of the runs whose settings are as `where` says: {"model.n_layer": 4, "status": ["finished", "killed"]}.

    A key is a setting's dotted name or its end ("n_layer"), or one of run, sweep, job, name, status; a list: any of these,
    or the whole of it where the setting is itself a list.

    Raises:
        ConfigError: none of the runs has such a setting; `setting` is where it was asked for.
    """
    chosen = runs.table.assign(run=runs.table.index)
    for key, wanted in where.items():
        column = column_of(runs, key, setting, where)
        these = [wanted, *wanted] if isinstance(wanted, list) else [wanted]
        chosen = chosen[chosen[column].map(_text).isin([_text(cell(value)) for value in these])]
    return list(chosen.index)


def column_of(runs: Runs, key: str, setting: str, where: Mapping[str, Any]) -> str:
    """The table's column that a key of `matching` means."""
    if key in _NAMED:
        return key
    settings = [column.removeprefix("config.") for column in runs.table if column.startswith("config.")]
    found = [name for name in settings if name == key] or [name for name in settings if name.endswith(f".{key}")]
    if len(found) == 1:
        return f"config.{found[0]}"
    if found:
        raise ConfigError(setting, where, f"{key} may be any of {', '.join(found)}", "give the whole name")
    close = similar(key, settings) or [
        name for name in settings if name.split(".")[-1] in similar(key.split(".")[-1], ends(settings))
    ]
    problem = f"none of these runs has a setting {key}" + (f"; did you mean {close[0]}?" if close else "")
    raise ConfigError(setting, where, problem, f"beside settings: {', '.join(_NAMED)}")


def existing(runs: Runs, columns: list[str], most: int = 8) -> str:
    """The values that some columns have: "lr: 0.001, 0.003; batch_size: 8, 16"."""
    told = []
    for column, name in short_keys(columns).items():
        known = sorted(runs.table.assign(run=runs.table.index)[column].unique().tolist(), key=_in_order)
        values = ", ".join(_text(said(column, value)) for value in known[:most])
        told.append(f"{name}: {values}{', ...' * (len(known) > most)}")
    return "; ".join(told)


def _in_order(value: Any) -> tuple[bool, bool, float, str]:
    """To sort by: numbers by their size, then texts, then nothing."""
    number = isinstance(value, (int, float))
    return (value is None, not number, value if number else 0, str(value))


def ends(names: list[str]) -> list[str]:
    """The last parts of dotted names."""
    return [name.rpartition(".")[2] for name in names]


def _text(value: Any) -> str:
    """A setting's value to compare by: 3e-4 and 0.0003 are one."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return show(value)


def shown(frame: pd.DataFrame) -> pd.DataFrame:
    """The same with every cell as short text, "-" for what is not known; means and differences as exact as they can be."""
    import pandas as pd

    frame = frame.drop(columns=["difference", "interval"], errors="ignore")  # the verdict says them
    if "standard error" in frame:
        mean = frame.columns[frame.columns.get_loc("standard error") - 1]
        frame[mean] = [rounded(m, e) for m, e in zip(frame[mean], frame["standard error"], strict=True)]
        frame = frame.drop(columns="standard error")
    return pd.DataFrame({name: [_cell(name, value) for value in frame[name]] for name in frame}, index=frame.index)


def _cell(name: str, value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if name == "time":
        return clock(value)
    if name in ("steps", "at step"):
        return f"{value:,.0f}"
    if isinstance(value, float):
        return f"{value:.4f}" if "/" in name or name == "best seed" else f"{value:.6g}"
    return value if name == "verdict" else cut(show(value), 32)


def fitting(frame: pd.DataFrame, width: int, first: Sequence[str] = (), *, index: bool = True) -> pd.DataFrame:
    """The columns of a frame of text for which `width` columns of a terminal are enough, those named in `first` in any case."""
    left = width - (max(map(len, _rows(frame, width))) if index else -2)
    chosen = set()
    for name in [*first, *(name for name in frame if name not in first)]:
        needed = max(map(len, [str(name), *frame[name]])) + 2
        if name in first or needed <= left:
            chosen.add(name)
            left -= needed
    return frame[[name for name in frame if name in chosen]]


def render(frame: pd.DataFrame, width: int, *, index: bool = True) -> str:
    """A frame of text as lines for a terminal of that `width`, of which the names of runs have a third at most."""
    columns = [[str(name), *frame[name]] for name in frame]
    return table(list(zip(*([_rows(frame, width)] if index else []), *columns, strict=True)))


def _rows(frame: pd.DataFrame, width: int) -> list[str]:
    """The names of the rows below their heading; a long one without its beginning, which others have, too."""
    most = max(16, width // 3)
    names = map(str, frame.index)
    return [frame.index.name or "", *(name if len(name) <= most else f"...{name[3 - most :]}" for name in names)]
