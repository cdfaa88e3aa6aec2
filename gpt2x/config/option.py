"""How a setting is declared: a dataclass field that carries its help line and what is allowed.

Config dataclasses stand beside the components they describe and use only this module, so that
reading a configuration never imports torch, Hydra or OmegaConf.
"""

from __future__ import annotations

import dataclasses
import os
import reprlib
from typing import Any

from gpt2x.errors import UserError


class ConfigError(UserError):
    """A setting that cannot be used. Commands print it and exit with code 2.

    `key` is the dotted name of the setting ("optimizer.lr"; "" where no single one is at fault),
    `value` what was given, `problem` what is wrong and what is allowed, `remedy` what to do about it.
    """

    def __init__(self, key: str, value: Any, problem: str, remedy: str = ""):
        self.key, self.value, self.problem, self.remedy = key, value, problem, remedy
        given = f"{key}={show(value)}: " if key else ""
        super().__init__(f"{given}{problem}" + (f"\n  {remedy}" if remedy else ""))

    def within(self, node: str) -> ConfigError:
        """The same error as seen from outside `node`: "lr" within "optimizer" is "optimizer.lr"."""
        key = ".".join(part for part in (node, self.key) if part)
        return ConfigError(key, self.value, self.problem, self.remedy)


class ConfigErrors(ConfigError):
    """Several settings that cannot be used: all that were found, so that one look mends them all."""

    def __init__(self, errors: list[ConfigError]):
        first = errors[0]
        super().__init__(first.key, first.value, first.problem, first.remedy)
        self.errors = errors

    def __str__(self) -> str:
        return "\n".join(map(str, self.errors))


def option(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    choices: tuple | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    verbatim: bool | None = None,
) -> Any:
    """A dataclass field with one line of help and its allowed values.

    `minimum`/`maximum` are inclusive bounds, `above`/`below` exclusive ones; for a list they hold
    for every element, for a mapping for every value. Without a `default` the setting must be given by the YAML of its group.
    `verbatim` marks text and paths: on the command line commas, brackets and the like mean nothing special in them.
    """
    limits = {"choices": choices, "minimum": minimum, "maximum": maximum, "above": above, "below": below, "verbatim": verbatim}
    metadata = {"help": help} | {name: limit for name, limit in limits.items() if limit is not None}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def show(value: Any) -> str:
    """A value as one would type it; long ones are cut short."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (str, os.PathLike)):
        value = os.fspath(value)
        return value if value.isprintable() and value and len(value) <= 200 else _short.repr(value)
    if isinstance(value, (list, tuple)) and len(value) <= 20 and not any(isinstance(v, (list, tuple, dict)) for v in value):
        return f"[{','.join(map(show, value))}]"
    return _short.repr(value)


_short = reprlib.Repr()
_short.maxstring, _short.maxlevel = 200, 2
