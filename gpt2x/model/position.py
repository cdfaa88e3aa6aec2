"""How a model knows in which order its tokens stand. Attention by itself sees a set of tokens, not a row.

learned  each position has a trained vector, added to the token's embedding: GPT-2's own way (Radford et al., 2019). It is
         the embedding `wpe` of the model, the only one of the four that has parameters.
rope     queries and keys are turned by an angle that grows with the position, so that a score depends on how far apart two
         tokens stand (Su et al., 2021, "RoFormer"): `Rotary` makes the angles, `rotate` turns.
alibi    each score loses what grows with that distance, at a speed of its own in each head (Press et al., 2022, "Train
         Short, Test Long"): `ALiBi`.
none     nothing: that a token sees only what stands before it is all there is to tell an order by (Kazemnejad et al., 2023)

A position comes in as a number that counts from 0 in each text. Letters in names of shapes are those of attention.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

BASE = 10_000  # of the angles, as in the paper


class Rotary(nn.Module):
    """The angles of rotary position embedding, as complex numbers of length 1.

    Numbers 2i and 2i + 1 of a head are taken as one point of a plane, as in the paper (GPT-NeoX and Llama pair i with
    i + H/2: the same function, but for the order of a head's numbers). At position t it is turned by t / 10000^(2i/H).
    """

    def __init__(self, *, head_width: int, context_length: int):
        super().__init__()
        if head_width % 2:
            raise ValueError(f"rotary positions turn pairs of numbers, and a head is {head_width} wide")
        speeds = BASE ** -(torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
        angles = torch.arange(context_length, dtype=torch.float64)[:, None] * speeds
        # Cosine and sine (context, H/2, 2). A buffer moves with the model; no checkpoint needs it.
        self.register_buffer("turns", torch.stack([angles.cos(), angles.sin()], dim=-1).float(), persistent=False)

    def forward(self, positions: Tensor) -> Tensor:
        """What `rotate` turns by at `positions`: (T,) -> (T, H/2), (B, T) -> (B, 1, T, H/2), complex."""
        turns = torch.view_as_complex(self.turns[positions])
        return turns if positions.dim() == 1 else turns[:, None]


def rotate(x_BNTH: Tensor, turns: Tensor) -> Tensor:
    """Turn each pair of numbers: multiply x + iy by cos a + i sin a. In fp32 at least, whatever the type of x."""
    exact = x_BNTH.to(torch.promote_types(x_BNTH.dtype, torch.float32))
    points = torch.view_as_complex(exact.unflatten(-1, (-1, 2)))
    return torch.view_as_real(points * turns).flatten(-2).to(x_BNTH.dtype)


class ALiBi(nn.Module):
    """Attention with linear biases: head n takes slope_n times the distance of key and query from each score."""

    def __init__(self, *, n_head: int):
        super().__init__()
        self.register_buffer("slope_N", torch.tensor(slopes(n_head)), persistent=False)

    def forward(self, places: Tensor, L: int) -> Tensor:
        """What is added to the scores of queries at `places` of a row of L keys; what stands behind a query is hidden.

        (Q,) -> (1, N, Q, L), (B, Q) -> (B, N, Q, L): torch's fused attention takes no three dimensions. Of several texts in
        a row only distances within a text count, and those are the same in the row.
        """
        distance = places.view(-1, 1, places.shape[-1], 1) - torch.arange(L, device=places.device)
        return (-self.slope_N[:, None, None] * distance).masked_fill(distance < 0, float("-inf"))


def slopes(n_head: int) -> list[float]:
    """The slopes of the heads: 2^(-8/n), 2^(-16/n), ... 2^-8 where n is a power of 2.

    For other numbers those of the power of 2 below, then every second one of the power above, as in the authors' code.
    """
    power = 2 ** int(math.log2(n_head))
    below, above = ([2 ** (-8 * i / n) for i in range(1, n + 1)] for n in (power, 2 * power))
    return below + above[::2][: n_head - power]
