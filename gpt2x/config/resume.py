"""Going on with a run: its own configuration, and the few settings that may change on the way."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from gpt2x.config.compose import Composer, from_yaml
from gpt2x.config.option import ConfigError, ConfigErrors, show
from gpt2x.config.schema import is_any_of

# What can change without making the run another experiment. It is no list of what decides nothing (BESIDE in schema.py): the
# patience, say, decides when a run ends, and may change on the way; the name decides nothing, and the folder bears it already.
CHANGEABLE = (
    "resume",
    "sample_prompt",
    "sampling.*",
    "logger.*",
    "paths.*",
    "evaluation.*",  # which is of the run when it has ended
    "judge.*",
    "device.threads",
    "device.kernels",
    "device.keep_memory",
    "trainer.recompute",  # which changes no bit
    "init.path",  # where the model it began with is now
    "trainer.keep_*",
    "trainer.log_*",
    "trainer.patience",
    "trainer.divergence",
)
EXTENDABLE = ("trainer.max_steps", "trainer.max_epochs")  # may be raised


def resume(composer: Composer, folder: Path, overrides: list) -> None:
    """Make `composer` compose the configuration of the run in `folder` with `overrides` on top.

    Raises ConfigError if the folder holds no run or an override would make it another experiment.
    """
    if not folder.is_dir():
        raise ConfigError(
            "resume", folder, "no such folder", "give that of a run, such as outputs/runs/DATE/TIME_NAME, or of a sweep"
        )
    if not (folder / "config.yaml").is_file():
        problem = "there is no config.yaml in it, so it is no run's folder, and no sweep.yaml, so it is no sweep's"
        below = sorted(path.parent for name in ("config.yaml", "sweep.yaml") for path in folder.glob(f"*/{name}"))
        raise ConfigError("resume", folder, problem, f"below it: {', '.join(map(str, below[:5]))}" if below else "")
    for override in overrides:
        group = override.key_or_group
        if group in composer.groups and group not in composer.fields:
            problem = "a resumed run keeps its own configuration"
            raise ConfigError(group, override.value(), problem, f"leave out {group}= or resume=")
    saved = from_yaml(folder / "config.yaml", composer.schema)
    composer.resume(saved, overrides)
    before, after = _flat(saved), _flat(composer.config(overrides))
    changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    problems = [
        ConfigError(key, after.get(key), problem)
        for key in changed
        if (problem := _why_not(key, before.get(key), after.get(key))) is not None
    ]
    if problems:
        remedy = ConfigError("", None, "leave them out, or start a new run: leave out resume=")
        raise ConfigErrors([*problems, remedy])


def changeable(key: str) -> bool:
    """Whether a setting, or all of a group, can change without making a run another experiment."""
    return is_any_of(key, CHANGEABLE)


def differences(saved: Any, config: Any, swept: Collection[str] = ()) -> list[str]:
    """The settings by which `config` is not the configuration of a run that was saved, as "seed=1, not 2".

    What is changeable may differ, but not where it is among the keys and groups that are `swept`.
    """
    before, after = _flat(saved), _flat(config)
    differing = []
    for key in {**before, **after}:
        old, new = before.get(key), after.get(key)
        if key == "init.path" and old is not None:  # noted as an absolute path, and so is its checkpoint
            on_hub = new is not None and after["init._target_"].endswith("from_hf") and not os.path.isdir(new)
            found = new is None or on_hub  # a size or a name, of which the path is where it was found
            old, new = os.path.realpath(old), os.path.realpath(old if found else new)
        told = key in swept or key.split(".")[0] in swept
        if old != new and key != "init.which" and (told or not changeable(key)):
            differing.append(f"{key}={show(old)}, not {show(new)}")
    return differing


def _why_not(key: str, old: Any, new: Any) -> str | None:
    """Why a resumed run cannot change a setting; None if it can."""
    if changeable(key):
        return None
    if key not in EXTENDABLE:
        return f"the run was started with {show(old)}; a change would make it another experiment"
    if None not in (old, new) and new > old:
        return None
    return f"the run was started with {show(old)}, which can be raised and nothing else"


def _flat(config: Any) -> dict[str, Any]:
    """All settings of a configuration by their dotted names."""
    flat = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        inner = _flat(value) if dataclasses.is_dataclass(value) else None
        flat |= {field.name: value} if inner is None else {f"{field.name}.{key}": item for key, item in inner.items()}
    return flat
