"""Attention at one position of each row: what attention at all positions has there, and its gradients."""

from __future__ import annotations

import pytest
import torch

from gpt2x.model.attention import CausalSelfAttention, select
from gpt2x.model.lora import LoRALinear

B, T, C = 5, 7, 12
AT_B = torch.tensor([0, 6, 3, 3, 5])


def attention(kind: str = "sdpa", dropout: float = 0.0) -> CausalSelfAttention:
    torch.manual_seed(1)
    made = CausalSelfAttention(n_embd=C, n_head=3, context_length=T, dropout=dropout, attention=kind)
    with torch.no_grad():
        for parameter in made.parameters():  # biases and weights of a size that shows
            parameter.normal_(std=0.5)
    return made.double()


def with_lora(kind: str) -> CausalSelfAttention:
    made = attention(kind)
    made.c_attn = LoRALinear(made.c_attn, rank=2, alpha=4.0)
    torch.nn.init.normal_(made.c_attn.lora_B)
    return made.double()


@pytest.mark.parametrize("make", [attention, with_lora])
@pytest.mark.parametrize("kind", ["sdpa", "manual"])
def test_it_is_attention_everywhere_looked_at_there(make, kind):
    layer, x_BTC = make(kind), torch.randn(B, T, C, dtype=torch.double, requires_grad=True)
    outcomes = []
    for y_B1C in (select(layer(x_BTC), AT_B), layer(x_BTC, at_B=AT_B)):
        assert y_B1C.shape == (B, 1, C)
        wanted = [x_BTC, *(p for p in layer.parameters() if p.requires_grad)]
        outcomes.append([y_B1C, *torch.autograd.grad((y_B1C**2).sum(), wanted)])
    for whole, at in zip(*outcomes, strict=True):
        torch.testing.assert_close(at, whole, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("make", [attention, with_lora])
def test_what_stands_behind_changes_nothing(make):
    layer, x_BTC = make("sdpa"), torch.randn(B, T, C, dtype=torch.double)
    other_BTC = torch.where(torch.arange(T)[None, :, None] > AT_B[:, None, None], torch.randn(B, T, C) * 1e6, x_BTC)
    assert torch.equal(layer(x_BTC, at_B=AT_B), layer(other_BTC, at_B=AT_B))


def test_dropout_of_the_weights_is_right_on_average():
    layer, rows = attention(dropout=0.3).train(), 40_000
    x_BTC = torch.randn(1, T, C, dtype=torch.double)
    dropped = layer(x_BTC.expand(rows, T, C), at_B=torch.full((rows,), 4))
    expected = layer.eval()(x_BTC, at_B=torch.tensor([4]))
    error = dropped.std(0) / rows**0.5
    assert ((dropped.mean(0) - expected[0]).abs() < 5 * error).all()
    assert (error > 0).all()


def test_in_bfloat16_it_is_as_close_as_attention_everywhere():
    layer, x_BTC = attention().float(), torch.randn(B, T, C)
    exact = select(layer(x_BTC), AT_B)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        whole, at = select(layer(x_BTC), AT_B), layer(x_BTC, at_B=AT_B)
    assert at.dtype == whole.dtype
    assert (at - exact).abs().max() < max(2 * (whole - exact).abs().max(), 0.02 * exact.abs().max())
