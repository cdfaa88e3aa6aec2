"""A trained model made ready to generate: its blocks and its head replaced by ones prepared once for this processor.

A token needs every weight once, so generating is as fast as memory delivers them, and fewer bytes a weight are more
tokens a second. torch's products of one row do not reach that speed, its int8 one least, and between its operations the
memory waits. block.c computes a whole block in one call. It is compiled once, in about a second, with the C compiler of
the machine (cc, gcc, clang or what $CC says). Where there is none, fp32 stays with torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
import mmap
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor, nn

from gpt2x.config.option import ConfigError, show
from gpt2x.device import Device
from gpt2x.model import compiler
from gpt2x.model.attention import select
from gpt2x.model.cache import KVCache, LayerCache
from gpt2x.model.classifier import parts
from gpt2x.model.compiler import KernelError
from gpt2x.model.gpt import GPT, Block
from gpt2x.model.lora import merge
from gpt2x.model.position import ALiBi, Rotary
from gpt2x.model.variants import RMSNorm, relu2

log = logging.getLogger(__name__)

# In the order of the kinds in block.c.
WEIGHTS = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
_THEN_STORE = 0
KNOWN = ("position", "norm", "mlp", "bias", "qk_norm", "softcap", "ngram_embeddings")
"""By what a model may not be GPT-2 (see Variant) and be computed by block.c all the same."""


def prepare(model: GPT, *, weights: str = "fp32", precision: str = "fp32", cache: str | Path, with_head: bool = True) -> GPT:
    """Prepare `model`, in place; the result can generate but not learn, and is not to be copied or moved.

    weights    what the linear layers' weights are kept as: "fp32", "bf16" (rounded), or "int8" (rounded to 255 steps
               of 1/127 of each output's largest weight). Embeddings and norms stay fp32.
    precision  what the products are computed in: "fp32", or "bf16": inputs and weights rounded, sums in fp32. Then
               the weights are kept as bf16, `weights` must be "fp32", and the work is left to torch (oneDNN).
    cache      folder that keeps the compiled kernel.
    with_head  false: its own output head is not used, as in a classifier.

    An adapter is merged. Raises ConfigError where `weights` need the kernel and it cannot be had, or does not know the model.
    """
    merge(model)
    if precision == "bf16":
        if weights != "fp32":
            raise ValueError(f"weights={weights!r}: precision='bf16' keeps the weights as it needs them")
        if model.lm_head is None and with_head:
            model.lm_head = _BF16Linear(model.wte.weight, None)
        for module in list(model.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.Linear):
                    setattr(module, name, _BF16Linear(child.weight, child.bias))
        return model
    try:
        kernel = compiled(cache)
        if model.wte.embedding_dim % 16:
            raise KernelError(f"it takes widths that are a multiple of 16, not {model.wte.embedding_dim}")
        for name, value in model.variant.changes().items():
            if name not in KNOWN or value == "swiglu":
                raise KernelError(f"it does not know model.{name}={show(value)}")
    except KernelError as error:
        if weights == "fp32":
            log.warning("generating without the kernel for this processor, through torch's slower products: %s", error)
            return model
        problem = f"needs the kernel for this processor, and {error}"
        raise ConfigError("generation.weights", weights, problem, "use generation.weights=fp32") from None
    head = model.wte.weight if model.lm_head is None else model.lm_head.weight
    matrices = [module.weight for module in model.h.modules() if isinstance(module, nn.Linear)] + [head] * with_head
    memory = _Memory(sum(_packed_size(weight, weights) for weight in matrices))
    for i, block in enumerate(model.h):
        model.h[i] = _KernelBlock(kernel, block, weights, memory, model.rotary, model.alibi)
    model.rotary = model.alibi = None  # the blocks see to it
    if with_head:
        model.lm_head = _KernelHead(kernel, head, weights, memory)
    return model


def ready(model: nn.Module, device: Device, *, weights: str, cache: str | Path) -> Callable[[], AbstractContextManager]:
    """Prepare `model`, a GPT or one inside a classifier, for `device`, in place; gives the context to compute in."""
    if device.torch_device.type == "cpu":  # the prepared layers see to the precision
        gpt, _ = parts(model)
        prepare(gpt, weights=weights, precision=device.precision, cache=cache, with_head=gpt is model)
        return contextlib.nullcontext
    model.to(device.torch_device)
    return device.autocast


# -- what block.c is given ---------------------------------------------------------------------------------------


class _Linear(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_int64),
        ("N", ctypes.c_int64),
        ("K", ctypes.c_int64),
        ("weights", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
    )


class _Norm(ctypes.Structure):
    _fields_ = (("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p))


class _Block(ctypes.Structure):
    _fields_ = (
        ("ln_1", _Norm),
        ("c_attn", _Linear),
        ("c_proj", _Linear),
        ("ln_2", _Norm),
        ("mlp_c_fc", _Linear),
        ("mlp_c_proj", _Linear),
        ("n_head", ctypes.c_int64),
        ("qk_norm", ctypes.c_int64),
        ("relu2", ctypes.c_int64),
        ("turns", ctypes.c_void_p),
        ("slopes", ctypes.c_void_p),
    )


class _Memory:
    """One piece of memory for all packed weights, in pages of 2 MB where the system has them: small ones cost the
    processor time to find."""

    def __init__(self, size: int):
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self.map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            self.map.madvise(mmap.MADV_HUGEPAGE)
            self.bytes = torch.frombuffer(self.map, dtype=torch.uint8)
        else:
            self.bytes = torch.empty(size, dtype=torch.uint8)
        self.used = 0

    def tensor(self, shape: Iterable[int], dtype: torch.dtype) -> Tensor:
        size = math.prod(shape) * dtype.itemsize
        self.used += size
        return self.bytes[self.used - size : self.used].view(dtype).view(shape)


def _packed_size(weight_NK: Tensor, weights: str) -> int:
    N, K = weight_NK.shape
    return -(-N // 16) * 16 * K * WEIGHTS[weights].itemsize  # every matrix starts at a multiple of 256 bytes


def _pack(
    weight_NK: Tensor, bias_N: Tensor | None, weights: str, memory: _Memory, tile: tuple[int, int]
) -> tuple[_Linear, list[Tensor]]:
    """A linear layer as block.c reads it, and the tensors that its pointers point into."""
    N, K = weight_NK.shape
    rows, width = tile
    weight_NK, scale_N = weight_NK.detach(), torch.ones(N)
    if weights == "int8":
        scale_N = weight_NK.abs().amax(dim=1) / 127
        weight_NK = (weight_NK / scale_N.clamp(min=1e-30)[:, None]).round()
    tiles = memory.tensor((-(-N // 16) * 16 // rows, K // width, rows, width), WEIGHTS[weights])
    whole = N // rows
    tiles[:whole] = weight_NK[: whole * rows].view(whole, rows, K // width, width).transpose(1, 2)
    if N % rows:
        tiles[whole, :, : N % rows] = weight_NK[whole * rows :].view(N % rows, K // width, width).transpose(0, 1)
    kept = [tiles, scale_N.contiguous(), torch.zeros(N) if bias_N is None else bias_N.detach().contiguous()]
    return _Linear(list(WEIGHTS).index(weights), N, K, *(tensor.data_ptr() for tensor in kept)), kept


class _NoCopy(nn.Module):
    """The C structures of a prepared module hold addresses, which a copy would share and a move would leave behind."""

    def __reduce_ex__(self, protocol):
        raise TypeError("a prepared model cannot be copied: prepare a copy instead")


class _KernelBlock(_NoCopy):
    """What Block computes, without gradients, through block.c."""

    def __init__(
        self,
        kernel: ctypes.CDLL,
        block: Block,
        weights: str,
        memory: _Memory,
        rotary: Rotary | None,
        alibi: ALiBi | None,
    ):
        super().__init__()
        self.kernel, self.n_head, tile = kernel, block.attn.n_head, tuple((ctypes.c_int * 2).in_dll(kernel, "tile_shape"))
        self.kept = []  # alive as long as their addresses are in use

        def linear(layer: nn.Linear) -> _Linear:
            structure, kept = _pack(layer.weight, layer.bias, weights, memory, tile)
            self.kept += kept
            return structure

        def norm(layer: nn.LayerNorm | RMSNorm) -> _Norm:
            if isinstance(layer, RMSNorm):
                return _Norm(None, None)
            bias = torch.zeros_like(layer.weight) if layer.bias is None else layer.bias
            self.kept += [layer.weight.detach().contiguous(), bias.detach().contiguous()]
            return _Norm(*(tensor.data_ptr() for tensor in self.kept[-2:]))

        def table(values: Tensor) -> int:
            self.kept.append(values.contiguous())
            return self.kept[-1].data_ptr()

        attn, mlp = block.attn, block.mlp
        self.structure = _Block(
            norm(block.ln_1), linear(attn.c_attn), linear(attn.c_proj),
            norm(block.ln_2), linear(mlp.c_fc), linear(mlp.c_proj), self.n_head, attn.qk_norm, mlp.activation is relu2,
            None if rotary is None else table(rotary.turns), None if alibi is None else table(alibi.slope_N),
        )  # fmt: skip
        self.pointer = ctypes.byref(self.structure)

    def forward(self, x_BTC: Tensor, cache: LayerCache | None = None, *, at_B: Tensor | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C), in the memory of the input; (B, 1, C) with `at_B`, a position of each row."""
        B, T, C = x_BTC.shape
        x_BTC = x_BTC.contiguous()
        if cache is None:
            new = KVCache(n_layer=1, n_head=self.n_head, head_width=C // self.n_head, rows=B, capacity=T, like=x_BTC)
            new.begin(T)
            cache = new.layers[0]
        kept, starts = cache.cache, (ctypes.c_int64 * B)(*cache.cache.starts)
        keys, values = (x.data_ptr() + cache.i * x.stride(0) * x.itemsize for x in (kept.keys, kept.values))
        scratch = torch.empty(B * T * 6 * C)
        self.kernel.block(self.pointer, x_BTC.data_ptr(), keys, values, starts, B, T, kept.capacity, scratch.data_ptr())
        return x_BTC if at_B is None else select(x_BTC, at_B)


class _KernelHead(_NoCopy):
    """Final states (..., C) in fp32 -> logits (..., V), through block.c."""

    def __init__(self, kernel: ctypes.CDLL, weight_VC: Tensor, weights: str, memory: _Memory):
        super().__init__()
        self.kernel, tile = kernel, tuple((ctypes.c_int * 2).in_dll(kernel, "tile_shape"))
        self.structure, self.kept = _pack(weight_VC, None, weights, memory, tile)

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        logits = torch.empty(*x.shape[:-1], self.structure.N)
        M = x.numel() // self.structure.K
        self.kernel.linear(ctypes.byref(self.structure), x.data_ptr(), logits.data_ptr(), M, _THEN_STORE)
        return logits


class _BF16Linear(nn.Module):
    """x (..., K) in fp32 -> (..., N): the product of both rounded to bf16, through oneDNN with reordered weights."""

    def __init__(self, weight_NK: Tensor, bias_N: Tensor | None):
        super().__init__()
        self.register_buffer("weight", torch.ops.mkldnn._reorder_linear_weight(weight_NK.detach().bfloat16(), 1))
        self.register_buffer("bias", None if bias_N is None else bias_N.detach().bfloat16())

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x.bfloat16(), self.weight, self.bias, "none", [], "").float()


# -- compiling ---------------------------------------------------------------------------------------------------


def compiled(cache: str | Path) -> ctypes.CDLL:
    """block.c, compiled for this processor and kept in the folder `cache`. Raises KernelError."""
    kernel = compiler.compiled("block", cache)
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    kernel.linear.argtypes = [pointer, pointer, pointer, number, ctypes.c_int]
    kernel.block.argtypes = [pointer, pointer, pointer, pointer, pointer, number, number, number, pointer]
    kernel.linear.restype = kernel.block.restype = None
    return kernel
