"""What a model may do otherwise than GPT-2, part by part; which of it a model does is said by its `Variant` (config.py).

norm=rmsnorm      states are divided by their root mean square (Zhang and Sennrich, 2019), without trained weights
mlp=relu2         max(0, x)^2 in the place of GELU (So et al., 2021, "Primer")
mlp=swiglu        silu(a) * b of two halves (Shazeer, 2020, "GLU Variants Improve Transformer")
qk_norm           rmsnorm of each query and key (Henry et al., 2020; Dehghani et al., 2023, "Scaling Vision Transformers to 22
                  Billion Parameters"): a score is then sqrt(H) times a cosine, whatever the weights
n_kv_head         grouped-query attention (Ainslie et al., 2023): fewer keys and values to compute and to keep
bias=false        as in PaLM (Chowdhery et al., 2022) and nanoGPT
softcap           c * tanh(logits / c) (Gemma 2, 2024)
residual_scalars  ResidualMix, of modded-nanogpt and nanochat (Jordan et al., 2024; Karpathy, 2025)
value_embeddings  ValueEmbedding, likewise; after "Value Residual Learning" (Zhou et al., 2024)
ngram_embeddings  NgramEmbeddings, as in the Byte Latent Transformer (Pagnoni et al., 2024); for words, "Over-Tokenized
                  Transformer" (Huang et al., 2025)
init=gpt2_zero    each branch adds nothing at first (Zhang et al., 2019, "Fixup"; Yang et al., 2022, "Tensor Programs V")
position          position.py

Letters in names of shapes are those of attention.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2x.config.option import show
from gpt2x.model.config import GPT2, Variant

EPS = 1e-5  # of all norms, as in GPT-2


def norm(variant: Variant, n_embd: int) -> nn.Module:
    """The norm before a branch or the head."""
    if variant.norm == "rmsnorm":
        return RMSNorm()
    return nn.LayerNorm(n_embd, eps=EPS, bias=variant.bias)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + EPS) over the last dimension."""

    def forward(self, x: Tensor) -> Tensor:
        return unit(x)


def unit(x: Tensor) -> Tensor:
    """Numbers (..., n) with a root mean square of 1."""
    if x.device.type == "cpu":
        return _Unit.apply(x)
    return F.rms_norm(x, x.shape[-1:], eps=EPS)


class _Unit(torch.autograd.Function):
    """What F.rms_norm does, which on a CPU is a row of operations: here half as many, at least in fp32 as there.

    Of y = x r with r = 1 / sqrt(mean(x^2) + EPS) the gradient is r (g - y mean(g y)).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype)
        scale = length.square_().div_(x.shape[-1]).add_(EPS).rsqrt_()
        y = (x * scale).to(x.dtype)
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        y, scale = ctx.saved_tensors
        along = (gradient * y).sum(-1, keepdim=True, dtype=scale.dtype).div_(y.shape[-1])
        return torch.addcmul(gradient.to(scale.dtype), y.to(scale.dtype), along, value=-1).mul_(scale).to(y.dtype)


def relu2(x: Tensor) -> Tensor:
    return _ReLU2.apply(x)


class _ReLU2(torch.autograd.Function):
    """max(0, x)^2, whose gradient 2 max(0, x) is at hand already: torch by itself would look at x once more."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = F.relu(x)
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return torch.mul(gradient, positive).mul_(2)


def swiglu(x: Tensor) -> Tensor:
    """Half as many numbers: the first half of them, through SiLU, is the gate of the second."""
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate) * value


def mlp(variant: Variant, n_embd: int) -> tuple[int, Callable[[Tensor], Tensor], int]:
    """What is between the layers of an MLP: outputs of the first, a function of them, inputs of the second."""
    if variant.mlp == "swiglu":  # three matrices in the place of two, so two thirds of 4 * n_embd; eights suit processors
        width = max(1, round(8 * n_embd / 3 / 8)) * 8
        return 2 * width, swiglu, width
    return 4 * n_embd, relu2 if variant.mlp == "relu2" else gelu, 4 * n_embd


def gelu(x: Tensor) -> Tensor:
    """GPT-2's: the approximation with tanh."""
    return F.gelu(x, approximate="tanh")


def softcapped(logits: Tensor, cap: float) -> Tensor:
    """Logits within -cap..cap, near 0 almost as they were. In fp32 at least, where differences of large ones still count."""
    return cap * torch.tanh(logits.to(torch.promote_types(logits.dtype, torch.float32)) / cap)


class Start(NamedTuple):
    """Where a row of states began, for what looks back at it in later blocks: the tokens, and their embeddings (B, T, C)."""

    tokens_BT: Tensor
    x0_BTC: Tensor


class ResidualMix(nn.Module):
    """What enters a block: a x + b x0 of the states x and the embeddings x0, where a is 1 and b is 0 at first."""

    def __init__(self):
        super().__init__()
        self.x = nn.Parameter(torch.ones(1))
        self.x0 = nn.Parameter(torch.zeros(1))

    def forward(self, x_BTC: Tensor, start: Start) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        return self.x * x_BTC + self.x0 * start.x0_BTC


class NgramEmbeddings(nn.Module):
    """Of each token what it is together with the one before it, with the two before it, and so on, side by side.

    What is likely after the last few tokens is so looked up, and need not be learned by attention first. Each length has a
    table of `rows`, or of as many as there are runs of that length, and an equal share of the width: so what the optimizer
    has to do is little. Where there are more runs than rows, several share one, by a hash that is the same everywhere: a
    multiple modulo a prime (Carter and Wegman, 1979, "Universal Classes of Hash Functions").
    """

    PRIME, FACTOR = 2**31 - 1, 1_000_003

    def __init__(self, rows: list[int], *, vocab_size: int, n_embd: int):
        super().__init__()
        self.base = vocab_size + 1  # 0: before the text's first token
        sizes = [min(n, self.base**length) for length, n in enumerate(rows, 2)]
        self.tables = nn.ModuleList(nn.Embedding(n, n_embd // len(rows)) for n in sizes)

    def forward(self, tokens_BL: Tensor, places_BT: Tensor, positions_BT: Tensor) -> Tensor:
        """(B, T, C), of the T tokens that stand at these places of the row, which are these positions of a text."""
        run_BT = tokens_BL.gather(1, places_BT) + 1
        parts = []
        for before, table in enumerate(self.tables, 1):
            token_BT = tokens_BL.gather(1, (places_BT - before).clamp(min=0)) + 1
            run_BT = (run_BT * self.base + token_BT * (positions_BT >= before)) % self.PRIME
            shared = table.num_embeddings < self.base ** (before + 1)
            parts.append(table((run_BT * self.FACTOR % self.PRIME if shared else run_BT) % table.num_embeddings))
        return torch.cat(parts, dim=-1)


class ValueEmbedding(nn.Module):
    """What each token adds to the values of a block: a vector that is its own, times a gate for each head of values.

    The gate, 0 to 2, is told by the states that the values are made of. The vector is looked up in a table, or made of the
    token's embedding by a matrix.
    """

    def __init__(self, *, kind: str, vocab_size: int, n_embd: int, n_kv_head: int, head_width: int):
        super().__init__()
        self.heads = (n_kv_head, head_width)
        width = n_kv_head * head_width
        self.table = nn.Embedding(vocab_size, width) if kind == "table" else None
        self.projection = nn.Linear(n_embd, width, bias=False) if kind == "projection" else None
        self.gate = nn.Linear(n_embd, n_kv_head, bias=False)

    def forward(self, x_BTC: Tensor, start: Start) -> Tensor:
        """(B, T, C) -> (B, K, T, H)."""
        own = self.projection(start.x0_BTC) if self.table is None else self.table(start.tokens_BT)
        gate_BTK = 2 * torch.sigmoid(self.gate(x_BTC))
        return (gate_BTK[..., None] * own.unflatten(-1, self.heads)).transpose(1, 2)


def value_embedding(
    variant: Variant, block: int, *, vocab_size: int, n_layer: int, n_embd: int, n_head: int
) -> ValueEmbedding | None:
    """That of a block, by its number: the last one has it, and every second one below."""
    if variant.value_embeddings == "none" or (n_layer - block) % 2 == 0:
        return None
    n_kv_head = variant.n_kv_head or n_head
    heads = dict(n_kv_head=n_kv_head, head_width=n_embd // n_head)
    return ValueEmbedding(kind=variant.value_embeddings, vocab_size=vocab_size, n_embd=n_embd, **heads)


def looks_back(variant: Variant) -> bool:
    """Whether later blocks need the `Start`."""
    return variant.residual_scalars or variant.value_embeddings != "none"


def listed(variant: Variant) -> str:
    """By what it is not GPT-2, as one would type it; "" for GPT-2."""
    return ", ".join(f"{name}={show(value)}" for name, value in variant.changes().items())


def why_not_gpt2(model: nn.Module) -> str | None:
    """Why programs that know GPT-2 alone would compute something else than `model`, a GPT or a classifier around one; None:
    they would not. Whoever writes or reads a format of theirs asks this."""
    variant = getattr(model, "gpt", model).variant
    theirs = ", ".join(f"{name}={show(getattr(GPT2, name))}" for name in variant.changes())
    return f"the model has {listed(variant)}, and GPT-2 has {theirs}" if theirs else None
