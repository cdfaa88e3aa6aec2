"""A console command: command line in, checked dataclass to the function that does the work, exit code out.

It drives the same classes as @hydra.main does, so --cfg, --info, -m, launchers, sweepers and tab
completion are Hydra's. What is added: nothing is written and no job starts before everything is
checked, errors are told in our own words, and a run's folder is always a new one.

Exit codes: 0 done; 1 a run failed; 2 the command line or the configuration cannot be used; 130 and
143 interrupted and terminated.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import itertools
import os
import shutil
import signal
import sys
import tempfile
import textwrap
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from gpt2x import __version__
from gpt2x.config.check import check_available, settings
from gpt2x.config.compose import CONFIG_DIR, Composer, checked, our_errors, quote
from gpt2x.config.option import ConfigError, ConfigErrors, show
from gpt2x.config.resume import resume
from gpt2x.errors import UserError


@dataclass(frozen=True)
class Command:
    """What one console command is; call it with the arguments (sys.argv's by default) for an exit code.

    `run` is "module:function", imported only when a job starts. It is called with the configuration
    and, if the command `has_run_folder`, with that folder, `overrides` and `sweep`, the sweep's name or None.
    `shown` are the settings that --help tells about. Arguments without "=" are the elements of the list `positional`,
    where the command has one.
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
            return _report(self.name, error)
        except SystemExit as error:  # a job's exit code, carried past Hydra
            return error.code
        except KeyboardInterrupt:
            print(f"{self.name}: interrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:
            return _reader_has_left()


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

    overrides = composer.read(_with_positional(command, args.overrides), sweeping=args.multirun)
    master = composer.compose([o for o in overrides if not o.is_sweep_override()])
    sweeping = args.multirun or (master.hydra.mode == RunMode.MULTIRUN and not args.cfg and not args.info)
    old_run = None
    if "resume" in composer.fields and _given("resume", overrides):
        if sweeping:
            raise ConfigError("", None, "resume=: one run is resumed at a time, without -m")
        if master.resume is not None:
            old_run = Path(master.resume)
            resume(composer, old_run, overrides)
    lines = [o.input_line for o in overrides]
    job = Job(command.name, command.schema, command.run, command.has_run_folder)

    if sweeping:
        return _sweep(command, composer, hydra, job, overrides, master)
    config = composer.config(overrides)
    if getattr(config, "resume", None) is not None and old_run is None:
        raise ConfigError("resume", config.resume, "a run to resume is named on the command line, not in a file")
    with our_errors():
        if args.cfg:
            hydra.show_cfg(composer.config_name, lines, args.cfg, args.package, args.resolve)
        elif args.info:
            hydra.show_info(args.info, composer.config_name, lines)
        else:
            check_available(config)
            if old_run is not None:
                lines.append(f"hydra.run.dir={quote(str(old_run))}")
            elif command.has_run_folder and not _given("hydra.run.dir", overrides):
                lines.append(f"hydra.run.dir={quote(str(_new_folder(master.hydra.run.dir)))}")
            hydra.run(composer.config_name, job, [*lines, "hydra.mode=RUN"])
    return 0


def _sweep(command: Command, composer: Composer, hydra: Hydra, job: Job, overrides: list, master: DictConfig) -> int:
    count = _check_jobs(composer, overrides, master)
    lines = [o.input_line for o in overrides] + ["hydra.mode=MULTIRUN"]
    with contextlib.ExitStack() as stack, our_errors():
        # A launcher that starts processes ends them when this one ends in order; a plain SIGTERM would leave them running.
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        stack.callback(signal.signal, signal.SIGTERM, before)
        if not command.has_run_folder:  # Hydra insists on one
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            lines += [f"hydra.sweep.dir={quote(folder)}", "hydra.sweep.subdir=."]
        elif not _given("hydra.sweep.dir", overrides):
            lines.append(f"hydra.sweep.dir={quote(str(_new_folder(master.hydra.sweep.dir)))}")
        print(f"{command.name}: {count} runs", flush=True)
        try:
            hydra.multirun(composer.config_name, job, lines)
        except JobFailed:
            return 1
    return 0


@dataclass(frozen=True)
class Job:
    """What Hydra calls for each run, in whatever process its launcher has chosen."""

    command: str
    schema: type
    run: str
    has_run_folder: bool

    def __call__(self, composed: DictConfig) -> float | None:
        """The run's metric, for sweepers that search."""
        hydra = HydraConfig.get()
        sweeping = hydra.mode == RunMode.MULTIRUN
        try:
            if sweeping:
                print(f"{self.command}: run {hydra.job.num}: {' '.join(hydra.overrides.task)}", flush=True)
            result = self._start(checked(composed, self.schema), hydra, sweeping)
        except BrokenPipeError:  # Hydra would keep it to itself
            raise SystemExit(_reader_has_left()) from None
        except Exception as error:
            code = _report(self.command, error)
            if sweeping:
                raise JobFailed(f"run {hydra.job.num}: {error}") from None  # Hydra goes on with the other jobs
            raise SystemExit(code) from None
        metric = getattr(result, "metric", None)
        return None if metric is None else float(metric)

    def _start(self, config: Any, hydra: Any, sweeping: bool) -> Any:
        check_available(config)
        module, _, name = self.run.partition(":")
        function = getattr(importlib.import_module(module), name)
        if not self.has_run_folder:
            return function(config)
        sweep = None
        if sweeping:
            folder, home = Path(hydra.sweep.dir), Path(config.paths.outputs) / "sweeps"
            sweep = folder.relative_to(home).as_posix() if folder.is_relative_to(home) else folder.name
        return function(config, Path(hydra.runtime.output_dir), overrides=list(hydra.overrides.task), sweep=sweep)


class JobFailed(Exception):
    """A job of a sweep failed and has said why."""


def _check_jobs(composer: Composer, overrides: list, master: DictConfig) -> int:
    """Check every combination of a sweep; returns how many there are."""
    problems: dict[str, ConfigError] = {}
    here = master.hydra.launcher._target_.endswith(".BasicLauncher")  # others may run the jobs on another machine
    jobs = composer.jobs(overrides, master)
    outputs: set[str] = set()
    for job in jobs:
        try:
            config = composer.config(job)
            if getattr(config, "interactive", False):
                raise ConfigError("interactive", True, "one session at a time, without -m")
            output = getattr(config, "output", None)
            if _given("output", overrides) and output in outputs:
                raise ConfigError(
                    "output", output, "several runs would write this one file", "leave it out, or name one for each"
                )
            outputs.add(output)
            if here:
                check_available(config)
        except ConfigError as error:
            problems |= {str(problem): problem for problem in getattr(error, "errors", [error])}
    if problems:
        raise ConfigErrors(list(problems.values()))
    return len(jobs)


def _with_positional(command: Command, arguments: list[str]) -> list[str]:
    """The arguments as overrides only: those without "=" as one of the list they are the elements of."""
    bare = [argument for argument in arguments if "=" not in argument] if command.positional else []
    if not bare:
        return arguments
    others = [argument for argument in arguments if "=" in argument]
    if (twice := next((o for o in others if o.lstrip("+").startswith(f"{command.positional}=")), None)) is not None:
        value = twice.partition("=")[2]
        raise ConfigError(command.positional, value, f"{bare[0]} is given beside it", "give all in one of the two ways")
    return [f"{command.positional}=[{','.join(map(quote, bare))}]", *others]


def _given(key: str, overrides: list) -> bool:
    return any(o.key_or_group == key for o in overrides)


def _new_folder(path: str) -> Path:
    """Create the folder `path`, or path_2, path_3, ... if another run has it already."""
    for number in itertools.count(1):
        folder = Path(path if number == 1 else f"{path}_{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"{folder}: the folder cannot be created ({error.strerror})") from None
    raise AssertionError


def _report(name: str, error: Exception) -> int:
    """Print what went wrong; returns the exit code."""
    sys.stdout.flush()
    if not isinstance(error, UserError):
        traceback.print_exception(error)
        return 1
    for problem in getattr(error, "errors", [error]):
        print(f"{name}: {problem}", file=sys.stderr)
    return 2 if isinstance(error, ConfigError) else 1


def _reader_has_left() -> int:
    """Whoever reads our output, such as head, has seen enough: the exit code, after which nothing more is printed."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


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
