"""The folder of a run: what was asked for, what was said, and how it ended, whatever happens."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import subprocess
import sys
import time
import traceback
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

from gpt2x import __version__
from gpt2x.config.compose import to_yaml
from gpt2x.config.schema import BESIDE, TrainConfig, is_any_of
from gpt2x.errors import FolderInUse, UserError
from gpt2x.files import write_atomic
from gpt2x.training.trainer import TrainState

log = logging.getLogger("gpt2x")


class RunFolder:
    """Opens `path` for one run at a time and closes it with a result.json.

    Inside the `with` block everything logged under "gpt2x" goes to the console and to run.log. A new run's
    configuration is written at once, and again by `begin`, when what it leaves open is settled; that of a resumed one,
    and the removal of its earlier result, wait for `begin`, so that a resume which fails before it can start leaves
    the folder as it was. Set `state` as soon as there is one: the result tells how far it came. `prefix` begins each
    line on the console.
    Raises UserError if another process has the folder open, or if a new run would overwrite an older one.
    """

    def __init__(self, path: Path, config: TrainConfig, overrides: list[str], prefix: str = ""):
        self.path, self.config, self.prefix = Path(path), config, prefix
        self.resumed = config.resume is not None
        self.overrides = (_lines(self.path / "overrides.txt") if self.resumed else []) + overrides
        self.state: TrainState | None = None
        self.result: dict[str, Any] = {}
        self._begun = False

    def __enter__(self) -> RunFolder:
        from filelock import FileLock, Timeout

        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.path / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise FolderInUse(f"{self.path} is in use by another process; wait for it, or stop it") from None
        if not self.resumed and (self.path / "config.yaml").exists():
            self._lock.release()
            raise UserError(f"{self.path} already holds a run; go on with it by resume={self.path}, or use another folder")
        self._handlers = _log_handlers(self.path / "run.log", self.prefix)
        self._level, self._propagate = log.level, log.propagate
        log.setLevel(logging.INFO)
        log.propagate = False
        for handler in self._handlers:
            log.addHandler(handler)
        self.about = {
            "overrides": self.overrides,
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "versions": versions(),
            "git_commit": git_commit(),  # now: by the end of a long run there may be another
            "platform": platform.platform(),
        }
        if not self.resumed:
            self.begin()
        return self

    def begin(self) -> None:
        """From here on the folder tells of this run, or this part of it."""
        self._begun = True
        self.about["config_hash"] = config_hash(self.config)
        write_atomic(self.path / "config.yaml", to_yaml(self.config))
        write_atomic(self.path / "overrides.txt", "".join(f"{override}\n" for override in self.overrides))
        (self.path / "result.json").unlink(missing_ok=True)  # it told of an earlier end

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.end(error)
        finally:
            for handler in self._handlers:
                log.removeHandler(handler)
                handler.close()
            log.setLevel(self._level)
            log.propagate = self._propagate
            self._lock.release()

    def end(self, error: BaseException | None) -> None:
        """Write result.json: the run ended by this exception, or by itself. Later calls change nothing."""
        if "status" in self.result:
            return
        self.result["status"] = "finished"
        if isinstance(error, (SystemExit, KeyboardInterrupt)):
            self.result["status"] = "interrupted"
        elif error is not None:
            self.result |= {"status": "failed", "error": str(error) or type(error).__name__}
            text = "".join(traceback.format_exception(error))
            # To run.log alone: the command prints the error itself.
            self._handlers[1].handle(log.makeRecord(log.name, logging.ERROR, __file__, 0, text, (), None))
        self.result |= self.summary() | self.about
        if self._begun:
            write_atomic(self.path / "result.json", json.dumps(self.result, indent=2) + "\n")

    def summary(self) -> dict[str, Any]:
        """How far the run came."""
        state = self.state
        if state is None:
            return {"metric": None}
        return {
            "metric": {"name": "val/loss", "value": state.best, "step": state.best_step} if state.best is not None else None,
            "last": state.metrics,
            "steps": state.step,
            "tokens": state.tokens,
            "seconds": state.seconds,
            "flops": state.flops,
        } | ({"pruned": True} if state.pruned else {})


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    named = {name: metadata.version(name) for name in ("torch", "numpy", "tiktoken", "hydra-core", "wandb")}
    return {"gpt2x": __version__, "python": platform.python_version()} | named


def config_hash(config: TrainConfig) -> str:
    """Hex sha256 of the settings that decide what a run computes: not its name, where files lie, or who is told."""
    decisive = {key: value for key, value in asdict(config).items() if not is_any_of(key, BESIDE)}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def git_commit() -> str | None:
    """The commit of the checkout that gpt2x runs from, "-dirty" appended if files differ from it; None outside one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # installed; a repository further up is somebody else's
        return None
    try:
        commit = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(commit, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


class _Prefixed(logging.Formatter):
    """Messages with `prefix` before each of their lines."""

    def __init__(self, prefix: str):
        super().__init__("%(message)s")
        self.prefix = prefix

    def format(self, record: logging.LogRecord) -> str:
        return self.prefix + super().format(record).replace("\n", "\n" + self.prefix)


def _log_handlers(path: Path, prefix: str) -> list[logging.Handler]:
    console = logging.StreamHandler(sys.stdout)
    console.setFormatter(_Prefixed(prefix))
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    return [console, file]
