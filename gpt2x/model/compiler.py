"""C code of this package, compiled for this processor when it is first needed and kept for later.

It is compiled in a few seconds with the C compiler of the machine (cc, gcc, clang or what $CC says).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

_FOLDER = Path(__file__).parent
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-fPIC", "-w")


class KernelError(Exception):
    """The kernel cannot be compiled or used; the message says why."""


@functools.cache
def compiled(name: str, cache: str | Path) -> ctypes.CDLL:
    """NAME.c, beside this file, as a library that is kept in the folder `cache`. Raises KernelError."""
    compiler = os.environ.get("CC") or next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        raise KernelError("there is no C compiler to make it with (cc, gcc, clang or what $CC says)")
    # One OpenMP for both: two would keep a set of threads each, and those would wait for each other.
    torch_folder = Path(torch.__file__).parent
    openmp = [*torch_folder.glob("lib/libgomp*"), *torch_folder.parent.glob("torch.libs/libgomp*")][:1]
    key = hashlib.sha256("\n".join([source(name), compiler, *_FLAGS, *map(str, openmp), processor()]).encode())
    library = Path(cache) / "kernels" / f"{name}-{key.hexdigest()[:16]}.so"
    with contextlib.suppress(OSError):  # there is none, or it was damaged
        return ctypes.CDLL(str(library))
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            made, command = Path(folder, name), shlex.split(compiler)
            _run([*command, *_FLAGS, "-c", f"{_FOLDER / name}.c", "-o", f"{made}.o"])
            link = list(map(str, openmp)) or ["-fopenmp"]
            _run([*command, "-shared", f"{made}.o", *link, "-lm", "-o", f"{made}.so"])
            os.replace(f"{made}.so", library)  # whole or not at all, also when two start together
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise KernelError(f"it cannot be compiled in {library.parent} with {compiler} ({error.strerror or error})") from None
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines() or ["it did not say why"]
        raise KernelError(f"{compiler} cannot compile it: {said[-1]}") from None


def source(name: str) -> str:
    """All that NAME.c is made of."""
    return (_FOLDER / f"{name}.c").read_text() + (_FOLDER / "vectors.h").read_text()


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def processor() -> str:
    """What -march=native depends on: a cache that several machines share must not hand out another one's code."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line for line in file if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.machine() + platform.processor()
