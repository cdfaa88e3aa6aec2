"""gpt2x-compare: what some runs have in common, in what they differ, and what came of it."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2x.compare import curves
from gpt2x.compare.curves import Curve, Judgement
from gpt2x.compare.runs import Runs, load_runs
from gpt2x.compare.statistics import Group, groups
from gpt2x.compare.tables import (
    by_variety,
    column_of,
    existing,
    fitting,
    group_table,
    matching,
    render,
    run_table,
    shown,
    varied,
)
from gpt2x.config.option import ConfigError
from gpt2x.config.schema import CompareConfig
from gpt2x.errors import UserError
from gpt2x.files import replacing
from gpt2x.files import shown as path_shown

if TYPE_CHECKING:
    import pandas as pd

_ORDER = ("finished", "running", "pruned", "interrupted", "failed", "killed")


def compare(config: CompareConfig) -> None:
    """Print tables of the runs, and write what the settings ask for. Raises UserError for what the user can mend."""
    runs = load_runs(*(config.runs or [config.paths.outputs]))
    if config.where:
        runs = _chosen(runs, config)
    found, table = groups(runs, config.metric), None
    finished = [group for group in found if group.n]
    baseline = _baseline(runs, finished, config)
    width = shutil.get_terminal_size((120, 24)).columns
    counts = Counter(runs.table["status"])
    told = ", ".join(f"{counts[status]} {status}" for status in _ORDER if counts[status])
    print(f"{len(runs)} {'run' if len(runs) == 1 else 'runs'} in {path_shown(runs.root)}: {told}\n")
    if apart := runs.apart():
        print(f"{apart}\nwhere= keeps those that do.\n")
    _print_runs(runs, config, width)
    if finished and (len(found) > 1 or finished[0].n > 1):
        table = _print_groups(runs, finished, baseline, config, width)
    judgements = _judge(runs, list(curves.load_curves(curves.SHIPPED, Path(config.curves))))
    if config.save_curve is not None:
        print(f"curve  {path_shown(curves.save_curve(curves.make_curve(runs, config.save_curve), Path(config.curves)))}")
    if config.output is not None:
        _export(runs, found, table, judgements, config)
    if config.html is not None:
        from gpt2x.compare.page import write_page

        write_page(runs, Path(config.html), metric=config.metric.removeprefix("last."))
        print(f"page   {path_shown(config.html)}")
    if config.workspace:
        from gpt2x.tracking.workspace import save_workspace

        print(f"wandb  {save_workspace(_folders(runs), project=config.project, entity=config.entity)}")
    if config.sync:
        from gpt2x.tracking.sync import sync_runs

        failed = [
            run for run in sync_runs(_folders(runs), project=config.project, entity=config.entity) if run.outcome == "failed"
        ]
        if failed:
            raise UserError(f"{len(failed)} of {len(runs)} runs could not be sent to wandb; the same command tries them again")


def _chosen(runs: Runs, config: CompareConfig) -> Runs:
    names = matching(runs, config.where, "where")
    if not names:
        problem = f"none of the {len(runs)} runs is like that"
        there = existing(runs, [column_of(runs, key, "where", config.where) for key in config.where])
        raise ConfigError("where", config.where, problem, f"there are {there}")
    return runs.select(names)


def _folders(runs: Runs) -> list[Path]:
    return [Path(folder) for folder in runs.table["folder"]]


def _baseline(runs: Runs, found: list[Group], config: CompareConfig) -> Group | None:
    """What the other groups are measured against: the one that is asked for, else the best of what can be compared."""
    if not config.baseline:
        return found[0] if found and not runs.apart() else None
    named = set(matching(runs, config.baseline, "baseline"))
    alike = [group for group in found if named & set(group.runs)]
    if len(alike) != 1:
        count = "one group" if len(found) == 1 else f"{len(found)} groups"
        problem = f"of the {count} of finished runs {len(alike) or 'none'} are like that, and one is wanted"
        settings = [column for column in varied(runs) if found and column in found[0].settings]
        remedy = f"groups differ in {existing(runs, by_variety(runs, settings))}" if settings else ""
        raise ConfigError("baseline", config.baseline, problem, remedy)
    return alike[0]


def _print_runs(runs: Runs, config: CompareConfig, width: int) -> None:
    table = shown(run_table(runs, config.metric))
    first = [name for name in ("status", config.metric, "at step", "steps", "time") if name in table]
    part = fitting(table.head(config.rows), width, first)
    print(render(part, width))
    if len(table) > config.rows:
        print(f"... and {len(table) - config.rows} more: rows={len(table)} shows all")
    if left := len(runs.differing()) - len(part.columns) + len(first):
        print(f"{left} more {'setting differs' if left == 1 else 'settings differ'}: the page (html=) and output= have them")
    print()
    for run, error in runs.table["error"].dropna().head(config.rows).items():
        print(f"failed {run}: {(error.splitlines() or ['unknown'])[0]}")


def _print_groups(runs: Runs, found: list[Group], baseline: Group | None, config: CompareConfig, width: int) -> pd.DataFrame:
    """Print the groups over their seeds, and return them as a table of numbers."""
    baseline = baseline if len(found) > 1 else None
    table, names = group_table(found, config.metric, baseline), _names(runs, found)
    if names:
        table.insert(0, "name", names)
    if all(group.n <= 1 for group in found):
        print("One seed each: several of each (seeds=5 in training) would tell what of this is more than luck.\n")
        return table
    print("Over seeds, finished runs alone:\n")
    settings = by_variety(runs, [column for column in varied(runs) if column in found[0].settings])
    told = shown(group_table(found[: config.rows], config.metric, baseline, settings))
    numbers = list(told.columns[told.columns.get_loc("n") :])
    if names:
        told.insert(0, "name", names[: config.rows])
        numbers.insert(0, "name")
    print(render(fitting(told, width, numbers, index=False), width, index=False))
    if baseline is not None:
        note = "mean ± standard error; each verdict is on its own: of 20 where nothing differs, one will find something"
        luck = (
            ""
            if config.baseline
            else ".\nThe baseline is the best of these, and part of its lead is luck; baseline= names another"
        )
        print(f"\n{note}{luck}.")
    print()
    return table


def _names(runs: Runs, found: list[Group]) -> list[str]:
    """The names of the groups, where those of all its runs are one that no other group has; else none."""
    names = [set(runs.table.loc[list(group.runs), "name"]) for group in found]
    alone = all(len(own) == 1 for own in names) and len(set().union(*names)) == len(found)
    return [name for own in names for name in own] if alone and len(found) > 1 else []


def _judge(runs: Runs, known: list[Curve]) -> list[Judgement]:
    """Hold the runs whose settings are those of a known curve against it, and print a line a curve and one a run outside."""
    found = []
    settings = {run: runs.settings(run) for run in runs.table.index if known}
    for curve in known:
        held = {run: curves.judge(runs, run, curve) for run in settings if curve.matches(settings[run])}
        held = {run: judgement for run, judgement in held.items() if judgement is not None}
        n_inside = sum(judgement.inside for judgement in held.values())
        if len(held) > 1:
            print(
                f"curve  {curve.name} (n={len(curve.seeds)}): {n_inside} of {len(held)} runs are as expected, in the 95 % band"
            )
        for run, judgement in held.items():
            if len(held) == 1 or not judgement.inside:
                print(f"curve  {run}: {judgement}")
        found += held.values()
    return found


def _export(
    runs: Runs, found: list[Group], table: pd.DataFrame | None, judgements: list[Judgement], config: CompareConfig
) -> None:
    """Write tables and the picture into the folder `config.output`."""
    from gpt2x.compare.plots import plot_curves

    folder = Path(config.output)
    frames = {"runs": runs.table.reset_index(), "groups": table, "metrics": runs.metrics, "samples": runs.samples}
    try:
        for name, frame in frames.items():
            if frame is not None:
                _write(frame, folder / f"{name}.{config.format}")
        metric = config.metric.removeprefix("last.")
        picture = folder / f"{metric.replace('/', '_')}.{config.picture}"
        plot_curves(
            runs, picture, found, metric=metric, x=config.x, judgements=judgements,
            smoothing=config.smoothing, log_x=config.log_x, log_y=config.log_y,
        )  # fmt: skip
        print(f"plot   {path_shown(picture)}")
    except OSError as error:
        raise UserError(f"output={config.output}: cannot be written ({error.strerror})") from None


def _write(frame: pd.DataFrame, path: Path) -> None:
    with replacing(path) as temporary:
        if path.suffix == ".csv":
            frame.to_csv(temporary, index=False)
        else:
            mixed = {name: frame[name].astype("string") for name in frame if frame[name].dtype == object}
            frame.assign(**mixed).to_parquet(temporary, index=False)
    print(f"table  {path_shown(path)}")
