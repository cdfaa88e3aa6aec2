"""Tables of runs, to read and to write: only the settings that differ, the metric, and what it shows over seeds.

`run_table` and `group_table` make frames of plain values, which can be written to a file; `shown` turns the cells into
short text, and `render` lays a frame out for a terminal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpt2x.compare.runs import Runs, cell
from gpt2x.compare.statistics import Group, compare, higher_is_better, rounded, values
from gpt2x.config.check import similar
from gpt2x.config.option import ConfigError, show
from gpt2x.evaluation.output import cut, table

if TYPE_CHECKING:
    import pandas as pd

_NAMED = ("run", "sweep", "job", "name", "status")  # what one can ask for beside settings


def short_keys(columns: list[str]) -> dict[str, str]:
    """Each setting's column as the shortest end of its dotted key that only it has: "config.optimizer.lr" is "lr"."""
    keys = {column: column.removeprefix("config.").split(".") for column in columns}
    ends = {column: [".".join(parts[-n:]) for n in range(1, len(parts) + 1)] for column, parts in keys.items()}
    taken = [end for group in ends.values() for end in group]
    return {column: next((end for end in group if taken.count(end) == 1), group[-1]) for column, group in ends.items()}


def run_table(runs: Runs, metric: str) -> pd.DataFrame:
    """One row a run, the best first: the settings that differ, status, `metric`, step of the best, steps, minutes."""
    differing = runs.differing()
    frame = runs.table[differing].rename(columns=short_keys(differing))
    frame["status"] = runs.table["status"]
    frame[metric] = values(runs, metric)
    if metric == "val/loss":
        frame["at step"] = runs.table["best_step"]
    frame["steps"] = runs.table["steps"]
    frame["minutes"] = runs.table["seconds"] / 60
    return frame.sort_values(metric, ascending=not higher_is_better(metric), kind="stable", na_position="last")


def group_table(groups: list[Group], metric: str, baseline: Group | None = None) -> pd.DataFrame:
    """One row a group of runs that differ in nothing but the seed: the settings in which groups differ, n, mean, standard
    error, the best seed's value, and the difference to `baseline` with the half width of its 95 % interval, and in words."""
    import pandas as pd

    grows = higher_is_better(metric)
    names = short_keys(list(groups[0].settings))
    rows = []
    for group in groups:
        row = {names[column]: value for column, value in group.settings.items()}
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
        column = _column(runs, key, setting, where)
        these = [wanted, *wanted] if isinstance(wanted, list) else [wanted]
        chosen = chosen[chosen[column].map(_text).isin([_text(cell(value)) for value in these])]
    return list(chosen.index)


def _column(runs: Runs, key: str, setting: str, where: Mapping[str, Any]) -> str:
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


def ends(names: list[str]) -> list[str]:
    """The last parts of dotted names."""
    return [name.rpartition(".")[2] for name in names]


def _text(value: Any) -> str:
    """A setting's value to compare by: 3e-4 and 0.0003 are one."""
    if isinstance(value, float) and value == value // 1:
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
    if name == "minutes":
        return f"{value:.1f}"
    if name in ("steps", "at step"):
        return f"{value:,.0f}"
    if isinstance(value, float):
        return f"{value:.4f}" if "/" in name or name == "best seed" else f"{value:.6g}"
    return value if name == "verdict" else cut(show(value), 32)


def render(frame: pd.DataFrame, width: int, *, index: bool = True) -> str:
    """A frame of text within `width` columns of a terminal: what is too wide goes on below, the first column again."""
    columns = [[str(name), *frame[name]] for name in frame]
    first = (
        [frame.index.name or "", *(cut(str(name), max(16, width // 2)) for name in frame.index)] if index else columns.pop(0)
    )
    blocks, block = [], [first]
    for column in columns:
        if len(block) > 1 and _width([*block, column]) > width:
            blocks.append(block)
            block = [first]
        block.append(column)
    return "\n\n".join(table(list(zip(*block, strict=True))) for block in [*blocks, block])


def _width(columns: list[list[str]]) -> int:
    return sum(max(map(len, column)) + 2 for column in columns) - 2
