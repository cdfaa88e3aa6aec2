"""The sweep loop: ask a search for trials, have Hydra's launcher make runs of them, tell the search what came of them.

The launcher (basic, joblib, submitit, ray) is Hydra's plugin; the rest of Hydra's multirun, which forgets failures and
cannot be gone on with, is replaced by this. All that a sweep knows stands in its folder: sweep.yaml (what was asked for), a
run's folder for each job, named by its number, and sweep.csv. So a sweep that was stopped or killed goes on by being
started again, and what a job then does is decided by the folder it finds (job.py).
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import yaml
from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from gpt2x import __version__
from gpt2x.config.check import check_available
from gpt2x.config.compose import MAX_CHECKED, Composer, checked, from_yaml, our_errors, quote
from gpt2x.config.instantiate import instantiate
from gpt2x.config.job import STOP, SweepJob, finished, new_folder, report, without_sweep
from gpt2x.config.option import ConfigError, ConfigErrors, option
from gpt2x.config.resume import changeable, differences
from gpt2x.device import default_threads
from gpt2x.errors import UserError
from gpt2x.files import shown, write_atomic
from gpt2x.sweep.config import LISTED, GridConfig
from gpt2x.sweep.search import Choices, Grid, Interval, Repeated, Search, Space, Trial, check_space
from gpt2x.sweep.table import failures, read_rows, table, write_csv
from gpt2x.tracking.result import read_result

if TYPE_CHECKING:
    from gpt2x.config.command import Command

REQUEST = "sweep.yaml"
_RUNS_CODE = ("_target_", "setup", "additional_parameters")  # settings of launchers that are never taken from a file
_AT_ONCE = 8  # trials that a search which learns is asked for, where nothing says how many jobs run side by side


@dataclass(kw_only=True)
class _HowToSweep:
    """The part of a command's configuration that the loop reads."""

    sweep: Any = field(default_factory=GridConfig)
    seed: int = 1
    seeds: int | None = option(None, minimum=1)

    def check(self) -> None:
        if self.seeds is not None and getattr(self.sweep, "pruner", "none") != "none":
            problem = f"sweep.pruner={self.sweep.pruner} would compare a run with its own repetitions"
            raise ConfigError("seeds", self.seeds, problem, "add sweep.pruner=none, or leave out seeds=")


def asks_for_sweep(composer: Composer, master: DictConfig) -> bool:
    """Whether a configuration without -m is a sweep all the same."""
    if "sweep" not in composer.fields:
        return False
    return master.seeds is not None or OmegaConf.to_container(master.sweep, resolve=False) != asdict(GridConfig())


# -- going on with a sweep --------------------------------------------------------------------------------------------


def is_sweep(folder: Path) -> bool:
    return (folder / REQUEST).is_file()


def read_request(folder: Path, composer: Composer, again: list[Override]) -> list[Override]:
    """The overrides of the sweep in `folder`, with those that are given now on top of them.

    Raises ConfigError for one that would make its runs other experiments, and for what is not taken from a file,
    because it decides what code is run.
    """
    given = {o.key_or_group for o in again}
    kept = [o for o in _requested(folder, composer) if o.key_or_group not in given]
    for override in kept:
        key = override.key_or_group
        safe = key == "hydra/launcher" or (key.startswith("hydra.launcher.") and key.split(".")[2] not in _RUNS_CODE)
        if override.is_hydra_override() and not safe:
            problem = "the sweep was started with it; it can run code, and is not taken from a file"
            raise ConfigError(key, override.get_value_string(), problem, "give it again if it is yours")
    swept = {o.key_or_group for o in kept if o.is_sweep_override()}
    for override in again:
        key = override.key_or_group
        may = changeable(key) or key == "hydra/launcher" or (key.startswith("sweep.") and key != "sweep.params")
        if override.is_sweep_override() or key in swept or not (may or override.is_hydra_override()):
            problem = "the runs of a sweep that goes on keep their settings"
            raise ConfigError(
                key, override.get_value_string(), problem, "leave it out, or start a new sweep: leave out resume="
            )
    return [*kept, *again]


def _requested(folder: Path, composer: Composer) -> list[Override]:
    """The overrides that the sweep in `folder` was started with. Raises ConfigError if `composer` reads other files."""
    try:
        saved = yaml.safe_load((folder / REQUEST).read_text(encoding="utf-8"))
        texts, root, own = saved["overrides"], saved["config_name"], saved["config_dir"]
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise TypeError("overrides is no list of texts")
    except (OSError, yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ConfigError("", None, f"{folder / REQUEST}: this is no sweep's ({error})") from None
    if root != composer.config_name:
        raise ConfigError("--config-name", composer.config_name, f"the sweep was started with {root}", f"add -cn {root}")
    if own != composer.config_dir:
        problem = f"the sweep was started with {own}"
        raise ConfigError("--config-dir", composer.config_dir, problem, "leave it out" if own is None else f"add -cd {own}")
    return composer.read(texts, sweeping=True)


# -- the space --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What a sweep varies, and the overrides that all its jobs share. `given` has the keys of both, in order."""

    space: Space
    fixed: dict[str, str]
    given: tuple[str, ...]

    def shared(self) -> list[str]:
        """The overrides of all jobs."""
        return [f"{key}={value}" for key, value in self.fixed.items()]

    def job(self, values: dict[str, str]) -> list[str]:
        """The overrides of one job."""
        keys = dict.fromkeys([*self.given, *values])
        return [f"{key}={values[key] if key in values else self.fixed[key]}" for key in keys]

    def corners(self) -> list[dict[str, str]]:
        """Every combination of the values, an interval standing for its two ends."""
        ends = {
            key: axis if isinstance(axis, Choices) else Choices(tuple(dict.fromkeys((repr(axis.low), repr(axis.high)))))
            for key, axis in self.space.items()
        }
        return [trial.values for trial in Grid(ends).ask(MAX_CHECKED)]


def plan(composer: Composer, overrides: list[Override], params: dict[str, Any]) -> Plan:
    """Sort overrides, and `params` below them, into what is swept and what is fixed.

    Raises ConfigError for what cannot be swept.
    """
    texts = [f"{key}={'null' if value is None else value}" for key, value in params.items()]
    merged = {o.key_or_group: o for o in [*composer.read(texts, sweeping=True), *overrides]}
    space: Space = {}
    fixed = {}
    for name, override in merged.items():
        key = override.get_key_element()
        if not override.is_sweep_override():
            if not (override.is_hydra_override() or name in ("sweep", "seeds") or name.startswith("sweep.")):
                fixed[key] = override.get_value_string()
        elif override.is_hydra_override() or name.split(".")[0] in ("sweep", "seeds", "resume"):
            raise ConfigError(name, override.get_value_string(), "this cannot be swept: give one value")
        else:
            space[key] = _axis(override)
    return Plan(space, fixed, tuple(o.get_key_element() for o in merged.values() if o.get_key_element() in {**space, **fixed}))


def _axis(override: Override) -> Choices | Interval:
    sweep = override.value()
    if not isinstance(sweep, IntervalSweep):
        return Choices(tuple(override.sweep_string_iterator()))
    whole = isinstance(sweep.start, int) and isinstance(sweep.end, int)
    if sweep.start > sweep.end:
        problem = "its end is below its start"
        raise ConfigError(override.key_or_group, override.get_value_string(), problem)
    return Interval(sweep.start, sweep.end, log="log" in sweep.tags, integer=whole)


# -- what is checked before a job starts ------------------------------------------------------------------------------


class _Jobs:
    """The jobs of a sweep before they are runs."""

    def __init__(self, command: Command, composer: Composer, planned: Plan, here: bool):
        self.command, self.composer, self.plan, self.here = command, composer, planned, here
        self._configs: dict[tuple[str, ...], Any] = {}

    def config(self, values: dict[str, str]) -> Any:
        """The checked configuration of one, composed once."""
        lines = tuple(self.plan.job(values))
        if lines not in self._configs:
            config = self.composer.config(self.composer.read(lines, sweeping=True))
            if getattr(config, "interactive", False):
                raise ConfigError("interactive", True, "one session at a time, without -m")
            if self.here:
                check_available(config)
            self._configs[lines] = without_sweep(config)
        return self._configs[lines]

    def check(self, jobs: list[dict[str, str]]) -> None:
        """Raise ConfigError for all that is wrong with any of them."""
        problems: dict[tuple[str, str], ConfigError] = {}
        outputs: set[str] = set()
        for values in jobs:
            try:
                output = getattr(self.config(values), "output", None)
                if "output" in self.plan.given and output in outputs:
                    problem, remedy = "several runs would write this one file", "leave it out, or name one for each"
                    raise ConfigError("output", output, problem, remedy)
                outputs.add(output)
            except ConfigError as error:
                for problem in getattr(error, "errors", [error]):  # the same of each combination is told once
                    problems.setdefault((problem.key, problem.problem), problem)
        if problems:
            raise ConfigErrors(list(problems.values()))

    def check_apart(self, jobs: list[dict[str, str]]) -> None:
        """Raise ConfigError if two of them are one run."""
        before: dict[str, dict[str, str]] = {}
        for values in jobs:
            if (same := before.setdefault(repr(self.config(values)), values)) is not values:
                one, other = (" ".join(f"{key}={value}" for key, value in job.items()) for job in (same, values))
                problem = f"{one} is asked for twice" if one == other else f"{one} and {other} are the same run"
                raise ConfigError("", None, problem, "name each value once; seeds=N repeats runs with other seeds")

    def check_folders(self, folder: Path, trials: list[Trial]) -> None:
        """Raise ConfigError if one's folder holds another run than it would be."""
        problems = []
        for trial in trials:
            path = folder / str(trial.number)
            if (path / "config.yaml").exists():
                saved = from_yaml(path / "config.yaml", self.composer.schema)
                differing = differences(saved, self.config(trial.values), self.plan.space)
                if differing:
                    problems.append(ConfigError("", None, f"{shown(path)} holds another run: {'; '.join(differing)}"))
        if problems:
            more = [ConfigError("", None, f"and {len(problems) - 5} more")] if len(problems) > 5 else []
            remedy = f"go on with the sweep that is there: resume={shown(folder)}, or choose another hydra.sweep.dir"
            raise ConfigErrors([*problems[:5], *more, ConfigError("", None, remedy)])


# -- the loop ---------------------------------------------------------------------------------------------------------


def multirun(
    command: Command,
    composer: Composer,
    hydra: Hydra,
    overrides: list[Override],
    old: Path | None = None,
    again: Sequence[str] = (),
) -> int:
    """Make all runs that `overrides` ask for; returns the exit code.

    `old` is the folder of a sweep to go on with, and `again` the keys that are given for that.
    """
    master, how, planned = _read(command, composer, overrides)
    given = {o.key_or_group for o in overrides}
    if how.seeds is not None and "seed" in planned.space:
        raise ConfigError("seeds", how.seeds, "seed is swept already", "leave out one of the two")

    launcher = Launcher(master.hydra.launcher, given)
    jobs = _Jobs(command, composer, planned, launcher.here)
    _warn_of_threads(launcher, planned)
    listed = isinstance(how.sweep, LISTED)
    if not listed:
        check_space(planned.space)
    first = [t.values for t in _search(how, planned, None).ask(MAX_CHECKED)] if listed else planned.corners()
    jobs.check(first)
    jobs.check_apart(first)
    with contextlib.ExitStack() as stack, our_errors():
        if not command.has_run_folder:  # Hydra's launchers insist on one
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        elif old is not None or "hydra.sweep.dir" in given:
            folder = old or Path(master.hydra.sweep.dir)
        else:
            folder = new_folder(master.hydra.sweep.dir)
        if old is None and is_sweep(folder):
            _check_same(folder, command, composer, how, planned)
        if command.has_run_folder and listed:
            jobs.check_folders(folder, _search(how, planned, folder).ask(MAX_CHECKED))
        try:
            search = _search(how, planned, folder)
        except UserError:
            with contextlib.suppress(OSError):  # it is not there, or not empty
                folder.rmdir()
            raise
        folder.mkdir(parents=True, exist_ok=True)
        if command.has_run_folder and old is None:
            _write_request(folder, command, composer, overrides)
        for override in overrides:
            if override.key_or_group == "sweep.objectives" and override.key_or_group in again:
                _replace_in_request(folder, composer, override)
        lines = [o.input_line for o in overrides if o.is_hydra_override() and o.key_or_group != "hydra.sweep.dir"]
        lines += [*launcher.settings, *planned.shared(), f"hydra.sweep.dir={quote(str(folder))}", "hydra.mode=MULTIRUN"]
        job = SweepJob(
            command.name,
            command.schema,
            command.run,
            command.has_run_folder,
            config_name=composer.config_name,
            config_dir=composer.config_dir,
            on_error=how.sweep.on_error,
            own_process=launcher.own_process,
            parent=launcher.parent,
            threads=launcher.threads,
            prefixed=launcher.shares_console,
            again=tuple(again),
            pruning=search.pruning,
        )
        config = hydra.compose_config(composer.config_name, lines, run_mode=RunMode.MULTIRUN, with_log_configuration=True)
        callbacks = Callbacks(config)
        callbacks.on_multirun_start(config=config, config_name=composer.config_name)
        context = HydraContext(config_loader=composer.loader, callbacks=callbacks)
        plugin = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=job, config=config)
        loop = _Loop(command, folder, jobs, search, plugin, own_process=launcher.own_process)
        code = loop.run(launcher.at_once if search.learns else MAX_CHECKED)
        callbacks.on_multirun_end(config=config, config_name=composer.config_name)
        if command.has_run_folder:
            told = planned.space if search.told_by is None else [search.told_by]
            keys = [*told, *(["seed"] if how.seeds is not None else [])]
            code = _conclude(command, folder, keys, search, loop, code)
    return code


def _read(command: Command, composer: Composer, overrides: list[Override]) -> tuple[DictConfig, _HowToSweep, Plan]:
    """What overrides ask for: all that the jobs share as Hydra composes it, the loop's own settings, and the plan."""
    master = composer.compose([o for o in overrides if not o.is_sweep_override()])
    parts = [key for key in ("sweep", "seed", "seeds") if key in master]
    how = checked(OmegaConf.masked_copy(master, parts), _HowToSweep)
    params = _params(command, composer, master, how, {o.key_or_group for o in overrides})
    return master, how, plan(composer, overrides, params)


def _check_same(folder: Path, command: Command, composer: Composer, how: _HowToSweep, planned: Plan) -> None:
    """Raise ConfigError if the sweep in `folder` was asked for with another search, or with a search for something else.

    Runs that are listed are compared with those in the folder (`_Jobs.check_folders`), so that more can be added.
    """

    def asked(how: _HowToSweep, planned: Plan) -> dict[str, Any]:
        search = {"sweep": how.sweep._target_.rpartition(".")[2]}
        if isinstance(how.sweep, LISTED):
            return search
        search |= {f"sweep.{key}": getattr(how.sweep, key) for key in ("objectives", "storage", "study")}
        fixed = {key: value for key, value in planned.fixed.items() if not changeable(key)}
        return search | {"seed": how.seed, "seeds": how.seeds} | fixed | planned.space

    before, now = asked(*_read(command, composer, _requested(folder, composer))[1:]), asked(how, planned)
    differing = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if differing:
        problem = f"{shown(folder)} holds another sweep: it was asked for with another {', '.join(differing)}"
        remedy = f"go on with the sweep that is there: resume={shown(folder)}, or choose another hydra.sweep.dir"
        raise ConfigError("hydra.sweep.dir", shown(folder), problem, remedy)


def _params(command: Command, composer: Composer, master: DictConfig, how: _HowToSweep, given: set[str]) -> dict[str, Any]:
    """What files say is swept. Raises ConfigError for settings of Hydra's that have no place here."""
    sweeper = master.hydra.sweeper
    if not sweeper._target_.endswith(".BasicSweeper"):
        choice = master.hydra.runtime.choices["hydra/sweeper"]
        remedy = "choose a search by sweep=..., such as sweep=optuna_tpe" if "sweep" in composer.fields else "leave it out"
        raise ConfigError("hydra/sweeper", choice, "the sweep loop is gpt2x's own", remedy)
    if command.has_run_folder and "hydra.sweep.subdir" in given:
        raise ConfigError("hydra.sweep.subdir", master.hydra.sweep.subdir, "a job's folder is its number", "leave it out")
    return {**(sweeper.get("params") or {}), **how.sweep.params}


def _warn_of_threads(launcher: Launcher, planned: Plan) -> None:
    """Threads of several runs that wait for the same cores are far slower than one after the other."""
    asked = planned.fixed.get("device.threads", "null")
    if launcher.threads is not None and asked.isdecimal() and int(asked) > launcher.threads:
        problem = f"{launcher.at_once} runs x {asked} threads share {default_threads()} cores and will wait for each other"
        print(f"{problem}; leave out device.threads, and each gets {launcher.threads}", file=sys.stderr, flush=True)


def _search(how: _HowToSweep, planned: Plan, folder: Path | None) -> Search:
    search = instantiate(how.sweep, planned.space, folder=folder, seed=how.seed)
    if how.seeds is None:
        return search
    return Repeated(search, "seed", tuple(str(how.seed + i) for i in range(how.seeds)))


def _write_request(folder: Path, command: Command, composer: Composer, overrides: list[Override]) -> None:
    path = folder / REQUEST
    asked = {
        "command": command.name,
        "config_name": composer.config_name,
        "config_dir": composer.config_dir,
        "overrides": [o.input_line for o in overrides if o.key_or_group != "hydra.sweep.dir"],
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "gpt2x": __version__,
    }
    write_atomic(path, yaml.safe_dump(asked, sort_keys=False, allow_unicode=True))


def _replace_in_request(folder: Path, composer: Composer, new: Override) -> None:
    """Have the sweep in `folder` be one that was asked for with `new`, for every time that it goes on."""
    kept = [o.input_line for o in _requested(folder, composer) if o.key_or_group != new.key_or_group]
    asked = yaml.safe_load((folder / REQUEST).read_text(encoding="utf-8")) | {"overrides": [*kept, new.input_line]}
    write_atomic(folder / REQUEST, yaml.safe_dump(asked, sort_keys=False, allow_unicode=True))


class Launcher:
    """What the loop has to know of Hydra's launcher.

    `here`: it runs jobs on this machine; `own_process`: each in a process of its own, whose parent is `parent` where it is
    this one; `at_once`: how many side by side; `threads`: each one's share of the cores; `settings`: overrides for it.
    """

    parent: int | None = None
    threads: int | None = None

    def __init__(self, config: DictConfig, given: set[str]):
        kind = config._target_.rpartition(".")[2]
        self.here = kind in ("BasicLauncher", "JoblibLauncher", "LocalLauncher")
        self.at_once = 1 if kind == "BasicLauncher" else _AT_ONCE
        self.own_process = kind != "BasicLauncher"
        self.shares_console = False
        self.settings: list[str] = []
        if kind == "JoblibLauncher":
            from joblib import effective_n_jobs

            self.at_once = effective_n_jobs(config.n_jobs)
            self.own_process = self.shares_console = self.at_once > 1  # a single job is made in this process
            self.parent = os.getpid() if self.own_process else None
            self.threads = max(1, default_threads() // self.at_once)
            if "hydra.launcher.batch_size" not in given:  # "auto" would give one process several jobs in a row
                self.settings = ["hydra.launcher.batch_size=1"]
        if kind == "SlurmLauncher" and "hydra.launcher.max_num_timeout" not in given:
            self.settings = ["hydra.launcher.max_num_timeout=100"]  # each time it goes on from its checkpoint


class _Loop:
    """Asks, launches and tells, until nothing is left or the sweep is stopped."""

    def __init__(self, command: Command, folder: Path, jobs: _Jobs, search: Search, launcher: Any, own_process: bool):
        self.command, self.folder, self.jobs, self.search, self.launcher = command, folder, jobs, search, launcher
        self.stop = folder / STOP
        self.own_process = own_process
        self.asked: dict[int, dict[str, str]] = {}
        self.errors: dict[int, str] = {}
        self.signal: int | None = None

    def run(self, at_once: int) -> int:
        """Returns the exit code."""
        self.stop.unlink(missing_ok=True)
        before = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        code = 0
        try:
            while code == 0 and not self.stop.exists() and (trials := self.search.ask(at_once)):
                self.asked |= {trial.number: trial.values for trial in trials}
                code = self._make(trials)
        except SystemExit as ended:  # a run in this process was interrupted, or the sweep itself was
            code = int(ended.code or 0)
        except UserError as error:
            code = report(self.command.name, error)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return code or int(bool(self.errors))

    def _make(self, trials: list[Trial]) -> int:
        """Make runs of trials; returns an exit code other than 0 if the sweep cannot go on."""
        has_folder = self.command.has_run_folder
        if has_folder:
            self.jobs.check([trial.values for trial in trials])
            self.jobs.check_folders(self.folder, trials)
        todo = [trial for trial in trials if not (has_folder and finished(self.folder / str(trial.number)))]
        done = f", {len(trials) - len(todo)} of them finished already" if len(todo) < len(trials) else ""
        if not self.search.learns:  # it asks again and again
            print(f"{self.command.name}: {len(trials)} run{'s' * (len(trials) > 1)}{done}", flush=True)
        code = self._launch(todo) if todo else 0
        for trial in trials:
            result = read_result(self.folder / str(trial.number)) if has_folder else {}
            ended = result.get("status", "interrupted") != "interrupted"
            if ended or trial.number in self.errors:
                self.search.tell(trial, result if ended else None)
        return code

    def _launch(self, trials: list[Trial]) -> int:
        subdirs = [str(t.number) if self.command.has_run_folder else "." for t in trials]
        lines = [[*self.jobs.plan.job(t.values), f"hydra.sweep.subdir={s}"] for t, s in zip(trials, subdirs, strict=True)]
        try:
            with our_errors():
                returned = self.launcher.launch(lines, initial_job_idx=trials[0].number)
        except Exception as error:
            if self.signal is None:
                if type(error).__name__ == "TerminatedWorkerError":
                    error = UserError("a process was killed, perhaps for want of memory, and the others ended with it")
                report(self.command.name, error)
                return 1
            return 128 + self.signal
        for trial, job in zip(trials, returned, strict=True):
            if job.status == JobStatus.FAILED:
                self.errors[trial.number] = str(job._return_value)
        return 128 + self.signal if self.signal is not None else 0

    def _receive(self, number: int, frame: FrameType | None) -> None:
        """The first signal lets runs in other processes end in order: they look at the file. The second one insists."""
        if not (self.own_process and self.command.has_run_folder) or self.signal is not None:
            raise SystemExit(128 + number)
        self.signal = number
        write_atomic(self.stop, f"signal {number}\n")
        name = signal.Signals(number).name
        print(f"\n{name}: finishing a step of each run and saving; once more stops at once.", file=sys.stderr, flush=True)


def _conclude(command: Command, folder: Path, keys: list[str], search: Search, loop: _Loop, code: int) -> int:
    """Print and write the table, and say what one can do next; returns the exit code."""
    loop.stop.unlink(missing_ok=True)
    rows = read_rows(folder, keys, loop.asked, loop.errors)
    write_csv(folder / "sweep.csv", rows, keys)
    name = shown(folder)
    print(f"\n{table(rows, keys, shutil.get_terminal_size((120, 24)).columns)}\n")
    for line in failures(rows):
        print(line)
    if (best := search.best()) is None:
        best = [row.folder for row in rows if row.status == "finished" and row.metric][:1]
    for run in best:
        print(f"{search.best_are:8} {shown(run)}")
    print(f"table    {shown(folder / 'sweep.csv')}")
    unfinished = [row for row in rows if row.status not in ("finished", "pruned", "running")]
    if unfinished or code:
        print(f"go on    {command.name} resume={shlex.quote(name)}")
    if best:
        print(f"compare  gpt2x-compare {shlex.quote(name)}")
    return code or int(bool(unfinished))
