"""A trained model made ready to generate: its linear layers replaced by ones prepared once for this processor.

A token needs every weight once, so generating is as fast as memory delivers them, and fewer bytes a weight are more
tokens a second. torch's own product of one row reads fp32 at 40 to 100 % of that speed, depending on the processor, and
int8 at half of it; the kernel in linear.c reads them all at 80 to 100 %. It is compiled once, in under a second, with
the C compiler of the machine (cc, gcc, clang or what $CC says). Where there is none fp32 stays with torch.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2x.config.option import ConfigError
from gpt2x.model.gpt import GPT

log = logging.getLogger(__name__)

WEIGHTS = ("fp32", "bf16", "int8")  # in the order of the kinds in linear.c


def prepare(model: GPT, *, weights: str = "fp32", precision: str = "fp32", cache: str | Path) -> GPT:
    """Replace every linear layer of `model`, in place, head included; the result can generate but not learn.

    weights    what the linear layers' weights are kept as: "fp32", "bf16" (rounded), or "int8" (rounded to 255 steps
               of 1/127 of each output's largest weight). Embeddings and norms stay fp32.
    precision  what the products are computed in: "fp32", or "bf16": inputs and weights rounded, sums in fp32. Then
               the weights are kept as bf16.
    cache      folder that keeps the compiled kernel.

    Raises ConfigError where `weights` need the kernel and it cannot be compiled.
    """
    if precision == "bf16":
        make = _BF16Linear
    elif (kernel := compiled(cache)) is not None:
        make = functools.partial(_KernelLinear, kernel, weights)
    elif weights == "fp32":
        log.warning("no C compiler was found (cc, gcc, clang, $CC): generating goes through torch's slower products")
        return model
    else:
        problem = "needs a C compiler that knows OpenMP (cc, gcc, clang or what $CC says), and none was found"
        raise ConfigError("generation.weights", weights, problem, "install one, or use generation.weights=fp32")
    if model.lm_head is None:
        model.lm_head = make(model.wte.weight.detach(), None)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, make(child.weight.detach(), None if child.bias is None else child.bias.detach()))
    return model


class _KernelLinear(nn.Module):
    """x (..., K) in fp32 -> (..., N), through linear.c."""

    def __init__(self, kernel: ctypes.CDLL, weights: str, weight_NK: Tensor, bias_N: Tensor | None):
        super().__init__()
        self.N, self.K = weight_NK.shape
        rows, width = (ctypes.c_int * 2).in_dll(kernel, "tile_shape")
        scale_N = torch.ones(self.N)
        if weights == "int8":
            scale_N = weight_NK.abs().amax(dim=1).float() / 127
            weight_NK = (weight_NK / scale_N.clamp(min=1e-30)[:, None]).round().to(torch.int8)
        elif weights == "bf16":
            weight_NK = weight_NK.bfloat16()
        self.padding = -self.K % width
        weight_NK = F.pad(weight_NK, (0, self.padding, 0, -self.N % rows))
        tiles = weight_NK.view(weight_NK.shape[0] // rows, rows, weight_NK.shape[1] // width, width).transpose(1, 2)
        self.register_buffer("tiles", tiles.contiguous())
        self.register_buffer("scale", scale_N)
        self.register_buffer("bias", torch.zeros(self.N) if bias_N is None else bias_N.float())
        # What stays the same from call to call. The pointers are good as long as the buffers are: as long as this module.
        pointers = (self.tiles.data_ptr(), self.scale.data_ptr(), self.bias.data_ptr())
        self.fixed = WEIGHTS.index(weights), *pointers
        self.linear = kernel.linear

    def forward(self, x: Tensor) -> Tensor:
        if self.padding:
            x = F.pad(x, (0, self.padding))
        x = x.contiguous()
        K = self.K + self.padding
        y = torch.empty(*x.shape[:-1], self.N)
        kind, tiles, scale, bias = self.fixed
        self.linear(kind, x.data_ptr(), tiles, scale, bias, y.data_ptr(), x.numel() // K, self.N, K)
        return y


class _BF16Linear(nn.Module):
    """x (..., K) in fp32 -> (..., N): the product of both rounded to bf16, through oneDNN with reordered weights."""

    def __init__(self, weight_NK: Tensor, bias_N: Tensor | None):
        super().__init__()
        self.register_buffer("weight", torch.ops.mkldnn._reorder_linear_weight(weight_NK.bfloat16(), 1))
        self.register_buffer("bias", None if bias_N is None else bias_N.bfloat16())

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x.bfloat16(), self.weight, self.bias, "none", [], "").float()


@functools.cache
def compiled(cache: str | Path) -> ctypes.CDLL | None:
    """The kernel in linear.c, compiled for this processor and kept in the folder `cache`; None where that fails."""
    compiler = os.environ.get("CC") or next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        return None
    source = Path(__file__).with_name("linear.c")
    # One OpenMP for both: two would keep a set of threads each, and those would wait for each other.
    openmp = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*")) or sorted(
        (Path(torch.__file__).parents[1] / "torch.libs").glob("libgomp*")
    )
    key = hashlib.sha256("\n".join([source.read_text(), compiler, *map(str, openmp), _processor()]).encode())
    library = Path(cache) / "kernels" / f"linear-{key.hexdigest()[:16]}.so"
    try:
        if not library.exists():
            library.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=library.parent) as folder:
                object_file, made = Path(folder, "linear.o"), Path(folder, library.name)
                flags = ["-O3", "-march=native", "-fopenmp", "-fPIC"]
                _run([compiler, *flags, "-c", str(source), "-o", str(object_file)])
                _run([compiler, "-shared", str(object_file), *(map(str, openmp) if openmp else ["-fopenmp"]), "-o", str(made)])
                os.replace(made, library)  # whole or not at all, also when two start together
        kernel = ctypes.CDLL(str(library))
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        log.warning("the kernel for generating was not compiled: %s", said.strip().splitlines()[-1] if said.strip() else error)
        return None
    kernel.linear.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 5, *[ctypes.c_int64] * 3]
    kernel.linear.restype = None
    return kernel


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def _processor() -> str:
    """What -march=native depends on: a cache that several machines share must not hand out another one's code."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line for line in file if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.machine() + platform.processor()
