"""Checkpoints: folders of safetensors and JSON that are either whole or not there.

    checkpoints/step-00000100/model.safetensors      the weights
                              optimizer.safetensors  the optimizer's state, by parameter name
                              ema.safetensors        the averaged weights, if the run keeps them
                              state.json             step, counters, identities, and the sha256 of all of it

A checkpoint is written under a temporary name, flushed to the disk and renamed. On reading, every file's hash
is compared with state.json, and state.json's with its own. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gpt2x.errors import UserError
from gpt2x.files import fsync_folder, sha256_file

log = logging.getLogger(__name__)
FORMAT = "gpt2x.checkpoint/1"
_NAME = re.compile(r"step-(\d{8,})")


class CheckpointError(UserError):
    """A checkpoint that is missing, torn, or not what its hashes say."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose hashes have been checked."""

    folder: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return self.state["step"]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one of its files, such as "model"."""
        from safetensors.torch import load_file

        return load_file(self._file(name))

    def mapped(self, name: str) -> Mapping[str, Tensor]:
        """The same, each mapped into memory when it is asked for and not kept: to be copied one after the other, at no time
        all of them in memory twice."""
        return _Mapped(self._file(name))

    def require(self, identity: dict[str, str]) -> None:
        """Raise CheckpointError if this belongs to another tokenizer, corpus, ... than `identity` says."""
        for name, mine in identity.items():
            saved = self.state["identity"].get(name)
            if saved != mine:
                raise CheckpointError(
                    f"{self.folder} belongs to another {name}: it has {saved}, this run has {mine}\n"
                    f"  A run can only go on with what it started with; start a new one instead."
                )

    def has(self, name: str) -> bool:
        return self._file(name).name in self.state["files"]

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


class _Mapped(Mapping):
    """The tensors of a safetensors file, which is opened anew for each: what it maps stays in memory until it is closed."""

    def __init__(self, path: Path):
        from safetensors import safe_open

        self.path = path
        with safe_open(path, "pt") as file:
            self.names = tuple(file.keys())

    def __getitem__(self, name: str) -> Tensor:
        from safetensors import safe_open

        if name not in self.names:
            raise KeyError(name)
        with safe_open(self.path, "pt") as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


class Checkpoints:
    """The checkpoints of one run, in `folder`.

    Kept are the newest `keep_last`, the best one if `keep_best`, and those at multiples of `keep_every`.
    """

    def __init__(self, folder: Path, *, keep_last: int = 2, keep_best: bool = True, keep_every: int | None = None):
        self.folder = Path(folder)
        self.keep_last, self.keep_best, self.keep_every = keep_last, keep_best, keep_every

    def save(self, state: dict[str, Any], tensors: dict[str, dict[str, Tensor]]) -> Path:
        """Write `tensors` (file name -> name -> tensor) and `state` (JSON with "step" and "best_step"); returns its folder."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        final = self.folder / f"step-{state['step']:08d}"
        temporary = self.folder / f".writing-{final.name}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            files = {}
            for name, named in tensors.items():
                path = temporary / f"{name}.safetensors"
                save_file({k: v.detach().cpu().contiguous() for k, v in named.items()}, path, metadata={"format": "pt"})
                os.chmod(path, temporary.stat().st_mode & 0o666)  # safetensors lets only the owner read
                _flush(path)
                files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
            state = {"format": FORMAT, **state, "files": files}
            state["sha256"] = _digest(state)
            (temporary / "state.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
            _flush(temporary / "state.json")
            fsync_folder(temporary)
            aside = self.folder / f".replaced-{final.name}"
            if final.exists():  # the same step, saved before its evaluation, or damaged
                shutil.rmtree(aside, ignore_errors=True)
                os.replace(final, aside)  # not deleted until the new one is there: see recover()
            os.replace(temporary, final)
            fsync_folder(self.folder)
            shutil.rmtree(aside, ignore_errors=True)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise CheckpointError(
                f"cannot write the checkpoint of step {state['step']} to {self.folder}: {error}\n"
                f"  The earlier checkpoints are untouched. Make room and go on with resume=."
            ) from error
        self._prune(state["step"], state["best_step"])
        return final

    def steps(self) -> list[int]:
        """The steps there are checkpoints of, in order; not yet verified."""
        if not self.folder.is_dir():
            return []
        return sorted(int(match[1]) for path in self.folder.iterdir() if (match := _NAME.fullmatch(path.name)))

    def load(self, step: int, only: tuple[str, ...] | None = None) -> Checkpoint:
        """The checkpoint of a step. Raises CheckpointError if it is missing or any of its hashes is wrong.

        With `only`, names such as "model", the other files are neither read nor checked.
        """
        folder = self.folder / f"step-{step:08d}"
        if not folder.is_dir():
            there = ", ".join(map(str, self.steps())) or "none"
            raise CheckpointError(f"there is no checkpoint of step {step} in {self.folder}; there are: {there}")
        try:
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            claimed = state.pop("sha256")
            if claimed != _digest(state):
                raise CheckpointError(f"{folder / 'state.json'} was changed after it was written (its sha256 is another)")
            if state["format"] != FORMAT:
                raise CheckpointError(f"{folder} has the format {state['format']}; this version reads {FORMAT}")
            for name, expected in state["files"].items():
                if only is not None and name.removesuffix(".safetensors") not in only:
                    continue
                path = folder / name
                if path.stat().st_size != expected["bytes"] or sha256_file(path) != expected["sha256"]:
                    raise CheckpointError(f"{path} is torn or was changed (its sha256 is another)")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{folder} cannot be read: {error!r}") from error
        return Checkpoint(folder, state)

    def newest(self, only: tuple[str, ...] | None = None) -> Checkpoint | None:
        """The newest checkpoint that is whole, or None if there never was one; `only` as for `load`.

        A damaged one is reported and the one before it used. Raises CheckpointError if all are damaged.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self.load(step, only)
            except CheckpointError as error:
                log.warning("%s; going back to the checkpoint before it", error)
        if steps:
            raise CheckpointError(f"every checkpoint in {self.folder} is damaged: {', '.join(map(str, steps))}")
        return None

    def select(self, which: str) -> Checkpoint:
        """The checkpoint called "best" or "last", or that of a step, for its weights alone. Raises CheckpointError.

        Best falls back to last, and says so, where it is damaged, and quietly where none was kept.
        """
        weights = ("model", "ema")
        if which not in ("best", "last"):
            if not which.isdecimal():
                raise CheckpointError(f"which={which}: expected best, last, or the number of a step")
            return self.load(int(which), weights)
        newest = self.newest(weights)
        if newest is None:
            raise CheckpointError(f"there is no checkpoint in {self.folder}: the run has not saved one yet")
        best = newest.state["best_step"]
        if which == "best" and best is not None and best != newest.step and best in self.steps():
            try:
                return self.load(best, weights)
            except CheckpointError as error:
                log.warning("%s; using the last one, of step %d", error, newest.step)
        return newest

    def recover(self) -> Checkpoint | None:
        """After a crash: put back what was about to be replaced, remove what was half-written, return `newest()`."""
        for path in self.folder.glob(".replaced-*"):
            original = self.folder / path.name.removeprefix(".replaced-")
            if not original.exists():
                os.replace(path, original)
        for path in [*self.folder.glob(".replaced-*"), *self.folder.glob(".writing-*"), *self.folder.glob(".old-*")]:
            shutil.rmtree(path, ignore_errors=True)
        return self.newest()

    def _prune(self, step: int, best_step: int | None) -> None:
        kept = set([s for s in self.steps() if s <= step][-self.keep_last :])
        if self.keep_best and best_step is not None:
            kept.add(best_step)
        for old in self.steps():
            if old not in kept and not (self.keep_every and old % self.keep_every == 0):
                # Renamed, then deleted: a folder that is half deleted must not look like a checkpoint.
                doomed = self.folder / f".old-{old:08d}"
                try:
                    shutil.rmtree(doomed, ignore_errors=True)
                    os.replace(self.folder / f"step-{old:08d}", doomed)
                except OSError as error:  # somebody reads it, say; the next checkpoint tries again
                    log.warning("the checkpoint of step %d could not be removed: %s", old, error)
                shutil.rmtree(doomed, ignore_errors=True)


def _digest(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _flush(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
