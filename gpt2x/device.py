"""Where and in which precision a model runs: threads, autocast, compilation, determinism."""

from __future__ import annotations

import contextlib
import glob
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpt2x.config.option import ConfigError, option

if TYPE_CHECKING:  # torch is imported only once a run starts
    from torch import nn


@dataclass(kw_only=True)
class DeviceConfig:
    """Settings of the device group."""

    _target_: str = "gpt2x.device.Device"
    type: str = option("cpu", "kind of device", choices=("cpu", "cuda"))
    precision: str = option("fp32", "fp32, or bf16 autocast (weights stay fp32)", choices=("fp32", "bf16"))
    threads: int | None = option(
        None,
        "CPU threads; null: what gpt2x-train measures, else the physical cores",
        minimum=1,
    )
    compile: bool = option(False, "torch.compile the model (costs half a minute at the start)")
    deterministic: bool = option(True, "same config, same bits; refuses operations that cannot promise it")
    flush_denormals: bool = option(True, "treat denormal numbers as zero, which CPUs otherwise compute slowly")
    keep_memory: bool = option(
        True,
        "keep what is freed for the next step instead of giving it back to the system, which would have to clear it again: "
        "faster by a tenth and more, for some more memory (on Linux)",
    )
    kernels: bool | None = option(
        None,
        "train through code that is compiled for this processor, where there is a C compiler and the blocks are like GPT-2's "
        "(gpt2x/model/fused.py says which); false: through torch alone; null: what gpt2x-train measures to be faster and keeps "
        "(gpt2x/training/calibration.py)",
    )

    def check_available(self) -> None:
        """Raise ConfigError if this machine cannot do what is asked. Imports torch only if it must."""
        if self.kernels and (self.compile or self.type != "cpu"):
            problem = "torch.compile compiles the model itself" if self.compile else "compiled code is for processors"
            raise ConfigError("kernels", True, f"{problem}, so it would not be used", "leave it out, or device.kernels=false")
        if self.type == "cpu" and self.precision == "fp32":
            return
        import torch

        if self.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(
                "type",
                self.type,
                "no CUDA device can be used here (no GPU, no driver, or a CPU build of torch)",
                "use device=cpu",
            )
        if self.type == "cuda" and self.precision == "bf16" and not torch.cuda.is_bf16_supported():
            raise ConfigError("precision", self.precision, "this GPU has no bfloat16", "use device.precision=fp32")
        if self.type == "cpu" and self.precision == "bf16" and not _cpu_has_bf16():
            raise ConfigError(
                "precision",
                self.precision,
                "this processor has no bfloat16 instructions (AVX512_BF16, AMX or Arm BF16), so bf16 would be slower",
                "use device=cpu",
            )


def has_bf16(type: str) -> bool:
    """Whether this machine's device of a type, "cpu" or "cuda", has instructions for bfloat16."""
    import torch

    return torch.cuda.is_bf16_supported() if type == "cuda" else _cpu_has_bf16()


def _cpu_has_bf16() -> bool:
    import torch

    capabilities = torch.backends.cpu.get_cpu_capability()
    has = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return any(check() for check in has if check) or "SVE" in capabilities


class Device:
    """A configured device. Making one sets torch's process-wide switches, each one either way."""

    def __init__(
        self,
        *,
        type: str,
        precision: str,
        threads: int | None,
        compile: bool,
        deterministic: bool,
        flush_denormals: bool,
        keep_memory: bool,
        kernels: bool | None,
    ):
        import torch

        self.torch_device = torch.device(type)
        self.precision, self.compile, self.deterministic = precision, compile, deterministic
        self.kernels = kernels is not False and type == "cpu" and not compile
        self.threads = threads or default_threads()
        torch.set_num_threads(self.threads)
        torch.set_flush_denormal(flush_denormals)
        _keep_memory(keep_memory)
        torch.use_deterministic_algorithms(deterministic)
        # By default that also fills every new tensor with NaN, to show up bugs in kernels, at a tenth of the speed.
        torch.utils.deterministic.fill_uninitialized_memory = False
        if type == "cuda" and deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS demands it for repeatable products

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context to compute a forward pass in."""
        import torch

        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.torch_device.type, dtype=torch.bfloat16)

    def prepare(self, model: nn.Module) -> Any:
        """Move `model` here, in place, and return what to call for a training step: it, or its compiled form."""
        import torch

        model.to(self.torch_device)
        return torch.compile(model) if self.compile else model

    def peak_memory(self) -> int:
        """The most memory in bytes that this process (on cuda: torch on the GPU) has held so far."""
        import torch

        if self.torch_device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        return peak_memory()

    def __str__(self) -> str:
        import torch

        if self.torch_device.type == "cuda":
            return f"{torch.cuda.get_device_name()}, {self.precision}"
        return f"cpu, {self.threads} thread{'s' * (self.threads > 1)}, {self.precision}"


def _keep_memory(keep: bool) -> None:
    """Tell the C library what to do with large blocks of memory that are freed.

    By default glibc maps each anew and unmaps it: a training step of GPT-2 then waits for some 250,000 pages to be cleared.
    Otherwise they come from the heap and stay there. Nothing happens where the C library is another one.
    """
    import ctypes

    with contextlib.suppress(AttributeError, OSError, TypeError):  # TypeError: Windows has no library of the process itself
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0 if keep else 65536)
        mallopt(_M_TRIM_THRESHOLD, -1 if keep else 128 * 1024)


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h


def peak_memory() -> int:
    """The most memory in bytes that this process has held so far."""
    try:  # Linux's getrusage counts what the parent held when it started this process; this line does not
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return psutil.Process().memory_info().peak_wset
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def default_threads() -> int:
    """OMP_NUM_THREADS where it is set (parallel jobs get their share of the cores so), else the physical cores
    among those this process may run on: a second hyperthread of a core hardly speeds up matrix products."""
    import psutil

    return given_threads() or min(psutil.cpu_count(logical=False) or usable_cpus(), usable_cpus())


def given_threads() -> int | None:
    """OMP_NUM_THREADS, where it is set."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) > 0 else None


def usable_cpus() -> int:
    """The logical CPUs this process may use at once."""
    usable = len(cpus())
    return max(1, min(usable, _cgroup_cores(usable)))


def cpus() -> list[int]:
    """The numbers of the logical CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def waited() -> float:
    """The seconds, of all threads of this process, in which one could have run but others had the cores; 0 but on Linux."""
    nanoseconds = 0
    for path in glob.glob("/proc/self/task/*/schedstat"):
        with contextlib.suppress(OSError, ValueError, IndexError), open(path, encoding="ascii") as file:  # a thread may end
            nanoseconds += int(file.read().split()[1])
    return nanoseconds / 1e9


def _cgroup_cores(default: int) -> int:
    """The whole cores that a container's CPU quota allows (cgroup v2), or `default` where there is none."""
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
            quota, period = file.read().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return default
