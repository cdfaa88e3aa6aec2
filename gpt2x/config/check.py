"""From plain nested data to the config dataclasses, with every problem named.

Hydra alone accepts unknown keys that come with "+" and text where a number belongs. Whatever a
configuration comes from, it passes through `check`; a run never starts on one that does not.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any

from gpt2x.config.option import ConfigError, ConfigErrors, show
from gpt2x.config.schema import GROUPS

NOT_GIVEN = "???"  # OmegaConf's mark for a setting that has no value yet


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting: its dotted name, its type, and the dataclass field that declares it."""

    key: str
    type: Any
    field: dataclasses.Field

    @property
    def help(self) -> str:
        return self.field.metadata.get("help", "")

    @property
    def default(self) -> Any:
        """What it is when nothing says otherwise; NOT_GIVEN if something must."""
        if self.field.default_factory is not dataclasses.MISSING:
            return self.field.default_factory()
        return NOT_GIVEN if self.field.default is dataclasses.MISSING else self.field.default

    @property
    def allowed(self) -> str:
        """The limits in words: "at least 0 and below 1"."""
        limits = self.field.metadata
        if "choices" in limits:
            return "one of " + ", ".join(map(show, limits["choices"]))
        words = {"minimum": "at least", "above": "above", "maximum": "at most", "below": "below"}
        return " and ".join(f"{word} {show(limits[name])}" for name, word in words.items() if name in limits)


def check(schema: type, data: Any, *, groups: Iterable[str] = ()) -> Any:
    """Build `schema` from nested dicts, or raise one ConfigError that names everything wrong with them.

    `groups` are names that a command line understands beside the settings, to suggest for a typo.
    """
    checker = _Checker(schema, data, groups)
    config = checker.build(schema, data, "")
    if checker.problems:
        raise ConfigErrors(checker.problems) if len(checker.problems) > 1 else checker.problems[0]
    return config


def check_available(config: Any) -> None:
    """Raise ConfigError if this machine cannot do what `config` asks; only for a run about to start."""
    for field in dataclasses.fields(config):
        part = getattr(config, field.name)
        if hasattr(part, "check_available"):
            try:
                part.check_available()
            except ConfigError as error:
                raise error.within(field.name) from None
    if hasattr(config, "check_available"):
        config.check_available()


def settings(schema: type, data: Any = None, prefix: str = "") -> Iterator[Setting]:
    """Every setting of `schema`, depth first; `data` says by `_target_` which class each group holds."""
    for field in dataclasses.fields(schema):
        kind, key = types_of(schema)[field.name], prefix + field.name
        part = data.get(field.name) if isinstance(data, dict) else None
        inner = part_class(field.name, kind, part)
        if inner is not None:
            yield from settings(inner, part, key + ".")
        elif not is_group(field.name, kind):
            yield Setting(key, kind, field)


def defaults(schema: type, data: dict) -> dict:
    """All settings with their defaults as nested dicts, for the classes that `data` chooses."""
    tree: dict = {}
    for setting in settings(schema, data):
        *path, name = setting.key.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[name] = setting.default
    return tree


@functools.cache
def types_of(schema: type) -> dict[str, Any]:
    return typing.get_type_hints(schema)


def is_group(name: str, kind: Any) -> bool:
    """Whether a field is filled by a YAML file of a group rather than declared in place; `Any | None`: it may be left out."""
    return kind in (Any, Any | None) and name in GROUPS


def is_mapping(kind: Any) -> bool:
    """Whether a setting is a mapping of texts to values, such as dict[str, float]."""
    return typing.get_origin(kind) is dict


def part_class(name: str, kind: Any, data: Any) -> type | None:
    """The dataclass of a nested part; None for a plain setting, or if the data choose none that is allowed."""
    if not is_group(name, kind):
        return kind if dataclasses.is_dataclass(kind) else None
    if not isinstance(data, dict):
        return None
    target = data.get("_target_")
    return next((cls for cls in GROUPS[name] if getattr(cls, "_target_", None) == target), None)


def type_name(kind: Any) -> str:
    """A type as a user would say it."""
    optional = [t for t in typing.get_args(kind) if t is not types.NoneType]
    if isinstance(kind, types.UnionType):
        return " or ".join([*map(type_name, optional), "null"])
    if typing.get_origin(kind) is list:
        return f"a list of {_PLURALS[optional[0]]}"
    if is_mapping(kind):
        return f"a mapping of {_PLURALS[optional[0]]} to {_PLURALS[optional[1]]}"
    return _NAMES[kind]


_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
_PLURALS = {int: "whole numbers", float: "numbers", str: "texts", Any: "values"}


class _Checker:
    def __init__(self, schema: type, data: Any, groups: Iterable[str]):
        self.problems: list[ConfigError] = []
        self.root = [f.name for f in dataclasses.fields(schema)]
        self.root += [group for group in groups if group not in self.root]
        self.known = [setting.key for setting in settings(schema, data)]

    def build(self, schema: type, data: Any, key: str) -> Any:
        """An instance of `schema`, or None where something was wrong with it."""
        if not isinstance(data, dict):
            return self.problem(key, data, "this holds several settings and is no setting itself", self.beside(key + ".any"))
        before, values = len(self.problems), {}
        fields = {field.name: field for field in dataclasses.fields(schema)}
        for name in data:
            if name not in fields:
                self.unknown(schema, f"{key}.{name}" if key else str(name), data[name])
        for name, field in fields.items():
            setting = Setting(f"{key}.{name}" if key else name, types_of(schema)[name], field)
            if dataclasses.is_dataclass(setting.type):
                values[name] = self.build(setting.type, data.get(name, {}), setting.key)
            elif is_group(name, setting.type):
                given = data.get(name)
                if given is None and field.default_factory is not dataclasses.MISSING:  # of a run made before the group was
                    values[name] = field.default_factory()
                else:
                    values[name] = self.group(setting.key, name, given, optional=setting.type is not Any)
            elif (value := data.get(name, setting.default)) == NOT_GIVEN:
                self.problem("", None, f"{setting.key} must be given: {setting.help}")
            else:
                values[name] = self.value(setting, value)
        if len(self.problems) > before:
            return None
        config = schema(**values)
        try:
            if hasattr(config, "check"):
                config.check()
        except ConfigError as error:
            self.problems.append(error.within(key))
        return config

    def group(self, key: str, name: str, data: Any, optional: bool) -> Any:
        if data is None and optional:
            return None
        if data is None or data == NOT_GIVEN:
            return self.problem("", None, f"{key} must be chosen, such as {key}=...")
        if optional and isinstance(data, dict) and "_target_" not in data:  # settings without a choice
            for inner, value in data.items():
                self.problem(f"{key}.{inner}", value, f"belongs to a choice of {key}, and none is made", f"add {key}=...")
            return None
        cls = part_class(name, Any, data)
        if cls is None and isinstance(data, dict):
            targets = ", ".join(cls._target_ for cls in GROUPS[name] if hasattr(cls, "_target_"))
            allowed = f"allowed here: {targets or 'nothing'}"
            return self.problem(f"{key}._target_", data.get("_target_"), "a configuration may not call this", allowed)
        return self.build(cls or GROUPS[name][0], data, key)

    def value(self, setting: Setting, value: Any) -> Any:
        try:
            return _within_limits(setting, _convert(setting.type, value))
        except ValueError as error:
            return self.problem(setting.key, value, str(error))

    def problem(self, key: str, value: Any, problem: str, remedy: str = "") -> None:
        self.problems.append(ConfigError(key, value, problem, remedy))

    def unknown(self, schema: type, key: str, value: Any) -> None:
        while isinstance(value, dict) and len(value) == 1:  # optim: {lr: 1} is the typo optim.lr=1
            ((name, value),) = value.items()
            key = f"{key}.{name}"
        close = self.nearest(key)
        problem = f"no such setting; did you mean {' or '.join(close)}?" if close else "no such setting"
        *parent, leaf = key.split(".")
        group = parent[0] if parent and parent[0] in self.root else ""
        others = [cls for cls in GROUPS.get(group, ()) if cls is not schema and leaf in types_of(cls)]
        if others and (not close or leaf not in [name.rpartition(".")[2] for name in close] or group not in close[0]):
            owners = " or ".join(f"{group}={choice}" for choice in _choices(group, others))
            problem = f"this choice of {group} has no such setting; {owners} has"
        if key in self.known:  # a dot inside a YAML key
            problem = f"in a file, write it nested: {parent[0]}: {{{leaf}: ...}}"
        self.problem(key, value, problem, self.beside(key))

    def beside(self, key: str) -> str:
        """What stands on the same level as `key`."""
        parent = key.rpartition(".")[0]
        names = [k[len(parent) + 1 :] for k in self.known if k.startswith(parent + ".")] if parent else self.root
        where = f"settings of {parent}" if parent else "at the top level"
        names = [name for name in names if name != "_target_"]
        return f"{where}: {', '.join(names)}" if names else ""

    def nearest(self, key: str) -> list[str]:
        """Known names that `key` may have been meant for, the likeliest kind only."""
        parent, _, leaf = key.rpartition(".")
        leaves = {k: k.rpartition(".")[2] for k in self.known if not k.endswith("._target_")}
        near = {leaves[k]: k for k in leaves if k.rpartition(".")[0] == parent} if parent else {k: k for k in self.root}
        return (
            [near[name] for name in similar(leaf, near)]
            or [k for k in leaves if leaves[k] == leaf][:3]
            or similar(key, leaves, 0.8)
            or [k for k in leaves if [leaves[k]] == similar(leaf, leaves.values(), 0.75)][:3]
        )


def _choices(group: str, classes: list[type]) -> list[str]:
    """The files of a group that describe one of `classes`."""
    from gpt2x.config.compose import CONFIG_DIR  # which needs this module

    targets = tuple(f"_target_: {cls._target_}\n" for cls in classes)
    files = sorted((CONFIG_DIR / group).glob("*.yaml"))
    return [path.stem for path in files if any(target in path.read_text(encoding="utf-8") for target in targets)]


def similar(word: str, names: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """The name that `word` may be a typo of, in a list, or no name."""
    return difflib.get_close_matches(word, list(names), n=1, cutoff=cutoff)


def _convert(kind: Any, value: Any) -> Any:
    """`value` as `kind`, or ValueError. Nothing is guessed: 2.5 is no whole number and 1 is not true."""
    if isinstance(kind, types.UnionType):
        if value is None:
            return None
        try:
            return _convert(typing.get_args(kind)[0], value)
        except ValueError:
            raise ValueError(f"expected {type_name(kind)}") from None
    if typing.get_origin(kind) is list and isinstance(value, (list, tuple)):
        return [_convert(typing.get_args(kind)[0], v) for v in value]
    if is_mapping(kind):
        return _convert_mapping(kind, value)
    if kind is Any:
        return value
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is bool and isinstance(value, bool):
        return value
    if kind is int and number and value == value // 1:  # 1e4 steps are 10000 steps
        return int(value)
    if kind is float and number:
        if not math.isfinite(value):
            raise ValueError("expected a finite number")
        return float(value)
    if kind is str and (isinstance(value, str) or number):
        return str(value)
    raise ValueError(f"expected {type_name(kind)}")


def _convert_mapping(kind: Any, mapping: Any) -> dict:
    if not isinstance(mapping, dict):
        raise ValueError(f"expected {type_name(kind)}, such as {{a: 1, ' b': 2}}")
    of_keys, of_values = typing.get_args(kind)
    converted = {}
    for key, value in mapping.items():
        try:
            name = _convert(of_keys, key)
        except ValueError:
            raise ValueError(f"expected {type_name(kind)}; put quotes around {show(key)} if it is meant as text") from None
        try:
            converted[name] = _convert(of_values, value)
        except ValueError as error:
            hint = "; a space belongs after the colon" if value is None else ""  # YAML reads {a:1} as {"a:1": null}
            raise ValueError(f"{error} for {name!r}, not {show(value)}{hint}") from None
    return converted


def _within_limits(setting: Setting, value: Any) -> Any:
    limits = setting.field.metadata
    if "choices" in limits and value not in limits["choices"]:
        close = similar(str(value), [c for c in limits["choices"] if isinstance(c, str)])
        raise ValueError(f"expected {setting.allowed}" + (f"; did you mean {close[0]}?" if close else ""))
    for number in value if isinstance(value, list) else value.values() if isinstance(value, dict) else [value]:
        if isinstance(number, (int, float)) and (
            ("minimum" in limits and number < limits["minimum"])
            or ("maximum" in limits and number > limits["maximum"])
            or ("above" in limits and number <= limits["above"])
            or ("below" in limits and number >= limits["below"])
        ):
            raise ValueError(f"must be {setting.allowed}")
    return value
