"""Prepared weights: the same function as the layers they replace, bit for bit the same in any batch, and honest refusals."""

from __future__ import annotations

import copy
import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from models import far_from_linear, gpt, some_tokens

from gpt2x.config.option import ConfigError
from gpt2x.model import prepared
from gpt2x.model.prepared import WEIGHTS, compiled, prepare


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    if compiled(folder) is None:
        pytest.skip("this machine has no C compiler")
    return folder


def quantized(weight: torch.Tensor, weights: str) -> torch.Tensor:
    """What the kept weights stand for, computed in another way."""
    if weights == "fp32":
        return weight
    if weights == "bf16":
        return weight.to(torch.bfloat16).float()
    step = weight.abs().max(dim=1, keepdim=True).values / 127
    return torch.where(step > 0, torch.round(weight / step) * step, 0.0)


@pytest.mark.parametrize("weights", WEIGHTS)
@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 19),
    inputs=st.integers(1, 80) | st.just(768),
    outputs=st.integers(1, 70),
    bias=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_products_are_those_of_float64(cache, weights, rows, inputs, outputs, bias, seed):
    generator = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(rows, inputs, generator=generator), torch.randn(outputs, inputs, generator=generator)
    b = torch.randn(outputs, generator=generator) if bias else None
    layer = prepared._KernelLinear(compiled(cache), weights, weight, b)
    expected = F.linear(x.double(), quantized(weight, weights).double(), None if b is None else b.double())
    # float32 sums of `inputs` products of size 1: an error of a few 2^-24 times their root of the sum of squares.
    torch.testing.assert_close(layer(x).double(), expected, atol=1e-5 * inputs**0.5, rtol=0)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_row_has_the_same_bits_in_any_batch_and_with_any_number_of_threads(cache, weights):
    layer = prepared._KernelLinear(compiled(cache), weights, torch.randn(301, 200), torch.randn(301))
    x = torch.randn(23, 200)
    together = layer(x)
    for b in range(23):
        assert torch.equal(layer(x[b : b + 1])[0], together[b])
        assert torch.equal(layer(x[b:])[0], together[b])
    torch.set_num_threads(2)
    assert torch.equal(layer(x), together)


def test_inputs_of_any_shape_and_stride(cache):
    weight = torch.randn(20, 32)
    layer = prepared._KernelLinear(compiled(cache), "fp32", weight, None)
    x = torch.randn(2, 3, 64)[..., ::2]
    torch.testing.assert_close(layer(x), F.linear(x, weight))
    torch.testing.assert_close(layer(x[0, 0]), F.linear(x[0, 0], weight))


def test_a_row_of_zeros_stays_zero_in_int8(cache):
    layer = prepared._KernelLinear(compiled(cache), "int8", torch.zeros(3, 16), torch.tensor([1.0, 2.0, 3.0]))
    assert layer(torch.randn(1, 16)).tolist() == [[1.0, 2.0, 3.0]]


@pytest.mark.parametrize("tied_head", [True, False])
@pytest.mark.parametrize(
    ("weights", "precision", "tolerance"),
    [("fp32", "fp32", 1e-5), ("bf16", "fp32", 0.1), ("int8", "fp32", 0.2), ("bf16", "bf16", 0.2)],
)
@torch.no_grad()
def test_a_prepared_model_computes_what_the_model_did(cache, weights, precision, tolerance, tied_head):
    """Logits here have a standard deviation of 1. The tolerances of the rounded ones are four times what is seen."""
    model, tokens = far_from_linear(gpt(tied_head=tied_head)).eval(), some_tokens()
    expected = model(tokens)
    logits = prepare(copy.deepcopy(model), weights=weights, precision=precision, cache=cache)(tokens)
    assert expected.std() > 0.5
    difference = (logits - expected).abs().max()
    assert difference < tolerance
    if weights != "fp32":
        assert difference > 1e-4  # the weights really are rounded
    assert logits.dtype == torch.float32


@torch.no_grad()
def test_in_a_prepared_model_every_text_has_the_same_bits_in_any_batch(cache):
    model, tokens = prepare(far_from_linear(gpt(n_embd=48)).eval(), cache=cache), some_tokens(batch=9)
    together = model.hidden(tokens)
    for b in range(9):
        assert torch.equal(model.hidden(tokens[b : b + 1])[0], together[b])


# -- the compiled file ---------------------------------------------------------------------------------------


def test_the_kernel_is_compiled_once(tmp_path, monkeypatch):
    if compiled(tmp_path) is None:
        pytest.skip("this machine has no C compiler")
    (library,) = (tmp_path / "kernels").iterdir()  # and nothing else: no half-made files
    compiled.cache_clear()
    monkeypatch.setattr(prepared, "_run", lambda command: pytest.fail("compiled again"))
    assert compiled(tmp_path) is not None
    assert list((tmp_path / "kernels").iterdir()) == [library]


def test_torch_and_the_kernel_share_one_openmp(cache):
    """Two would each keep their threads spinning, and wait for each other."""
    code = (
        "import sys; from gpt2x.model.prepared import compiled; import torch; assert compiled(sys.argv[1])\n"
        "print(*{l.split()[-1] for l in open('/proc/self/maps') if 'libgomp' in l})"
    )
    if not Path("/proc/self/maps").exists():
        pytest.skip("needs /proc")
    done = subprocess.run([sys.executable, "-c", code, str(cache)], capture_output=True, text=True, check=True)
    assert len(done.stdout.split()) == 1


@pytest.mark.parametrize("broken", ["none", "failing", "unwritable"])
def test_without_a_compiler_fp32_stays_with_torch_and_the_rest_is_refused(broken, tmp_path, monkeypatch, caplog):
    folder = tmp_path / "cache"
    if broken == "none":
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("CC", raising=False)
    elif broken == "failing":
        compiler = tmp_path / "mycc"
        compiler.write_text("#!/bin/sh\necho 'no such thing as OpenMP' >&2\nexit 1\n")
        compiler.chmod(compiler.stat().st_mode | stat.S_IEXEC)
        monkeypatch.setenv("CC", str(compiler))
    else:
        folder.write_text("a file where the folder should be")
    model, tokens = gpt().eval(), some_tokens()
    expected = model(tokens)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(prepare(copy.deepcopy(model), cache=folder)(tokens), expected)
    assert ("OpenMP" in caplog.text) == (broken == "failing")
    for weights in ("bf16", "int8"):
        with pytest.raises(ConfigError, match="generation.weights=.* needs a C compiler"):
            prepare(copy.deepcopy(model), weights=weights, cache=folder)
    prepare(model, weights="bf16", precision="bf16", cache=folder)  # torch's own: needs none
    assert not os.path.isdir(folder / "kernels") or not list((folder / "kernels").iterdir())
