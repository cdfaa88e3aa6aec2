"""A block of a GPT, and its head with the cross-entropy, for training on a CPU: the same functions in fewer passes over memory.

Between the matrix products of a step torch makes some forty passes over the activations, each with memory of its own and an
operation to start; its tanh-GELU alone takes as long as a tenth of the products. Here each block is one operation of autograd,
whose backward is written out: what stands between the products is computed by train.c, compiled when it is first needed, with
the biases and the additions to the residual stream in the same passes. What is cheap to compute again is not kept.

`accelerate` marks a model. GPT-2's blocks are known here, also with rotary positions or none, rmsnorm, relu2, qk_norm, without
biases and with dropout, which is drawn by a hash from a seed of torch's random stream. Blocks with a mask, a cache, an adapter,
grouped queries, value embeddings, ALiBi, swiglu or heads whose width is no multiple of 16 torch computes as ever, and all where
there is no C compiler: see `applies`. With autocast the products are bfloat16, as torch's would be; all sums, norms and the
residual stream stay float32.
"""

from __future__ import annotations

import ctypes
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gpt2x.model.compiler import KernelError, compiled
from gpt2x.model.variants import gelu, relu2

if TYPE_CHECKING:
    from gpt2x.model.gpt import GPT, Block

log = logging.getLogger(__name__)

_WIDTH = 16  # as in vectors.h
_PARTS = 16  # as in train.c
_LOGITS = 2**28  # the most bytes of logits at a time
_library: Any = None


def accelerate(model: nn.Module, cache: str | Path) -> bool:
    """Let `model`, a GPT or one inside another module, be computed here where that applies; whether it can be.

    `cache` is the folder that keeps the compiled code. It is said in the log where it cannot be compiled.
    """
    from gpt2x.model.gpt import GPT, Block

    global _library
    try:
        _library = _typed(compiled("train", cache))
    except KernelError as error:
        log.warning("training without the code for this processor, through torch alone: %s", error)
        return False
    for module in model.modules():
        if isinstance(module, (GPT, Block)):
            module.fused = True
    return True


def applies(block: Block, x_BTC: Tensor, plain: bool) -> bool:
    """Whether `run` computes what the block would; `plain`: it is given neither a cache nor a mask, and wants all positions."""
    attn, mlp = block.attn, block.mlp
    layers = (attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj)
    return (
        block.fused
        and plain
        and _on_cpu(x_BTC, attn.c_attn.weight)
        and attn.attend == attn._attend_sdpa
        and all(type(layer) is nn.Linear for layer in layers)
        and attn.n_kv_head == attn.n_head
        and attn.value is None
        and mlp.activation in _ACTIVATIONS
        and x_BTC.shape[2] // attn.n_head % _WIDTH == 0
    )


def run(block: Block, x_BTC: Tensor, turns: Tensor | None) -> Tensor:
    """(B, T, C) -> (B, T, C): what Block.forward computes."""
    attn, mlp, parameters = block.attn, block.mlp, []
    for part in (block.ln_1, attn.c_attn, attn.c_proj, block.ln_2, mlp.c_fc, mlp.c_proj):
        parameters += [getattr(part, "weight", None), getattr(part, "bias", None)]
    kind = _Kind(attn.n_head, isinstance(block.ln_1, nn.LayerNorm), _ACTIVATIONS.index(mlp.activation), attn.qk_norm, _dtype())
    drop = (attn.dropout, _seeds()) if block.training and attn.dropout else (0.0, (0, 0, 0))
    return _Block.apply(x_BTC, turns, kind, drop, *parameters)


def _seeds() -> tuple[int, int, int]:
    """Of the dropout of a block's attention weights and of its two branches."""
    return tuple(torch.randint(2**62, (3,)).tolist())


def head_applies(model: GPT, x: Tensor) -> bool:
    """Whether `summed_loss` may be computed from the final states x."""
    plain = model.lm_head is None or (type(model.lm_head) is nn.Linear and model.lm_head.bias is None)
    return model.fused and plain and _on_cpu(x, model.wte.weight)


def summed_loss(x_NC: Tensor, weight_VC: Tensor, targets_N: Tensor, softcap: float | None = None) -> Tensor:
    """The summed cross-entropy of the logits x W^T with the targets, in nats. Targets below 0 do not count.

    The gradients are computed with it, from logits of some hundred megabytes at a time, which become their own gradient.
    """
    if targets_N.numel() and (last := int(targets_N.max())) >= len(weight_VC):
        raise IndexError(f"a target is token {last}, of {len(weight_VC)} in the vocabulary")
    return _Entropy.apply(x_NC, weight_VC, targets_N, softcap or 0.0, _dtype(), torch.is_grad_enabled())


def _on_cpu(x: Tensor, weight: Tensor) -> bool:
    if torch.compiler.is_compiling() or x.device.type != "cpu":
        return False
    bf16 = not torch.is_autocast_enabled("cpu") or torch.get_autocast_dtype("cpu") == torch.bfloat16
    return bf16 and x.dtype == weight.dtype == torch.float32


def _dtype() -> torch.dtype:
    return torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float32


class _Kind(NamedTuple):
    """What of a block is no tensor; `activation` is a number of train.c."""

    n_head: int
    centered: bool
    activation: int
    qk_norm: bool
    dtype: torch.dtype


class _Block(torch.autograd.Function):
    """Names as in Block; M are all positions of all rows. Of the gradients, d... is that of what it is called after."""

    @staticmethod
    def forward(
        ctx,
        x_BTC: Tensor,
        turns: Tensor | None,
        kind: _Kind,
        drop: tuple[float, tuple[int, int, int]],
        *parameters: Tensor | None,
    ) -> Tensor:
        p, seeds = drop
        ln_1, ln_1_bias, attn, attn_bias, proj, proj_bias, ln_2, ln_2_bias, fc, fc_bias, out, out_bias = parameters
        B, T, C = x_BTC.shape
        M, dtype, bf16 = B * T, kind.dtype, kind.dtype == torch.bfloat16
        kept = (M, C, kind.centered, 0.0, 0, bf16)  # nothing is added, so nothing dropped
        first, second = ((M, C, kind.centered, p, seed, bf16) for seed in seeds[1:])
        turns = None if turns is None else torch.view_as_real(turns).contiguous()
        attn, proj, fc, out = (weight.to(dtype) for weight in (attn, proj, fc, out))
        x_MC, stats = x_BTC.reshape(M, C).contiguous(), torch.empty(2, M, 2)
        normed_MC, y_MC = torch.empty(M, C, dtype=dtype), torch.empty(M, C, dtype=dtype)
        _call("norm", x_MC, None, None, ln_1, ln_1_bias, None, normed_MC, stats[0], *kept)
        qkv, sums = normed_MC @ attn.t(), torch.empty(B, kind.n_head, T)
        _attend(qkv, attn_bias, turns, kind, (p, seeds[0]), B, T, y_MC, sums)
        middle_MC, result_MC = torch.empty(M, C), torch.empty(M, C)
        _call("norm", x_MC, y_MC @ proj.t(), proj_bias, ln_2, ln_2_bias, middle_MC, normed_MC, stats[1], *first)
        wide = normed_MC @ fc.t()
        active = torch.empty_like(wide)
        _call("activate", wide, fc_bias, None, active, *wide.shape, kind.activation, bf16)
        _call("norm", middle_MC, active @ out.t(), out_bias, None, None, result_MC, None, None, *second)
        ctx.kind, ctx.drop = kind, drop
        norms = (ln_1, ln_1_bias, ln_2, ln_2_bias)
        ctx.save_for_backward(
            x_MC, stats, qkv, y_MC, sums, middle_MC, wide, turns, *norms, attn, attn_bias, proj, fc, fc_bias, out
        )
        return result_MC.view(B, T, C)

    @staticmethod
    @once_differentiable
    def backward(ctx, dresult_BTC: Tensor) -> tuple[Tensor | None, ...]:
        (x_MC, stats, qkv, y_MC, sums, middle_MC, wide, turns, ln_1, ln_1_bias, ln_2, ln_2_bias, attn, attn_bias, proj, fc,
         fc_bias, out) = ctx.saved_tensors  # fmt: skip
        B, T, C = dresult_BTC.shape
        kind, M, dtype, bf16 = ctx.kind, B * T, ctx.kind.dtype, ctx.kind.dtype == torch.bfloat16
        needed, (p, seeds) = ctx.needs_input_grad[4:], ctx.drop
        grads: list[Tensor | None] = [None] * len(needed)

        def linear(i: int, dy: Tensor, x: Tensor) -> None:
            """The gradients of a layer's weight and bias, parameters i and i + 1, where they are trained."""
            if needed[i]:
                grads[i] = (dy.t() @ x).float()
            if needed[i + 1]:
                grads[i + 1] = dy.sum(0, dtype=torch.float32)

        def norm(i: int, x: Tensor, stats: Tensor, weight: Tensor | None, dy: Tensor, dshortcut: Tensor) -> Tensor:
            """The gradient of a norm's input; those of its weight and bias are parameters i and i + 1."""
            dx, parts = torch.empty(M, C), torch.empty(_PARTS, 2, C)
            grads[i], grads[i + 1] = (torch.empty(C) if need else None for need in needed[i : i + 2])
            own = (x, stats, weight, dy, dshortcut, dx, grads[i], grads[i + 1], parts)
            _call("norm_backward", *own, M, C, kind.centered, bf16)
            return dx

        def branch(dsum_MC: Tensor, seed: int) -> Tensor:
            """The gradient of what was added to a shortcut, from that of the sum."""
            if not p:
                return dsum_MC.to(dtype)
            dy_MC = torch.empty(M, C, dtype=dtype)
            _call("dropped", dsum_MC, dy_MC, M, C, p, seed, bf16)
            return dy_MC

        dresult_MC = dresult_BTC.reshape(M, C).contiguous()
        dy_MC = branch(dresult_MC, seeds[2])
        dwide, active, normed_MC = dy_MC @ out, torch.empty_like(wide), torch.empty(M, C, dtype=dtype)
        _call("activate", wide, fc_bias, dwide, active, *wide.shape, kind.activation, bf16)
        linear(10, dy_MC, active)
        del active
        _call("normed", middle_MC, stats[1], ln_2, ln_2_bias, normed_MC, M, C, bf16)
        linear(8, dwide, normed_MC)
        dmiddle_MC = norm(6, middle_MC, stats[1], ln_2, dwide @ fc, dresult_MC)
        del dwide
        dy_MC = branch(dmiddle_MC, seeds[1])
        linear(4, dy_MC, y_MC)
        dqkv = torch.empty_like(qkv)
        _attend(qkv, attn_bias, turns, kind, (p, seeds[0]), B, T, y_MC, sums, dy_MC @ proj, dqkv)
        _call("normed", x_MC, stats[0], ln_1, ln_1_bias, normed_MC, M, C, bf16)
        linear(2, dqkv, normed_MC)
        dx_BTC = None
        if ctx.needs_input_grad[0] or any(needed[:2]):
            dx_BTC = norm(0, x_MC, stats[0], ln_1, dqkv @ attn, dmiddle_MC).view(B, T, C)
        return dx_BTC, None, None, None, *grads


class _Entropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, x_NC: Tensor, weight_VC: Tensor, targets_N: Tensor, cap: float, dtype: torch.dtype, learning: bool
    ) -> Tensor:
        (N, C), V, bf16 = x_NC.shape, len(weight_VC), dtype == torch.bfloat16
        x_NC, weight_VC = x_NC.detach().to(dtype), weight_VC.detach().to(dtype)
        need_x, need_weight = (learning and needed for needed in ctx.needs_input_grad[:2])
        targets_N, losses_N = targets_N.contiguous(), torch.empty(N)
        dx_NC = torch.empty(N, C, dtype=dtype) if need_x else None
        dweight_VC = None
        step = max(1, min(N, _LOGITS // (V * dtype.itemsize)))
        logits = torch.empty(step, V, dtype=dtype)
        for i in range(0, N, step):
            x, logits = x_NC[i : i + step], logits[: N - i]
            torch.mm(x, weight_VC.t(), out=logits)
            _call("entropy", logits, targets_N[i : i + step], losses_N[i : i + step], len(x), V, cap, bf16)
            if need_x:
                torch.mm(logits, weight_VC, out=dx_NC[i : i + step])
            if need_weight and dweight_VC is None:
                dweight_VC = (logits.t() @ x).float()
            elif need_weight:
                dweight_VC += logits.t() @ x  # in fp32, whatever the product
        ctx.grads = [dx_NC if dx_NC is None else dx_NC.float(), dweight_VC]
        return losses_N.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, dloss: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError("the gradients of this loss were given away by an earlier backward: it has but one")
        grads, ctx.grads = ctx.grads, None
        return *(None if grad is None else grad.mul_(dloss) for grad in grads), None, None, None, None


# -- train.c ------------------------------------------------------------------------------------------------------

_ACTIVATIONS = (gelu, relu2)  # in the order of their numbers there


class _Attention(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("qkv", "bias", "turns")),
        *((name, ctypes.c_int64) for name in ("B", "T", "N", "H", "threads")),
        *(("p", ctypes.c_float), ("seed", ctypes.c_uint64)),
        *((name, ctypes.c_int64) for name in ("qk_norm", "bf16")),
    )


def _attend(
    qkv: Tensor,
    bias: Tensor | None,
    turns: Tensor | None,
    kind: _Kind,
    drop: tuple[float, int],
    B: int,
    T: int,
    *tensors: Tensor,
) -> None:
    """Fill y and sums; or, where the `tensors` are y, sums, dy and dqkv, fill dqkv. `drop` are a share and a seed."""
    H, backward = qkv.shape[1] // 3 // kind.n_head, len(tensors) > 2
    threads = torch.get_num_threads()
    pointers = (None if tensor is None else tensor.data_ptr() for tensor in (qkv, bias, turns))
    structure = _Attention(*pointers, B, T, kind.n_head, H, threads, *drop, kind.qk_norm, qkv.dtype == torch.bfloat16)
    scratch = torch.empty(threads, _library.attention_scratch(T, H, backward))
    function = _library.attend_backward if backward else _library.attend
    function(ctypes.byref(structure), *(tensor.data_ptr() for tensor in (*tensors, scratch)))


def _call(name: str, *arguments: Tensor | float | None) -> None:
    getattr(_library, name)(*(a.data_ptr() if isinstance(a, Tensor) else a for a in arguments))


def _typed(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, number, flag = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    real, seed = ctypes.c_float, ctypes.c_uint64
    signatures = {
        "dropped": [pointer, pointer, number, number, real, seed, flag],
        "norm": [*[pointer] * 8, number, number, flag, real, seed, flag],
        "norm_backward": [*[pointer] * 9, number, number, flag, flag],
        "normed": [*[pointer] * 5, number, number, flag],
        "activate": [*[pointer] * 4, number, number, flag, flag],
        "attend": [pointer] * 4,
        "attend_backward": [pointer] * 6,
        "entropy": [*[pointer] * 3, number, number, real, flag],
    }
    for name, types in signatures.items():
        function = getattr(library, name)
        function.argtypes, function.restype = types, None
    library.attention_scratch.argtypes, library.attention_scratch.restype = [number, number, flag], number
    return library
