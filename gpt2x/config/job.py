"""What Hydra calls for each run, in whatever process its launcher has chosen.

A job of a sweep decides by the folder it finds whether there is anything to do: what is finished stays as it is, what was
interrupted or killed goes on from its checkpoint, what failed is run anew.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from gpt2x.config.check import check_available
from gpt2x.config.compose import Composer, checked, from_yaml
from gpt2x.config.option import ConfigError
from gpt2x.config.resume import changeable
from gpt2x.errors import FolderInUse, UserError
from gpt2x.files import write_atomic
from gpt2x.sweep.config import GridConfig
from gpt2x.tracking.result import read_result

STOP = ".stop"  # in a sweep's folder: no further job starts, and after a signal those that run end in order
WATCH_SECONDS = 0.2
LOCK_SECONDS = 10.0  # what a process that is ending is given to leave its run's folder


@dataclass(frozen=True)
class Job:
    """A run by itself. `run` is "module:function" (see Command)."""

    command: str
    schema: type
    run: str
    has_run_folder: bool

    def __call__(self, composed: DictConfig) -> None:
        hydra = HydraConfig.get()
        try:
            overrides = list(hydra.overrides.task)
            self.start(checked(composed, self.schema), Path(hydra.runtime.output_dir), overrides=overrides, sweep=None)
        except BrokenPipeError:  # Hydra would keep it to itself
            raise SystemExit(reader_has_left()) from None
        except Exception as error:
            raise SystemExit(report(self.command, error)) from None

    def start(self, config: Any, folder: Path, **about: Any) -> Any:
        """Import what does the work, and call it."""
        check_available(config)
        module, _, name = self.run.partition(":")
        function = getattr(importlib.import_module(module), name)
        return function(config, folder, **about) if self.has_run_folder else function(config)


@dataclass(frozen=True)
class SweepJob(Job):
    """A run of a sweep.

    `own_process`: it runs in a process of its own, which no signal that ends it may break; `parent` is that process's
    parent where it must not outlive it. `threads` is its share of the cores, for a run that asks for no number.
    `again` are the keys that were given when the sweep was gone on with. `pruning` makes, of a job's number, what may
    give its run up.
    """

    config_name: str
    config_dir: str | None
    on_error: str
    own_process: bool
    parent: int | None = None
    threads: int | None = None
    prefixed: bool = False
    again: tuple[str, ...] = ()
    pruning: Callable[[int], Any] | None = None

    def __call__(self, composed: DictConfig) -> None:
        hydra = HydraConfig.get()
        sweep, folder = Path(hydra.sweep.dir).absolute(), Path(hydra.runtime.output_dir)
        number = int(folder.name) if self.has_run_folder else hydra.job.num
        stop = sweep / STOP
        if self.parent is not None and os.getppid() != self.parent:
            os._exit(1)
        if stop.exists():
            return
        overrides = list(hydra.overrides.task)
        try:
            with _in_order(stop, self.parent) if self.own_process else contextlib.nullcontext():
                config = without_sweep(checked(composed, self.schema))
                if not self.has_run_folder:
                    self._say(number, overrides)
                    self.start(config, folder)
                else:
                    self._run(config, folder, sweep, number, overrides)
        except Requeued:
            raise
        except SystemExit:
            if not self.own_process:
                raise
            if self.parent is not None and os.getppid() != self.parent:
                os._exit(1)  # nobody waits for what it would say
        except BrokenPipeError:
            raise SystemExit(reader_has_left()) from None
        except FolderInUse as error:
            print(f"{self.command}: run {number} is left to the process that has it ({error})", flush=True)
        except Exception as error:
            report(f"[{number}] {self.command}" if self.prefixed else self.command, error)
            if self.on_error == "stop":
                write_atomic(stop, "a run failed\n")
            raise JobFailed(str(error) or type(error).__name__) from None  # Hydra goes on with the other jobs

    def _run(self, config: Any, folder: Path, sweep: Path, number: int, overrides: list[str]) -> None:
        todo = prepare(folder)
        if todo == "nothing":
            print(f"{self.command}: run {number} is finished already", flush=True)
            return
        self._say(number, overrides, " (going on)" if todo == "resume" else "")
        if todo == "resume":
            config, overrides = self._resumed(folder, overrides)
        if self.threads is not None:
            config.device.threads = config.device.threads or self.threads
        home = (Path(config.paths.outputs) / "sweeps").absolute()
        about: dict[str, Any] = {"sweep": sweep.relative_to(home).as_posix() if sweep.is_relative_to(home) else sweep.name}
        if self.prefixed:
            about["prefix"] = f"[{number}] "
        if self.pruning is not None:
            about["prune"] = self.pruning(number)
        self.start(config, folder, overrides=overrides, **about)

    def _resumed(self, folder: Path, overrides: list[str]) -> tuple[Any, list[str]]:
        """The run's own configuration, with those of `overrides` that may change on the way; and these."""
        config = from_yaml(folder / "config.yaml", self.schema)
        composer = Composer(self.config_name, self.schema, self.config_dir)
        given = [o for o in composer.read(overrides, sweeping=True) if changeable(o.key_or_group)]
        # Where the run began is noted in its own configuration more exactly than it was given.
        given = [o for o in given if o.key_or_group in self.again or not o.key_or_group.startswith("init")]
        if given:
            composer.resume(config, given)
            config = composer.config(given)
        config.resume = str(folder)
        return config, [o.input_line for o in given]

    def _say(self, number: int, overrides: list[str], how: str = "") -> None:
        print(f"{self.command}: run {number}{how}: {' '.join(overrides)}", flush=True)


class Requeued(SystemExit):
    """The job will be started again, by whom it was started."""


class JobFailed(Exception):
    """A job of a sweep failed and has said why."""


def without_sweep(config: Any) -> Any:
    """`config`, changed to say nothing of the sweep that it is a job of."""
    if hasattr(config, "sweep"):
        config.sweep, config.seeds = GridConfig(), None
    return config


def finished(folder: Path) -> bool:
    """Whether the run in `folder` came to its end, be it that it was given up."""
    result = read_result(folder)
    return result.get("status") == "finished" or bool(result.get("pruned"))


def prepare(folder: Path) -> str:
    """What is to be done in a job's folder: "nothing", "resume" or "run"; for the last one what a failed attempt left is
    removed, but for run.log, which tells why it failed.

    Raises FolderInUse if another process has the folder.
    """
    from filelock import FileLock, Timeout

    if not (folder / "config.yaml").exists():
        return "run"
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        raise FolderInUse(f"{folder} is in use") from None
    try:
        if finished(folder):
            return "nothing"
        saved = [*(folder / "checkpoints").glob("step-*"), *(folder / "checkpoints").glob(".replaced-step-*")]
        if saved and read_result(folder).get("status") != "failed":
            return "resume"
        (folder / "config.yaml").unlink()  # first: without it the rest is no run, wherever this is cut short
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in (".lock", "run.log"):
                path.unlink()
        return "run"
    finally:
        lock.release()


@contextlib.contextmanager
def _in_order(stop: Path, parent: int | None) -> Iterator[None]:
    """In a process of its own: end the block by SIGTERM, as by a request to stop and save, when the sweep is stopped or
    its process is gone; and where submitit asks for it, then have the job queued again."""
    done = threading.Event()
    first = os.getppid()

    def watch() -> None:
        while not done.wait(WATCH_SECONDS):
            gone = os.getppid() != (parent or first)
            if gone or (stop.exists() and stop.read_text(encoding="utf-8").startswith("signal")):
                if not done.is_set():
                    os.kill(os.getpid(), signal.SIGTERM)
                return

    def terminated(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    # Ctrl-C in a terminal reaches all its processes: here it is the sweep's own process that answers it.
    handlers = {signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: terminated}
    requeue, asked = _requeue(), []
    if requeue is not None:

        def out_of_time(number: int, frame: object) -> None:
            asked.append(number)
            os.kill(os.getpid(), signal.SIGTERM)

        handlers[requeue[0]] = out_of_time
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    except SystemExit:
        if asked:
            try:
                requeue[1](asked[0], None)
            except SystemExit as ended:  # with the code that submitit waits for
                raise Requeued(ended.code) from None
        raise
    finally:
        done.set()
        thread.join()
        for number, handler in before.items():
            signal.signal(number, handler)


def _requeue() -> tuple[int, Any] | None:
    """The signal by which submitit says that the time is nearly over, and its handler, which queues the job again."""
    if "SUBMITIT_EXECUTOR" not in os.environ:
        return None
    import submitit

    number = submitit.JobEnvironment._usr_sig()
    handler = signal.getsignal(number)
    return (number, handler) if callable(handler) else None


def new_folder(path: str) -> Path:
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


def report(name: str, error: Exception) -> int:
    """Print what went wrong; returns the exit code."""
    sys.stdout.flush()
    if not isinstance(error, UserError):
        traceback.print_exception(error)
        return 1
    for problem in getattr(error, "errors", [error]):
        print(f"{name}: {problem}", file=sys.stderr)
    return 2 if isinstance(error, ConfigError) else 1


def reader_has_left() -> int:
    """Whoever reads our output, such as head, has seen enough: the exit code, after which nothing more is printed."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
