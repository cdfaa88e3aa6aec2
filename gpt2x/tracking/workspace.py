"""A wandb workspace for runs of gpt2x: what one wants to see of them, laid out by this program instead of by hand.

`workspace` builds it, without a server; `save_workspace` saves it to the server, as a view of the project that is named
in its list of views. Both need wandb-workspaces: pip install gpt2x[reports].
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from gpt2x.errors import UserError
from gpt2x.tracking.description import sweep_of
from gpt2x.tracking.server import Server
from gpt2x.tracking.tracker import one_line

_TITLES = {"lm": "Language model", "classifier": "Classifier", "instruct": "Instruction tuning"}
_CURVES = {  # beside the losses: (title, metrics)
    "lm": [("Validation: bits per byte", ["val/bpb"]), ("Validation: perplexity", ["val/perplexity"])],
    "classifier": [("Validation: accuracy", ["val/accuracy"]), ("Validation: F1, mean of classes", ["val/f1"])],
    "instruct": [("Validation: perplexity", ["val/perplexity"])],
}
_BEST = "metric.value"  # the summary's best value of the run's metric
_UNCOMPARED = {"name", "resume", "paths", "logger"}  # settings that decide nothing of a run's result


def workspace(
    project: str, entity: str, *, name: str, tasks: list[str], settings: dict[str, list[Any]], sweeps: list[str] = ()
) -> Any:
    """A wandb_workspaces Workspace, not yet saved.

    Args:
        project, entity: where the runs are. `name` is the view's title.
        tasks: the kinds of runs there: "lm", "classifier", "instruct"; each has a section.
        settings: the settings that differ, by their dotted names, and their values: the axes of the parallel coordinates.
        sweeps: wandb groups. With any, only their runs are shown, grouped; without, all runs of the project.
    """
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise UserError(f"workspace=true needs wandb-workspaces ({one_line(error)}): pip install 'gpt2x[reports]'") from None

    def curve(title: str, metrics: list[str], **more: Any) -> Any:
        return wr.LinePlot(title=title, x="tokens", y=metrics, title_x="tokens", **more)

    smooth = {"smoothing_type": "exponentialTimeWeighted", "smoothing_factor": 0.6, "smoothing_show_original": True}
    sections = [
        ws.Section(
            name=_TITLES[task],
            is_open=True,
            panels=[
                curve("Training loss", ["train/loss"], **smooth),
                curve("Validation loss", ["val/loss"]),
                *(curve(title, metrics) for title, metrics in _CURVES[task]),
                *([] if task == "classifier" else [wr.MediaBrowser(title="Texts", media_keys=["sample"])]),
            ],
        )
        for task in tasks
    ]
    optimization = [
        curve("Learning rate", ["lr"]),
        curve("Gradient norm", ["grad_norm"], log_y=True, **smooth),
        curve("Tokens per second", ["tokens_per_s"], **smooth),
        wr.LinePlot(title="Validation loss by seconds", x="seconds", y=["val/loss"], title_x="seconds"),
    ]
    sections.append(ws.Section(name="Optimization", panels=optimization))
    if settings:
        columns = [
            wr.ParallelCoordinatesPlotColumn(metric=wr.Config(key), display_name=key, log=_on_log_axis(values))
            for key, values in settings.items()
        ]
        best = wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric(_BEST), display_name="best val/loss")
        panels = [
            wr.ParallelCoordinatesPlot(title="Settings that differ", columns=[*columns, best]),
            wr.ParameterImportancePlot(with_respect_to=_BEST),
        ]
        sections.append(ws.Section(name="Settings", is_open=True, panels=panels))
    sections.append(ws.Section(name="Runs side by side", panels=[wr.RunComparer(diff_only="split")]))
    group = ws.Metric("Group")
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis="tokens", max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=ws.And(group.isin(list(sweeps))) if sweeps else "",
            groupby=[group] if sweeps else [],
            order=[ws.Ordering(ws.Summary(_BEST), ascending=True)],
            pinned_columns=["run:displayName", *map(_column, settings), f"summary:{_BEST}"],
        ),
    )


def workspace_of(folders: list[Path], project: str | None = None, entity: str | None = None) -> dict[str, Any]:
    """The arguments of `workspace` that suit the runs in `folders`; "entity" is None if neither they nor `entity` name one."""
    configs = [_config(folder) for folder in folders]
    loggers = [config["logger"] for config in configs]
    flat = [_flat({key: value for key, value in config.items() if key not in _UNCOMPARED}) for config in configs]
    values = {
        key: [settings.get(key) for settings in flat] for key in dict.fromkeys(key for settings in flat for key in settings)
    }
    groups = [logger.get("group") or sweep_of(Path(folder)) for logger, folder in zip(loggers, folders, strict=True)]
    sweeps = sorted(set(groups)) if all(groups) else []
    found = {config["task"]["_target_"].split(".")[-2] for config in configs}
    return {
        "project": project or next((logger["project"] for logger in loggers if "project" in logger), "gpt2x"),
        "entity": entity or next((logger["entity"] for logger in loggers if logger.get("entity")), None),
        "name": ("gpt2x " + ", ".join(sweeps))[:128].strip(),
        "tasks": [task for task in _TITLES if task in found],
        "settings": {key: column for key, column in values.items() if _differ(column)},
        "sweeps": sweeps,
    }


def save_workspace(folders: list[Path], *, project: str | None = None, entity: str | None = None) -> str:
    """Save a workspace for the runs in `folders` as a new view of their wandb project; returns its address.

    Args:
        project, entity: as for sync_runs.

    Raises UserError if there is no key, no server, or the server does not take it.
    """
    about = workspace_of(folders, project, entity)
    built = workspace(**about | {"entity": about["entity"] or "-"})  # what is wrong with it is told before a server is asked
    with Server() as server:
        built.entity = about["entity"] or server.entity
        try:
            return built.save().url
        except Exception as error:
            raise UserError(f"{server.url} did not take the workspace: {one_line(error)}") from None


def _column(key: str) -> str:
    """A setting's column in wandb's table of runs, where each setting of the root is {"value": setting}."""
    root, *rest = key.split(".")
    return "config:" + ".".join([root, "value", *rest])


def _differ(values: list[Any]) -> bool:
    """Whether values differ, and are such that an axis can show them."""
    return any(value != values[0] for value in values) and not any(isinstance(value, list) for value in values)


def _on_log_axis(values: list[Any]) -> bool:
    """Whether numbers span so much that a logarithmic axis shows them better: a factor of 10."""
    numbers = [value for value in values if value is not None]
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0 for value in numbers):
        return False
    return max(numbers) >= 10 * min(numbers)


def _config(folder: Path) -> dict[str, Any]:
    path = Path(folder) / "config.yaml"
    if not path.is_file():
        raise UserError(f"{folder}: there is no config.yaml in it, so it is no run's folder")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """All settings by their dotted names."""
    flat = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
