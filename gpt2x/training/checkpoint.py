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

        return load_file(self.folder / f"{name}.safetensors")

    def has(self, name: str) -> bool:
        return f"{name}.safetensors" in self.state["files"]


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
                os.chmod(path, 0o644)  # safetensors makes files that only their owner can read
                _flush(path)
                files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
            state = {"format": FORMAT, **state, "files": files}
            state["sha256"] = _digest(state)
            (temporary / "state.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
            _flush(temporary / "state.json")
            fsync_folder(temporary)
            if final.exists():  # the same step, saved before its evaluation, or damaged
                self._remove(final)
            os.replace(temporary, final)
            fsync_folder(self.folder)
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

    def load(self, step: int) -> Checkpoint:
        """The checkpoint of a step. Raises CheckpointError if it is missing or any of its hashes is wrong."""
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
                path = folder / name
                if path.stat().st_size != expected["bytes"] or sha256_file(path) != expected["sha256"]:
                    raise CheckpointError(f"{path} is torn or was changed (its sha256 is another)")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{folder} cannot be read: {error!r}") from error
        return Checkpoint(folder, state)

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, or None if there never was one.

        A damaged one is reported and the one before it used. Raises CheckpointError if all are damaged.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self.load(step)
            except CheckpointError as error:
                log.warning("%s; going back to the checkpoint before it", error)
        if steps:
            raise CheckpointError(f"every checkpoint in {self.folder} is damaged: {', '.join(map(str, steps))}")
        return None

    def select(self, which: str) -> Checkpoint:
        """ "best", "last", or the number of a step. Best falls back to last where none was kept. Raises CheckpointError."""
        if which not in ("best", "last"):
            if not which.isdecimal():
                raise CheckpointError(f"which={which}: expected best, last, or the number of a step")
            return self.load(int(which))
        newest = self.newest()
        if newest is None:
            raise CheckpointError(f"there is no checkpoint in {self.folder}: the run has not saved one yet")
        best = newest.state["best_step"]
        if which == "best" and best is not None and best != newest.step and best in self.steps():
            return self.load(best)
        return newest

    def recover(self) -> Checkpoint | None:
        """After a crash: remove what was left half-written, and return `newest()`."""
        for path in self.folder.glob(".writing-*"):
            shutil.rmtree(path, ignore_errors=True)
        return self.newest()

    def _prune(self, step: int, best_step: int | None) -> None:
        kept = set([s for s in self.steps() if s <= step][-self.keep_last :])
        if self.keep_best and best_step is not None:
            kept.add(best_step)
        for old in self.steps():
            if old not in kept and not (self.keep_every and old % self.keep_every == 0):
                self._remove(self.folder / f"step-{old:08d}")

    def _remove(self, checkpoint: Path) -> None:
        """Rename, then delete: a folder that is half deleted must not look like a checkpoint."""
        doomed = self.folder / f".writing-old-{checkpoint.name}"
        os.replace(checkpoint, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _digest(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _flush(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
