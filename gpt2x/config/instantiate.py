"""From a config dataclass to the object it describes."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

from gpt2x.config.schema import GROUPS

_ALLOWED = {cls._target_ for classes in GROUPS.values() for cls in classes if hasattr(cls, "_target_")}


def instantiate(config: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Call what `config._target_` names with the config's fields as keyword arguments.

    `args` and `kwargs` are the live objects that no configuration can hold (the model, its
    parameters). Only targets that a class in GROUPS declares can be called, whatever a file says.
    """
    target = config._target_
    if target not in _ALLOWED:
        raise ValueError(f"_target_ {target!r} is not one of {sorted(_ALLOWED)}")
    module, names = _import_longest(target)
    component = module
    for name in names:
        component = getattr(component, name)
    settings = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name != "_target_"}
    return component(*args, **settings, **kwargs)


def _import_longest(target: str) -> tuple[Any, list[str]]:
    """Split "package.module.Class.method" into its imported module and the names to look up in it."""
    parts = target.split(".")
    for end in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:end])
        try:
            return importlib.import_module(name), parts[end:]
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise
    raise ImportError(f"no module of {target!r} can be imported")
