"""What a dashboard is told of a run beside its numbers.

A run that is looked at while it goes on (training/run.py) and one that is sent later from its folder (sync.py) are
described here, by the same lines, so that they look the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

_NOT_IN_NAME = ("name=", "resume=", "paths.", "logger", "hydra.")  # overrides that say nothing of what the run is
_ABOUT = ("config_hash", "overrides", "started", "versions", "git_commit", "platform", "status")


def description(config: dict[str, Any], overrides: list[str], sweep: str | None, code: dict[str, str | None]) -> dict[str, Any]:
    """The arguments of WandbTracker that describe a run.

    `config` is the resolved configuration as plain dicts, `code` the version and the git commit of gpt2x, `sweep` the name
    of the sweep that the run is a job of.
    """
    return {
        "config": config | {"gpt2x": code},
        "name": " ".join([config["name"], *(o for o in overrides if not o.startswith(_NOT_IN_NAME))])[:128],
        "job_type": config["task"]["_target_"].split(".")[-2],  # gpt2x.task.lm.LanguageModeling: lm
        "sweep": sweep,
        "overrides": overrides,
    }


def code_version(result: dict[str, Any]) -> dict[str, str | None]:
    """The version of gpt2x, and the commit of its checkout if it runs from one, that a result.json tells of."""
    return {"version": result.get("versions", {}).get("gpt2x"), "git_commit": result.get("git_commit")}


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """What a dashboard is told at the end: the result.json without what `description` has said at the beginning."""
    return {key: value for key, value in result.items() if key not in _ABOUT}


def sweep_of(run_dir: Path) -> str | None:
    """The name of the sweep that the run in a folder is a job of: DATE/TIME for a job of outputs/sweeps/DATE/TIME, the
    name of the sweep's folder elsewhere, None for a run of its own."""
    sweep = run_dir.absolute().parent
    if not ((sweep / "sweep.yaml").is_file() or (sweep / "multirun.yaml").is_file()):
        return None
    parts = sweep.parts
    if "sweeps" not in parts[:-1]:
        return sweep.name
    return "/".join(parts[len(parts) - parts[::-1].index("sweeps") :])
