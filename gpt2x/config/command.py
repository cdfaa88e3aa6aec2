"""A console command: command line in, checked dataclass to the function that does the work, exit code out.

It drives the same classes as @hydra.main does, so --cfg, --info, -m, launchers, sweepers and tab
completion are Hydra's. What is added: nothing is written and no job starts before everything is
checked, errors are told in our own words, and a run's folder is always a new one.

Exit codes: 0 done; 1 a run failed; 2 the command line or the configuration cannot be used; 130 and
143 interrupted and terminated.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra._internal.hydra import Hydra
from hydra.types import RunMode
from omegaconf import OmegaConf

from gpt2x import __version__
from gpt2x.config.check import check_available, settings
from gpt2x.config.compose import CONFIG_DIR, Composer, our_errors, quote
from gpt2x.config.job import Job, new_folder, reader_has_left, report
from gpt2x.config.multirun import asks_for_sweep, is_sweep, multirun, read_request
from gpt2x.config.option import ConfigError, show
from gpt2x.config.resume import resume
from gpt2x.errors import UserError


@dataclass(frozen=True)
class Command:
    """What one console command is; call it with the arguments (sys.argv's by default) for an exit code.

    `run` is "module:function", imported only when a job starts. It is called with the configuration
    and, if the command `has_run_folder`, with that folder, `overrides` and `sweep`, the sweep's name or None.
    `shown` are the settings that --help tells about. Arguments without "=", and paths with one, are the elements of the list
    `positional`, where the command has one.
    """

    name: str
    config_name: str
    schema: type
    run: str
    has_run_folder: bool = False
    positional: str | None = None
    shown: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()

    def __call__(self, argv: Sequence[str] | None = None) -> int:
        for stream in (sys.stdout, sys.stderr):  # a console that cannot show a character shows another, and no traceback
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")
        try:
            code = _main(self, sys.argv[1:] if argv is None else argv)
            sys.stdout.flush()
            return code
        except UserError as error:
            return report(self.name, error)
        except SystemExit as error:  # a job's exit code, carried past Hydra
            return error.code
        except KeyboardInterrupt:
            print(f"{self.name}: interrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:
            return reader_has_left()


def _main(command: Command, argv: Sequence[str]) -> int:
    args = _arguments(command, argv)
    if args.version:
        print(f"gpt2x {__version__}")
        return 0
    composer = Composer(args.config_name or command.config_name, command.schema, args.config_dir)
    hydra = Hydra(task_name=command.name, config_loader=composer.loader)
    if args.help:
        print(_help(command, composer))
        return 0
    if args.shell_completion:
        try:
            hydra.shell_completion(composer.config_name, args.overrides)
        except ValueError as error:
            raise ConfigError("", None, f"--shell-completion: {error}") from None
        return 0

    texts = _with_positional(command, args.overrides)
    overrides = composer.read(texts, sweeping=args.multirun)
    master = composer.compose([o for o in overrides if not o.is_sweep_override()])
    sweeping = args.multirun or (
        not (args.cfg or args.info) and (master.hydra.mode == RunMode.MULTIRUN or asks_for_sweep(composer, master))
    )
    old = None
    if "resume" in composer.fields and _given("resume", overrides) and master.resume is not None:
        old = Path(master.resume)
        if args.multirun:
            raise ConfigError("", None, "-m starts a new sweep; resume=FOLDER, without it, goes on with a run or a sweep")
        if is_sweep(old):
            again = [o for o in composer.read(texts, sweeping=True) if o.key_or_group != "resume"]
            known = read_request(old, composer, again)
            return multirun(command, composer, hydra, known, old, [o.key_or_group for o in again])
        if sweeping:
            raise ConfigError("", None, "resume=: one run is resumed at a time, without a sweep")
        resume(composer, old, overrides)
    if sweeping:
        return multirun(command, composer, hydra, composer.read(texts, sweeping=True))
    lines = [o.input_line for o in overrides]
    job = Job(command.name, command.schema, command.run, command.has_run_folder)
    config = composer.config(overrides)
    if getattr(config, "resume", None) is not None and old is None:
        raise ConfigError("resume", config.resume, "a run to resume is named on the command line, not in a file")
    with our_errors():
        if args.cfg:
            hydra.show_cfg(composer.config_name, lines, args.cfg, args.package, args.resolve)
        elif args.info:
            hydra.show_info(args.info, composer.config_name, lines)
        else:
            check_available(config)
            if old is not None:
                lines.append(f"hydra.run.dir={quote(str(old))}")
            elif command.has_run_folder and not _given("hydra.run.dir", overrides):
                lines.append(f"hydra.run.dir={quote(str(new_folder(master.hydra.run.dir)))}")
            hydra.run(composer.config_name, job, [*lines, "hydra.mode=RUN"])
    return 0


def _with_positional(command: Command, arguments: list[str]) -> list[str]:
    """The arguments as overrides only: those that are no settings as one of the list they are the elements of."""
    bare = [argument for argument in arguments if _is_path(command, argument)] if command.positional else []
    if not bare:
        return arguments
    others = [argument for argument in arguments if argument not in bare]
    if (twice := next((o for o in others if o.lstrip("+").startswith(f"{command.positional}=")), None)) is not None:
        value = twice.partition("=")[2]
        raise ConfigError(command.positional, value, f"{bare[0]} is given beside it", "give all in one of the two ways")
    return [f"{command.positional}=[{','.join(map(quote, bare))}]", *others]


def _is_path(command: Command, argument: str) -> bool:
    """Whether an argument is no setting: it has no "=", one behind a "/", or it is a folder not called as a setting is."""
    key, equals, _ = argument.partition("=")
    name = key.lstrip("+~")
    if "/" in name or not equals:
        return not (equals and name.startswith("hydra/"))
    known = {"hydra", *(field.name for field in dataclasses.fields(command.schema))}
    return name.split(".")[0] not in known and os.path.isdir(argument)


def _given(key: str, overrides: list) -> bool:
    return any(o.key_or_group == key for o in overrides)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise ConfigError("", None, message, f"see {self.prog} --help")


_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
_FLAGS = (
    (("-m", "--multirun"), "one run for each combination of values: a,b  range(1,4)  glob(*)"),
    (("-c", "--cfg"), "print the configuration instead of running: job, hydra or all"),
    (("--resolve",), "with --cfg: references such as ${data.name} resolved"),
    (("-p", "--package"), "with --cfg: one part of it only, such as optimizer"),
    (("-i", "--info"), "print how the configuration comes about: " + ", ".join(_INFO)),
    (("-cd", "--config-dir"), "a folder with groups and experiments of your own"),
    (("-cn", "--config-name"), "another root file, of your own"),
    (("-sc", "--shell-completion"), 'tab completion: eval "$(NAME -sc install=bash)"'),
    (("--version",), "print the version"),
    (("-h", "--help"), "print this"),
)


def _arguments(command: Command, argv: Sequence[str]) -> argparse.Namespace:
    kinds: dict[str, dict] = {
        "--cfg": {"choices": ["job", "hydra", "all"]},
        "--info": {"choices": _INFO, "nargs": "?", "const": "all"},
        "--package": {},
        "--config-dir": {},
        "--config-name": {},
    }
    parser = _Parser(prog=command.name, add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    modes = parser.add_mutually_exclusive_group()
    for names, _ in _FLAGS:
        group = modes if names[-1] in ("--multirun", "--cfg", "--info", "--shell-completion") else parser
        group.add_argument(*names, **kinds.get(names[-1], {"action": "store_true"}))
    args, unknown = parser.parse_known_intermixed_args(argv)
    for flag in unknown:
        bare = flag.lstrip("-")
        remedy = f"settings are given without dashes: {bare}" if "=" in bare else f"see {command.name} --help"
        raise ConfigError("", None, f"unknown flag {flag}", remedy)
    if (args.resolve or args.package) and not args.cfg:
        raise ConfigError("", None, "--resolve and --package go with --cfg")
    return args


def _help(command: Command, composer: Composer) -> str:
    width = min(120, shutil.get_terminal_size((100, 24)).columns)

    def table(rows: list[tuple[str, str]]) -> list[str]:
        indent = max(len(left) for left, _ in rows) + 4
        wrapper = textwrap.TextWrapper(width, subsequent_indent=" " * indent, break_on_hyphens=False)
        lines = []
        for left, right in rows:
            wrapper.initial_indent = f"  {left}".ljust(indent)
            lines.append(wrapper.fill(right))
        return lines

    config = composer.compose([])
    known = {setting.key: setting for setting in settings(command.schema, OmegaConf.to_container(config, resolve=False))}
    shown = [
        (f"{key}=..." if OmegaConf.is_missing(config, key) else f"{key}={show(OmegaConf.select(config, key))}", known[key].help)
        for key in command.shown
    ]
    groups = [
        (group, ", ".join(f"[{choice}]" if choice == default else choice for choice in composer.choices(group)))
        for group, default in composer.groups.items()
        if composer.choices(group)
    ]
    usage = [f"[{command.positional.upper()} ...]"] if command.positional else ["[group=choice ...]"]
    return "\n".join(
        [
            command.schema.__doc__.strip().splitlines()[0],
            "",
            " ".join(["usage:", command.name, *usage, "[setting=value ...] [flags]"]),
            "",
            *(["Groups; a choice is a file of settings, [the default] in brackets:", *table(groups), ""] if groups else []),
            "The settings most used, with their defaults:",
            *table(shown),
            "",
            "Flags:",
            *table([(", ".join(names), text.replace("NAME", command.name)) for names, text in _FLAGS]),
            "",
            "Examples:",
            *(f"  {command.name} {example}" for example in command.examples),
            "",
            f"Every setting: {CONFIG_DIR / 'README.md'}",
        ]
    )
