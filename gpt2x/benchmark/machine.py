"""What limits a machine: its processor, how fast its memory is read and how fast it multiplies matrices."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any

import psutil
import torch


def facts() -> dict[str, Any]:
    """What a report tells about the machine it was made on."""
    return {
        "cpu": cpu_model(),
        "physical_cores": psutil.cpu_count(logical=False),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "largest_cache_bytes": largest_cache(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "platform": platform.platform(),
    }


def cpu_model() -> str:
    """The processor's name as it gives it itself."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def largest_cache() -> int | None:
    """Bytes of the largest cache that Linux tells of; None elsewhere."""
    units = {"K": 2**10, "M": 2**20}
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(size[:-1]) * units[size[-1]] for size in sizes if size[-1:] in units), default=None)


def memory_bandwidth(passes: int = 5) -> float:
    """Bytes a second that torch's threads together read from memory.

    The fastest of some passes over an array of floats at least four times as large as the largest cache (and 1 GiB, where
    a quarter of the free memory allows it): its sum, and its product with itself, which on some machines is faster. Both
    read every number once and write nothing.
    """
    size = min(max(2**30, 4 * (largest_cache() or 0)), psutil.virtual_memory().available // 4)
    numbers = torch.ones(size // 4)
    best = float("inf")
    for read in (lambda: numbers.sum(), lambda: torch.dot(numbers, numbers)):
        for _ in range(passes):
            started = time.perf_counter()
            read()
            best = min(best, time.perf_counter() - started)
    return numbers.nbytes / best


def gemm_speed(rows: int, width: int, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """Floating-point operations a second of torch's matrix products, with all its threads, in the best case that a block
    of a transformer has: the fastest product of `rows` states with one of the block's matrices, or of one of its gradients.

    Each product is repeated for `seconds`, and the fastest time counts. On a processor with several libraries for it
    (torch's default and oneDNN) that is the fastest of them.
    """
    fastest = 0.0
    for inputs, outputs in ((width, 3 * width), (width, 4 * width), (4 * width, width)):
        x, w, y = (torch.rand(shape).to(dtype) for shape in ((rows, inputs), (outputs, inputs), (rows, outputs)))
        products = [lambda x=x, w=w: x @ w.T, lambda y=y, w=w: y @ w, lambda x=x, y=y: y.T @ x]
        if torch.backends.mkldnn.is_available():
            products.append(lambda x=x, w=w: torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], ""))
        for product in products:
            product()
            began = started = time.perf_counter()
            while started - began < seconds:
                product()
                ended = time.perf_counter()
                fastest = max(fastest, 2 * rows * inputs * outputs / (ended - started))
                started = ended
    return fastest
