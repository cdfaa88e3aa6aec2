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
from models import POSITIONS, SHAPE, far_from_linear, gpt, some_tokens

from gpt2x.config.option import ConfigError
from gpt2x.model import compiler, prepared
from gpt2x.model.prepared import WEIGHTS, compiled, prepare

T = SHAPE["context_length"]


def quantized(weight: torch.Tensor, weights: str) -> torch.Tensor:
    """What the kept weights stand for, computed in another way."""
    if weights == "fp32":
        return weight
    if weights == "bf16":
        return weight.to(torch.bfloat16).float()
    step = weight.abs().max(dim=1, keepdim=True).values / 127
    return torch.where(step > 0, torch.round(weight / step) * step, 0.0)


def head(folder: Path, weight: torch.Tensor, weights: str) -> prepared._KernelHead:
    return prepared._KernelHead(compiled(folder), weight, weights, prepared._Memory(prepared._packed_size(weight, weights)))


@pytest.mark.parametrize("weights", WEIGHTS)
@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 19),
    inputs=st.sampled_from([16, 32, 48, 80, 768]),
    outputs=st.integers(1, 70),
    seed=st.integers(0, 1000),
)
def test_products_are_those_of_float64(kernels, weights, rows, inputs, outputs, seed):
    generator = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(rows, inputs, generator=generator), torch.randn(outputs, inputs, generator=generator)
    expected = F.linear(x.double(), quantized(weight, weights).double())
    # float32 sums of `inputs` products of size 1: an error of a few 2^-24 times their root of the sum of squares.
    torch.testing.assert_close(head(kernels, weight, weights)(x).double(), expected, atol=1e-5 * inputs**0.5, rtol=0)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_product_has_the_same_bits_in_any_batch_and_with_any_number_of_threads(kernels, weights):
    layer = head(kernels, torch.randn(301, 208), weights)
    x = torch.randn(23, 208)
    together = layer(x)
    for b in range(23):
        assert torch.equal(layer(x[b : b + 1])[0], together[b])
        assert torch.equal(layer(x[b:])[0], together[b])
    torch.set_num_threads(2)
    assert torch.equal(layer(x), together)


def test_inputs_of_any_shape_and_stride(kernels):
    weight = torch.randn(20, 32)
    layer = head(kernels, weight, "fp32")
    x = torch.randn(2, 3, 64)[..., ::2]
    torch.testing.assert_close(layer(x), F.linear(x, weight))
    torch.testing.assert_close(layer(x[0, 0]), F.linear(x[0, 0], weight))


def test_a_row_of_zeros_stays_zero_in_int8(kernels):
    assert head(kernels, torch.zeros(3, 16), "int8")(torch.randn(1, 16)).tolist() == [[0.0, 0.0, 0.0]]


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 5),
    length=st.integers(1, 20),
    heads=st.sampled_from([1, 2, 3, 4, 6]),
    n_embd=st.sampled_from([48, 96]),
    seed=st.integers(0, 100),
)
@torch.no_grad()
def test_a_block_is_that_of_float64(kernels, rows, length, heads, n_embd, seed):
    """Of heads of 8 to 96 numbers. Outputs reach 30 and errors 2e-5; an exact GELU would be 1e-3 off."""
    model = far_from_linear(gpt(seed, n_embd=n_embd, n_head=heads, n_layer=1)).eval()
    x = torch.randn(rows, length, n_embd, generator=torch.Generator().manual_seed(seed))
    expected = copy.deepcopy(model.h[0]).double()(x.double())
    block = prepare(model, cache=kernels).h[0]
    torch.testing.assert_close(block(x.clone()).double(), expected, atol=1e-4, rtol=1e-5)


def test_bf16_products_and_other_weights_are_two_choices():
    with pytest.raises(ValueError, match="weights='int8'"):
        prepare(gpt(), weights="int8", precision="bf16", cache="nowhere")


@pytest.mark.parametrize("tied_head", [True, False])
@pytest.mark.parametrize(
    ("weights", "precision", "tolerance"),
    [("fp32", "fp32", 1e-5), ("bf16", "fp32", 0.1), ("int8", "fp32", 0.2), ("fp32", "bf16", 0.2)],
)
@pytest.mark.parametrize("position", POSITIONS)
@torch.no_grad()
def test_a_prepared_model_computes_what_the_model_did(kernels, weights, precision, tolerance, tied_head, position):
    """Logits here have a standard deviation of 1. The tolerances of the rounded ones are four times what is seen."""
    model, tokens = far_from_linear(gpt(tied_head=tied_head, position=position)).eval(), some_tokens()
    expected = model(tokens)
    logits = prepare(copy.deepcopy(model), weights=weights, precision=precision, cache=kernels)(tokens)
    assert expected.std() > 0.5
    difference = (logits - expected).abs().max()
    assert difference < tolerance
    if (weights, precision) != ("fp32", "fp32"):
        assert difference > 1e-4  # the weights really are rounded
    assert logits.dtype == torch.float32


@pytest.mark.parametrize("weights", WEIGHTS)
@settings(deadline=None, max_examples=30)
@given(
    lengths=st.lists(st.integers(1, T - 4), min_size=1, max_size=6),
    chunk=st.integers(1, T),
    threads=st.integers(1, 3),
    position=st.sampled_from(POSITIONS),
)
@torch.no_grad()
def test_a_text_has_the_same_bits_in_any_batch_in_any_pieces_and_without_a_cache(
    kernels, weights, lengths, chunk, threads, position
):
    model = prepare(far_from_linear(gpt(n_embd=48, position=position)).eval(), weights=weights, cache=kernels)
    tokens = some_tokens(len(lengths))
    whole = [model(row[None])[0] for row in tokens]
    torch.set_num_threads(threads)
    kept = model.new_cache(len(lengths), T)
    for start in range(0, max(lengths), chunk):
        model.hidden(tokens[:, start : min(start + chunk, max(lengths))], kept)
    kept.lengths = list(lengths)
    for step in range(2):
        piece = torch.stack([row[n + 2 * step : n + 2 * step + 2] for row, n in zip(tokens, lengths, strict=True)])
        logits = model.logits(model.hidden(piece, kept))
        for b, n in enumerate(lengths):
            assert torch.equal(logits[b], whole[b][n + 2 * step : n + 2 * step + 2])


def test_a_prepared_model_cannot_be_copied_into_one_that_shares_its_memory(kernels):
    model = prepare(gpt(), cache=kernels)
    with pytest.raises(TypeError, match="cannot be copied"):
        copy.deepcopy(model)


def test_a_width_that_the_kernel_does_not_know_stays_with_torch_or_is_refused(kernels):
    model, tokens = gpt(n_embd=24, n_head=2).eval(), some_tokens()
    with pytest.raises(ConfigError, match="int8: needs the kernel .* a multiple of 16, not 24"):
        prepare(model, weights="int8", cache=kernels)
    expected = model(tokens)
    assert torch.equal(prepare(model, cache=kernels)(tokens), expected)


# -- the compiled file ---------------------------------------------------------------------------------------


def test_the_kernel_is_compiled_once(kernels, tmp_path, monkeypatch):
    compiled(tmp_path)
    (library,) = (tmp_path / "kernels").iterdir()  # and nothing else: no half-made files
    compiler.compiled.cache_clear()
    monkeypatch.setattr(compiler, "_run", lambda command: pytest.fail("compiled again"))
    assert compiled(tmp_path).block
    assert list((tmp_path / "kernels").iterdir()) == [library]


def test_torch_and_the_kernel_share_one_openmp(kernels):
    """Two would each keep their threads spinning, and wait for each other."""
    code = (
        "import sys; from gpt2x.model.prepared import compiled; import torch; assert compiled(sys.argv[1])\n"
        "print(*{l.split()[-1] for l in open('/proc/self/maps') if 'libgomp' in l})"
    )
    if not Path("/proc/self/maps").exists():
        pytest.skip("needs /proc")
    done = subprocess.run([sys.executable, "-c", code, str(kernels)], capture_output=True, text=True, check=True)
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
    said = {"none": "there is no C compiler", "failing": "no such thing as OpenMP", "unwritable": "Not a directory"}
    assert said[broken] in caplog.text
    for weights in ("bf16", "int8"):
        with pytest.raises(ConfigError, match=f"generation.weights={weights}: needs the kernel .*{said[broken]}"):
            prepare(copy.deepcopy(model), weights=weights, cache=folder)
    prepare(model, precision="bf16", cache=folder)  # torch's own: needs none
    assert not os.path.isdir(folder / "kernels") or not list((folder / "kernels").iterdir())
