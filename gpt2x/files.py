"""Writing files that are either whole or not there at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from gpt2x.errors import UserError


def write_atomic(path: str | os.PathLike, data: str | bytes) -> None:
    """Replace `path` by `data` so that a reader, or a crash at any moment, sees the old file or the new one."""
    with replacing(path) as temporary:
        temporary.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """The same for a file that the block writes itself: into the path it is given, which then takes the place of `path`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


@contextlib.contextmanager
def replacing_folder(path: str | os.PathLike) -> Iterator[Path]:
    """The same for a folder that the block fills: the whole of it takes the place of `path`, of whatever was there."""
    path = Path(os.path.realpath(path))  # where a link leads
    path.parent.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex[:8]
    temporary, aside = path.with_name(f".{path.name}.{mark}"), path.with_name(f".{path.name}.{mark}.old")
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.iterdir():
            with open(file, "rb+") as opened:
                os.fsync(opened.fileno())
        fsync_folder(temporary)
        if path.exists():
            os.replace(path, aside)
        try:
            os.replace(temporary, path)
        except BaseException:
            if aside.exists():
                os.replace(aside, path)
            raise
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync_folder(path.parent)
    shutil.rmtree(aside, ignore_errors=True)


def check_replaceable(folder: str | os.PathLike, files: Collection[str]) -> None:
    """Raise UserError where `replacing_folder` would take away anything but files of these names, or where the process is."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, and a folder is wanted")
    if Path.cwd().is_relative_to(folder.resolve()):
        raise UserError(f"{folder} is the folder that you are in, and would be replaced: name a folder in it")
    held = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if foreign := sorted(held - set(files)):
        raise UserError(f"{folder} holds {foreign[0]}, which is not of an export: name another folder, or empty it")


def fsync_folder(path: str | os.PathLike) -> None:
    """Make a rename inside `path` survive a power cut; Windows has no such call and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: str | os.PathLike) -> str:
    """Hex sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shown(path: str | os.PathLike) -> str:
    """A path as one would type it here: from the current folder if that is shorter."""
    try:
        return min(str(path), os.path.relpath(path), key=len)
    except ValueError:  # Windows: it lies on another drive
        return str(path)


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no file, or no whole object in it."""
    try:
        value = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def is_locked(path: str | os.PathLike) -> bool:
    """Whether a process holds the lock file `path`; False where there is none. It is held for an instant to find out."""
    from filelock import FileLock, Timeout

    if not os.path.exists(path):
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:  # a folder that may only be read
        return False
    lock.release()
    return False
