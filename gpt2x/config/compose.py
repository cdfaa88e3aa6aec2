"""Composing a configuration from YAML files and overrides; here, and in command.py, job.py and multirun.py, Hydra is known.

Plain YAML in, checked dataclasses out. Hydra merges the files; the schema and its rules are ours (check.py).
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import IConfigRepository
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.default_element import GroupDefault, ResultDefault
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, Quote, QuotedString
from hydra.core.utils import setup_globals
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import OmegaConfBaseException

from gpt2x.config.check import NOT_GIVEN, check, defaults, is_mapping, part_class, settings, similar, types_of
from gpt2x.config.option import ConfigError, ConfigErrors
from gpt2x.config.schema import GROUPS
from gpt2x.errors import UserError

VERSION_BASE = "1.3"
MAX_CHECKED = 4096  # combinations of a sweep that are checked before its first job; each takes some milliseconds

# A wheel has configs/ inside the package, a checkout beside it. Inside first: beside an installed
# package another project's configs/ may lie.
_PACKAGE = Path(__file__).resolve().parents[1]
CONFIG_DIR = next(p for p in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if (p / "train.yaml").is_file())


def compose(config_name: str, schema: type, overrides: Sequence[str] = (), config_dir: str | os.PathLike | None = None) -> Any:
    """The configuration that a command line would run: `compose("train", TrainConfig, ["model=micro"])`.

    `config_dir` is a folder with the user's own files. Raises ConfigError naming everything that is wrong.
    """
    composer = Composer(config_name, schema, config_dir)
    return composer.config(composer.read(overrides))


def change(config_name: str, config: Any, override: str) -> Any:
    """`config`, of the root file `config_name`, with one override more: "sampling.top_k=5", "sampling=greedy".

    Raises ConfigError as the command line would.
    """
    composer = Composer(config_name, type(config))
    overrides = composer.read([override])
    composer.resume(config, overrides)
    return composer.config(overrides)


def to_yaml(config: Any) -> str:
    """A configuration as resolved, plain YAML, `_target_`s included; `from_yaml` reads it back."""
    return yaml.dump(dataclasses.asdict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def from_yaml(path: str | os.PathLike, schema: type) -> Any:
    """Read what `to_yaml` wrote, through the same checks as any configuration. Nothing in the file is executed.

    Settings that the file does not have yet get their defaults. Raises ConfigError.
    """
    data = plain_yaml(path)
    try:
        return check(schema, data)
    except ConfigError as error:
        raise ConfigErrors([ConfigError("", None, f"{path}: {e}") for e in getattr(error, "errors", [error])]) from None


def plain_yaml(path: str | os.PathLike) -> dict:
    """What `to_yaml` wrote as nested dicts, unchecked. Raises ConfigError where the file cannot be read."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        data = yaml.load(text, Loader=_FastLoader if len(text) <= _SHORT else _Loader)
    except OSError as error:
        raise ConfigError("", None, f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError("", None, f"{path}: this is no valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError("", None, f"{path}: this is no configuration")
    return data


# OmegaConf's loader, and the same on libyaml's parser, where there is one, which reads hundreds of runs several times as
# fast. That one has no limit to the depth: it may only have texts too short to nest deeper than its stack can take.
_Loader = get_yaml_loader()
_FastLoader = type("_FastLoader", (yaml.CSafeLoader, _Loader) if yaml.__with_libyaml__ else (_Loader,), {})
_SHORT = 8_000  # characters


class _Dumper(yaml.SafeDumper):
    """Quotes all text that the loader above would take for something else, such as "1e5" for a number."""

    yaml_implicit_resolvers = get_yaml_loader().yaml_implicit_resolvers

    def represent_str(self, text: str) -> yaml.ScalarNode:
        # Rare line ends, which every other style of YAML turns into ordinary ones.
        style = '"' if {"\r", "\x85", "\u2028", "\u2029"} & set(text) else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)


class Composer:
    """The configuration files of one command, merged by Hydra and checked against its schema."""

    def __init__(self, config_name: str, schema: type, config_dir: str | os.PathLike | None = None):
        self.config_name, self.schema = config_name, schema
        self.config_dir = None if config_dir is None else str(Path(config_dir).resolve())
        self.fields = {field.name: field for field in dataclasses.fields(schema)}
        self.verbatim = set(_verbatim(schema))
        version.setbase(VERSION_BASE)
        setup_globals()
        search_path = create_config_search_path(str(CONFIG_DIR))
        if config_dir is not None:
            if not Path(config_dir).is_dir():
                raise ConfigError("--config-dir", str(config_dir), "no such folder")
            search_path.prepend("command-line", f"file://{Path(config_dir).resolve()}", SearchPathQuery("schema"))
        self.loader = Loader(search_path, schema, config_name)
        self._parser = OverridesParser.create(config_loader=self.loader)
        self._composed: dict[tuple[str, ...], DictConfig] = {}
        primary = self.loader.repository.load_config(config_name)
        if primary is None:
            raise ConfigError("--config-name", config_name, "no such file in the config folders")
        entries = [entry for entry in primary.defaults_list if isinstance(entry, GroupDefault) and not entry.override]
        self.groups = {entry.group: entry.value for entry in entries}  # group -> the choice that the root file makes

    def read(self, texts: Sequence[str], *, sweeping: bool = False) -> list[Override]:
        """Parse overrides, with "+" or without: every setting is there already, so a plus changes nothing."""
        overrides, problems = [], []
        searchpath = [text for text in texts if text.startswith("hydra.searchpath=")]
        for text in texts:
            try:
                overrides.append(self._read(text, sweeping, searchpath))
            except ConfigError as error:
                problems.append(error)
        if problems:
            raise ConfigErrors(problems) if len(problems) > 1 else problems[0]
        return overrides

    def _read(self, text: str, sweeping: bool, searchpath: list[str]) -> Override:
        is_hydra = re.match(r"[+~]*hydra[./]", text)
        key, equals, value = text.lstrip("+").partition("=")
        if not is_hydra and (not equals or text.startswith("~")):
            raise ConfigError("", None, f"{text}: settings are given as key=value", "see --help")
        verbatim = not sweeping and key in self.verbatim
        try:
            override = self._parser.parse_override(text if is_hydra else f"{key}={value}")
        except (HydraException, OverrideParseException) as error:
            if verbatim:
                return self._parser.parse_override(f"{key}={quote(value)}")
            remedy = f"close all brackets; quote text that holds any, or commas or quotes, twice for the shell: \"{key}='...'\""
            raise ConfigError("", None, f"{text}: the value cannot be read ({_message(error)})", remedy) from None
        if verbatim and override._value is not None and not isinstance(override._value, QuotedString):
            return self._parser.parse_override(f"{key}={quote(value)}")
        if not is_hydra and key not in {*self.groups, *GROUPS} and "." not in key and isinstance(override.value(), (str, list)):
            with our_errors():
                repository = self.loader._parse_overrides_and_create_caching_repo(self.config_name, searchpath)[1]
            if repository.group_exists(key):  # a group of the user's own, in a folder of theirs
                override = self._parser.parse_override(f"+{key}={value}")
        override.config_loader = self.loader
        return override

    def compose(self, overrides: list[Override]) -> DictConfig:
        """Merge the files and apply overrides without sweeps, checking nothing; Hydra's own settings are in it.

        A setting that does not exist is put in all the same, for `check` to name.
        """
        files = [o for o in overrides if self._chooses_files(o)]
        for o in files:
            names = o.value() if isinstance(o.value(), list) else [o.value()]
            if not o.is_hydra_override() and not all(isinstance(name, str) for name in names):
                raise _no_such_choice(o.key_or_group, o.value(), self.choices(o.key_or_group))
        key = tuple(o.input_line for o in files)
        with our_errors():
            if key not in self._composed:
                self._composed[key] = self.loader.files(list(key))
            config = copy.deepcopy(self._composed[key])
            others = [dataclasses.replace(o, type=OverrideType.FORCE_ADD) for o in overrides if o not in files]
            self.loader._apply_overrides_to_config(others, config)
            self.loader.take_over(config, {o.key_or_group for o in overrides})
        return config

    def config(self, overrides: list[Override]) -> Any:
        """Compose and check one job."""
        for override in overrides:
            if override.is_sweep_override():
                key, value = override.key_or_group, override.get_value_string()
                remedy = f"one list: {key}=[{value}]; one text: \"{key}='{value}'\""
                raise ConfigError(key, value, "several values need -m, for one run each", remedy)
        return checked(self.compose(overrides), self.schema, [group for group in self.groups if self.choices(group)])

    def resume(self, saved: Any, overrides: list[Override]) -> None:
        """From now on compose on top of `saved` instead of the files, but for groups chosen in `overrides`."""
        chosen = {o.key_or_group for o in overrides if self._chooses_files(o)}
        self._composed.clear()
        self.loader.saved = {k: _escaped(v) for k, v in dataclasses.asdict(saved).items() if k not in chosen}

    def choices(self, group: str) -> list[str]:
        """The files of a group, the user's own among them."""
        return self.loader.repository.get_group_options(group, ObjectType.CONFIG)

    def _chooses_files(self, override: Override) -> bool:
        is_choice = override.key_or_group in self.groups and not isinstance(override.value(), dict)
        return override.is_hydra_override() or override.is_add() or is_choice


def _verbatim(schema: type) -> Iterator[str]:
    """The dotted names of the settings whose values are taken as they are typed: those declared `verbatim`, and mappings,
    whose keys Hydra's grammar would not let one quote."""
    kinds = types_of(schema)
    for field in dataclasses.fields(schema):
        if "verbatim" in field.metadata or is_mapping(kinds[field.name]):
            yield field.name
        part = field.default_factory if dataclasses.is_dataclass(field.default_factory) else None
        for cls in GROUPS.get(field.name, (part,) if part else ()):
            yield from (f"{field.name}.{name}" for name in _verbatim(cls))


class Loader(ConfigLoaderImpl):
    """Hydra's loader, with every setting of the schema present from the start.

    A file states only what differs from the defaults; with the others filled in, a plain `key=value`
    reaches every setting, --cfg shows them and tab completion offers them.
    """

    def __init__(self, search_path: Any, schema: type, config_name: str):
        super().__init__(search_path)
        self.schema, self.config_name, self.saved = schema, config_name, {}
        self._alone: dict[str, DictConfig] = {}

    def load_configuration(self, config_name: str | None, overrides: list[str], *args: Any, **kwargs: Any) -> DictConfig:
        """What Hydra calls for each run."""
        config = super().load_configuration(config_name, overrides, *args, **kwargs)
        self.take_over(config, {line.lstrip("+").partition("=")[0] for line in overrides})
        return config

    def files(self, choices: list[str]) -> DictConfig:
        """What the files say by themselves, with these choices of them; groups may be left to choose."""
        return super().load_configuration(self.config_name, choices, RunMode.MULTIRUN, validate_sweep_overrides=False)

    def _with(self, group: str = "", choice: str = "") -> DictConfig:
        """What the files say with no other choice than this one, put together once."""
        if group and choice == self._with().hydra.runtime.choices[group]:
            return self._with()
        key = f"{group}={choice}"
        if key not in self._alone:
            self._alone[key] = self.files([key] if group else [])
        return self._alone[key]

    def take_over(self, config: DictConfig, overridden: set[str]) -> None:
        """With init=run, openai or hf, put that model and its tokenizer in place of the default ones, but for what a file or
        one of the keys `overridden` changes in them. What is wrong with init is told later."""
        run = None if self.saved or "init" not in config else self._begun_with(config)
        if run is None:
            return
        for group in {"model", "tokenizer"} - overridden:  # one that is chosen outright stays, and is refused if it is another
            own = self._with(group, config.hydra.runtime.choices[group])  # the chosen file by itself
            chosen, file, default = (OmegaConf.to_container(c[group], resolve=False) for c in (config, own, self._with()))
            changed = {key.removeprefix(f"{group}.") for key in overridden if key.startswith(f"{group}.")}
            for others in (file, default):
                changed |= {name for name, value in chosen.items() if value != others.get(name, NOT_GIVEN)}
            taken = dataclasses.asdict(getattr(run, group))
            if "_target_" not in changed or chosen["_target_"] == taken["_target_"]:  # another kind has other settings
                config[group] = taken | {name: chosen[name] for name in changed}

    def _begun_with(self, config: DictConfig) -> Any:
        """The configuration of what init names; None where that is nothing, or cannot be told."""
        from gpt2x.config.trained import begun_with  # which needs this module

        with contextlib.suppress(UserError, OmegaConfBaseException):
            init = OmegaConf.to_container(config.init, resolve=True)
            if (cls := part_class("init", Any, init)) is not None:
                return begun_with(check(cls, init))
        return None

    def _compose_config_from_defaults_list(self, defaults: list[ResultDefault], repo: IConfigRepository) -> DictConfig:
        config = super()._compose_config_from_defaults_list(defaults, repo)
        for name, value in self.saved.items():
            config[name] = value
        return _with_defaults(config, self.schema)


def checked(config: DictConfig, schema: type, groups: Sequence[str] = ()) -> Any:
    """The dataclass that a composed configuration describes; raises ConfigError naming all that is wrong with it."""
    with our_errors():
        plain = OmegaConf.to_container(_without_hydra(config), resolve=True)
    _read_mappings(schema, plain)
    for group in set(groups) & set(plain) - {field.name for field in dataclasses.fields(schema)}:
        raise ConfigError("", None, f"a file of {group}/ that sets values must start with the line: # @package _global_")
    return check(schema, plain, groups=groups)


def _read_mappings(schema: type, data: dict) -> None:
    """Replace, in place, each mapping that came as YAML text, from the command line; what is none stays, for `check`."""
    for setting in settings(schema, data):
        *path, name = setting.key.split(".")
        node = functools.reduce(lambda node, part: node.get(part) if isinstance(node, dict) else None, path, data)
        if is_mapping(setting.type) and isinstance(node, dict) and isinstance(node.get(name), str):
            with contextlib.suppress(yaml.YAMLError, RecursionError):
                mapping = yaml.load(node[name], Loader=get_yaml_loader())
                node[name] = mapping if isinstance(mapping, dict) else node[name]


def quote(text: str) -> str:
    """`text` as one value in Hydra's override grammar, nothing in it meaning anything special."""
    return QuotedString(_escaped(text), Quote.single).with_quotes()


def _with_defaults(config: DictConfig, schema: type) -> DictConfig:
    plain = OmegaConf.to_container(_without_hydra(config), resolve=False)
    merged = OmegaConf.merge(defaults(schema, plain), plain)
    for key in merged:
        config.pop(key, None)  # so that the settings stand in the schema's order
        config[key] = merged._get_node(key)
    for setting in settings(schema, plain):
        if is_mapping(setting.type) and OmegaConf.is_dict(mapping := OmegaConf.select(config, setting.key)):
            OmegaConf.set_struct(mapping, False)  # Hydra closes what it composes; the keys of a mapping are free
    return config


def _without_hydra(config: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])


def _escaped(value: Any) -> Any:
    """Plain data in which OmegaConf will find no interpolation."""
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def _no_such_choice(group: str, choice: Any, choices: list[str]) -> ConfigError:
    close = similar(str(choice), choices, 0.4)
    problem = f"no such choice; did you mean {group}={close[0]}?" if close else "no such choice"
    return ConfigError(group, choice, problem, f"choices of {group}: {', '.join(choices)}")


@contextlib.contextmanager
def our_errors() -> Iterator[None]:
    """Say what Hydra and OmegaConf found wrong in our words; their advice ("use +key=value") leads nowhere here."""
    try:
        yield
    except MissingConfigException as error:
        group, _, choice = (error.missing_cfg_file or "").rpartition("/")
        if not error.options:
            raise ConfigError("", None, _message(error)) from None
        raise _no_such_choice(group, choice, list(error.options)) from None
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError) as error:
        cause = error.__cause__ or error
        key = getattr(cause, "full_key", None)
        raise ConfigError("", None, f"{key}: {_message(cause)}" if key else _message(cause)) from None


def _message(error: BaseException) -> str:
    """An error of Hydra's or OmegaConf's without its advice and without its internals."""
    text = str(error).partition("Config search path:")[0]
    noise = re.compile(r"\s*(To append|See https|full_key:|object_type=|reference_type=|$)")
    return " ".join(line.strip() for line in text.splitlines() if not noise.match(line)) or type(error).__name__
