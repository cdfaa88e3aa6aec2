"""Blocks and the head with its loss, computed by train.c: the same numbers as torch's, the same gradients, or torch itself."""

from __future__ import annotations

import copy
import ctypes
import logging
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2x.model import fused
from gpt2x.model.classifier import Classifier
from gpt2x.model.compiler import KernelError, compiled
from gpt2x.model.gpt import GPT, Block
from gpt2x.model.lora import add_lora
from gpt2x.model.variants import softcapped
from gpt2x.task.lm import LanguageModeling
from gpt2x.training.finetune import last_block


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The folder that keeps train.c, compiled."""
    folder = tmp_path_factory.mktemp("cache")
    try:
        compiled("train", folder)
    except KernelError as error:
        pytest.skip(f"this machine cannot compile the kernel: {error}")
    return folder


def make(**shape) -> GPT:
    """A model in which every parameter matters: no bias of zeros, no scale of ones."""
    draws = torch.Generator().manual_seed(1)
    model = GPT(**dict(vocab_size=70, n_layer=2, n_head=2, n_embd=32, context_length=24) | shape, generator=draws)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draws), alpha=0.1)
    return model


def both(library, **shape) -> tuple[GPT, GPT]:
    """The same model, computed by torch and here."""
    model = make(**shape)
    ours = copy.deepcopy(model)
    assert fused.accelerate(ours, library)
    return model, ours


def tokens(model: GPT, B: int, T: int) -> torch.Tensor:
    return torch.randint(model.vocab_size, (2, B, T), generator=torch.Generator().manual_seed(2))


def gradients(model: GPT, inputs: torch.Tensor, targets: torch.Tensor) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model.loss(inputs, targets)
    (loss / targets.numel()).backward()
    return loss.item(), {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}


def error(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest difference of a gradient, as a share of its largest number, or of a hundredth of the largest of all if that
    is more: a small gradient may be the small rest of a sum of large ones."""
    assert found.keys() == expected.keys()
    sizes = {name: gradient.abs().max().item() for name, gradient in expected.items()}
    least = max(sizes.values()) / 100
    return max((found[n] - expected[n]).abs().max().item() / max(sizes[n], least, 1e-30) for n in expected)


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """The names of the functions of train.c that are called."""
    names = []
    call, attend = fused._call, fused._attend
    monkeypatch.setattr(fused, "_call", lambda name, *a: (names.append(name), call(name, *a)))
    monkeypatch.setattr(fused, "_attend", lambda *a: (names.append("attend"), attend(*a)))
    return names


# -- the same function ---------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    B=st.integers(1, 3), T=st.integers(1, 40), heads=st.sampled_from([(1, 16), (2, 16), (3, 32), (1, 48), (1, 80)]),
    V=st.sampled_from([1, 15, 16, 17, 70]), position=st.sampled_from(["learned", "rope", "none"]), tied=st.booleans(),
    norm=st.sampled_from(["layernorm", "rmsnorm"]), mlp=st.sampled_from(["gelu", "relu2"]), bias=st.booleans(),
    qk_norm=st.booleans(), softcap=st.sampled_from([None, 3.0]), residual_scalars=st.booleans(),
)  # fmt: skip
def test_losses_and_gradients_are_those_of_float64(library, B, T, heads, V, tied, **variant):
    """To the rounding of fp32: its errors are of the size of torch's own."""
    N, H = heads
    shape = dict(vocab_size=V, n_head=N, n_embd=N * H, context_length=T, tied_head=tied, **variant)
    model, ours = both(library, **shape)
    inputs, targets = tokens(model, B, T)
    (expected, exact), (loss, found) = (
        gradients(copy.deepcopy(model).double(), inputs, targets),
        gradients(ours, inputs, targets),
    )
    assert loss == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert error(found, exact) < 2e-5 if V > 1 else not any(gradient.any() for gradient in found.values())


def keep(p: float, seed: int, rows: int, columns: int) -> torch.Tensor:
    """What numbers are multiplied by, from the hash as train.c describes it, in numpy."""

    def mixed(x: np.ndarray) -> np.ndarray:
        x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
        x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
        return x ^ (x >> np.uint32(16))

    low, high = np.uint32(seed % 2**32), np.uint32(seed >> 32)
    own = mixed(mixed(low + np.arange(rows, dtype=np.uint32)) ^ high)[:, None]
    draw = mixed(np.arange(columns, dtype=np.uint32) * np.uint32(0x9E3779B9) + own) >> np.uint32(8)
    return torch.from_numpy((draw >= int(p * 2**24)) / (1 - p))


@settings(max_examples=15)
@given(
    B=st.integers(1, 3), T=st.integers(1, 40), p=st.sampled_from([0.1, 0.5, 0.9]), seed=st.integers(0, 2**62),
    position=st.sampled_from(["learned", "rope"]), norm=st.sampled_from(["layernorm", "rmsnorm"]), bias=st.booleans(),
)  # fmt: skip
def test_dropout_is_that_of_the_formula(library, B, T, p, seed, **variant):
    """In float64, with dropout's every decision made by the test."""
    shape = dict(context_length=T, dropout=p, attention="manual", **variant)
    exact, ours = make(**shape).double(), make(**shape | {"attention": "sdpa"})
    assert fused.accelerate(ours, library)
    inputs, targets = tokens(ours, B, T)
    seeds = [(seed + 5 * i, seed ^ (i + 1) << 40, seed + 7 * i + 1) for i in range(2)]
    masks = [torch.ones(())]  # of the embeddings
    for of_weights, first, second in seeds:
        masks += [keep(p, of_weights, B * 2 * T, T).view(B, 2, T, T)]
        masks += [keep(p, branch, B * T, 32).view(B, T, 32) for branch in (first, second)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "_seeds", iter(seeds).__next__)
        patch.setattr(F, "dropout", lambda x, *_: x)
        loss, found = gradients(ours, inputs, targets)
        left = iter(masks)
        patch.setattr(F, "dropout", lambda x, *_: x * next(left))
        expected, exact_gradients = gradients(exact, inputs, targets)
        assert next(left, None) is None
    assert loss == pytest.approx(expected, rel=1e-5)
    assert error(found, exact_gradients) < 2e-5


def test_dropout_drops_at_random():
    """As often as asked, each number whatever its neighbours in row and column and the next seed do: within five standard
    deviations of what chance gives."""
    n = 1024
    for p in (0.1, 0.5):
        tables = [(keep(p, seed, n, n) == 0).double() for seed in (3, 4, 3 << 32)]
        for table in tables:
            assert abs(table.mean() - p) < 5 * math.sqrt(p * (1 - p)) / n
            assert ((table.mean(0) - p).abs() < 5.5 * math.sqrt(p * (1 - p) / n)).all()
            assert ((table.mean(1) - p).abs() < 5.5 * math.sqrt(p * (1 - p) / n)).all()
        pairs = [(tables[0][1:], tables[0][:-1]), (tables[0][:, 1:], tables[0][:, :-1]), tables[:2], tables[1:]]
        for a, b in pairs:
            assert abs(((a - p) * (b - p)).mean()) < 5 * p * (1 - p) / math.sqrt(a.numel())


def test_dropout_is_of_torchs_random_stream(library):
    _, ours = both(library, dropout=0.3)
    inputs, _ = tokens(ours, 2, 24)
    outcomes = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outcomes.append(ours(inputs))
    assert torch.equal(outcomes[0], outcomes[1])
    assert not torch.equal(outcomes[0], outcomes[2])


def test_the_plain_computation_passes_gradcheck():
    """Which makes it the reference of the test above."""
    block = Block(n_embd=4, n_head=2, context_length=3, dropout=0.0, attention="sdpa").double()
    x_BTC = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: block(x), (x_BTC, *block.parameters()))


@pytest.mark.parametrize("T", [3, 24])
def test_bfloat16_errs_as_torchs_does(library, T):
    """Under autocast: the gradients are as far from float64's as torch's own, and most of that is the rounding of bfloat16."""
    model, ours = both(library, n_embd=64)
    inputs, targets = tokens(model, 3, T)
    _, exact = gradients(copy.deepcopy(model).double(), inputs, targets)
    with torch.autocast("cpu", torch.bfloat16):
        (plain_loss, plain), (loss, found) = (gradients(m, inputs, targets) for m in (model, ours))
    assert loss == pytest.approx(plain_loss, rel=5e-3)
    assert all(gradient.dtype == torch.float32 for gradient in (p.grad for p in ours.parameters()))
    mean = [sum(error({n: g[n]}, {n: exact[n]}) for n in exact) / len(exact) for g in (plain, found)]
    assert 1e-3 < mean[1] < 1.5 * mean[0] < 0.1


def test_logits_and_evaluation_are_the_same(library, calls):
    model, ours = both(library)
    inputs, _ = tokens(model, 3, 24)
    with torch.no_grad():
        torch.testing.assert_close(ours(inputs), model(inputs), rtol=1e-5, atol=1e-5)
    assert calls.count("attend") == 2


def test_states_of_frozen_blocks_and_a_classifier(library, calls):
    model, ours = both(library, n_layer=3)
    inputs, _ = tokens(model, 3, 24)
    for m in (model, ours):
        classifier = Classifier(m, n_classes=2, pooling="padded_last", generator=torch.Generator().manual_seed(3))
        last_block(classifier, blocks=2)
        F.cross_entropy(classifier(inputs, torch.tensor([24] * 3)), torch.tensor([0, 1, 1])).backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    found = {name: p.grad for name, p in ours.named_parameters()}
    assert [name for name, gradient in found.items() if gradient is None] == [n for n, g in expected.items() if g is None]
    trained = [name for name, gradient in expected.items() if gradient is not None]
    assert error({n: found[n] for n in trained}, {n: expected[n] for n in trained}) < 2e-5
    assert "norm_backward" in calls
    torch.testing.assert_close(ours.below(inputs, 2).states_BTC, model.below(inputs, 2).states_BTC, rtol=1e-5, atol=1e-5)


def test_single_parameters_may_be_trained(library):
    """Biases alone, say: no other gets a gradient."""
    model, ours = both(library)
    inputs, targets = tokens(model, 2, 24)
    for m in (model, ours):
        for name, parameter in m.named_parameters():
            parameter.requires_grad_(name.endswith("bias") and "h.1" in name)
    assert error(gradients(ours, inputs, targets)[1], gradients(model, inputs, targets)[1]) < 2e-5


@pytest.mark.parametrize("bf16", [False, True])
def test_the_same_bits_each_time_and_with_any_number_of_threads(library, bf16):
    """Of what train.c computes; torch's products have other bits with another number of threads."""
    draws = torch.Generator().manual_seed(4)
    M, C, N, T = 60, 64, 2, 20
    dtype = torch.bfloat16 if bf16 else torch.float32
    qkv, dy, x = (torch.randn(M, n, generator=draws).to(dtype) for n in (3 * C, C, C))
    bias, weight = torch.randn(3 * C, generator=draws), torch.randn(C, generator=draws)
    targets = torch.randint(C, (M,), generator=draws)
    both(library)  # loads it
    kind = fused._Kind(N, centered=True, activation=0, qk_norm=True, dtype=dtype)

    def outputs() -> list[torch.Tensor]:
        y, sums, dqkv, logits, losses = (
            torch.empty_like(x),
            torch.empty(3, N, T),
            torch.empty_like(qkv),
            x.clone(),
            torch.empty(M),
        )
        fused._attend(qkv, bias, None, kind, (0.1, 5), 3, T, y, sums)
        fused._attend(qkv, bias, None, kind, (0.1, 5), 3, T, y, sums, dy, dqkv)
        fused._call("entropy", logits, targets, losses, M, C, 0.0, bf16)
        dx, dweight, dshift, parts, stats = *(torch.empty(n) for n in ((M, C), C, C, (16, 2, C))), torch.rand(M, 2)
        stats.fill_(0.5)
        fused._call("norm_backward", x.float(), stats, weight, dy, dx, dx.zero_(), dweight, dshift, parts, M, C, 1, bf16)
        fused._call("dropped", x.float(), branch := torch.empty(M, C), M, C, 0.1, 6, False)
        return [y, sums, dqkv, logits, losses, dx, dweight, dshift, branch]

    torch.set_num_threads(1)
    first = outputs()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(first, outputs(), strict=True))


# -- its parts, where numbers are extreme -------------------------------------------------------------------


@given(st.lists(st.floats(-1e4, 1e4, width=32) | st.floats(-6, 6, width=32), min_size=16, max_size=16))
def test_gelu_everywhere(library, values):
    both(library)
    x = torch.tensor([values])
    exact = x.double().requires_grad_()
    F.gelu(exact, approximate="tanh").sum().backward()
    out, again, d = torch.empty_like(x), torch.empty_like(x), torch.ones_like(x)
    fused._call("activate", x, torch.zeros(16), None, out, 1, 16, 0, 0)
    fused._call("activate", x, torch.zeros(16), d, again, 1, 16, 0, 0)
    torch.testing.assert_close(out.double(), F.gelu(exact, approximate="tanh").detach(), rtol=2e-6, atol=2e-7)
    torch.testing.assert_close(d.double(), exact.grad, rtol=2e-6, atol=1e-6)
    assert torch.equal(again, out)


@settings(max_examples=30)
@given(
    V=st.integers(1, 50), scale=st.sampled_from([1e-3, 1.0, 30.0, 1e4]), cap=st.sampled_from([0.0, 15.0]), bf16=st.booleans()
)
def test_cross_entropy_of_any_logits(library, V, scale, cap, bf16):
    both(library)
    draws = torch.Generator().manual_seed(V)
    logits = (torch.randn(5, V, generator=draws) * scale).to(torch.bfloat16 if bf16 else torch.float32)
    targets = torch.randint(V, (5,), generator=draws)
    targets[3] = -100
    exact = logits.double().requires_grad_()
    expected = F.cross_entropy(softcapped(exact, cap) if cap else exact, targets, reduction="none")
    expected.sum().backward()
    losses = torch.empty(5)
    fused._call("entropy", logits, targets, losses, 5, V, cap, bf16)
    torch.testing.assert_close(losses.double(), expected.detach(), rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(logits.double(), exact.grad, rtol=1e-2 if bf16 else 2e-5, atol=1e-2 if bf16 else 1e-6)


def test_logits_in_pieces_are_the_same(library, monkeypatch, calls):
    model, ours = both(library)
    inputs, targets = tokens(model, 3, 24)
    loss, whole = gradients(ours, inputs, targets)
    assert calls.count("entropy") == 1
    calls.clear()
    monkeypatch.setattr(fused, "_LOGITS", 70 * 4 * 11)  # 72 positions: six times eleven, and six
    again, pieces = gradients(ours, inputs, targets)
    assert calls.count("entropy") == 7
    assert again == pytest.approx(loss, rel=1e-6)
    assert error(pieces, whole) < 1e-5


@pytest.mark.parametrize("instructions", ["this processor's", "-mno-avx512bf16", "-mno-avx512f"])
def test_bf16_is_rounded_as_torch_does_it(library, tmp_path, monkeypatch, instructions):
    """Ties, the largest numbers, infinities and what is no number; below the normal numbers 0 will do."""
    if instructions.startswith("-m"):
        monkeypatch.setenv("CC", f"gcc {instructions}")
    try:
        code = fused._typed(compiled("train", tmp_path))
    except KernelError as error:
        pytest.skip(f"this machine's compiler takes no {instructions}: {error}")
    bits = np.arange(0, 2**32, 4099, dtype=np.uint64)
    ties = np.arange(0, 2**16, dtype=np.uint64) << 16 | 0x8000
    ends = np.array([0, 2**31, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF], dtype=np.uint64)
    numbers = np.concatenate([bits, ties, ends]).astype(np.uint32)
    x = torch.from_numpy(numbers[: len(numbers) // 16 * 16 - 16].view(np.float32).copy())
    x = torch.cat([x, torch.from_numpy(ends.astype(np.uint32).view(np.float32)).repeat(2)])
    rounded, expected = torch.empty(len(x), dtype=torch.bfloat16), x.bfloat16()
    code.dropped(x.data_ptr(), rounded.data_ptr(), 1, len(x), 0.0, 0, 1)
    small = x.abs() < torch.finfo(torch.bfloat16).tiny
    assert torch.equal(rounded.isnan(), x.isnan())
    plain = ~small & ~x.isnan()
    assert torch.equal(rounded[plain], expected[plain])
    assert ((rounded[small] == 0) | (rounded[small] == expected[small])).all()


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_what_is_no_number_does_not_vanish(library, poison):
    model, ours = both(library)
    inputs, targets = tokens(model, 1, 24)
    for name in ("wte.weight", "h.1.attn.c_attn.weight", "h.0.mlp.c_fc.bias", "h.1.ln_2.weight"):
        broken = copy.deepcopy(ours)
        with torch.no_grad():
            broken.get_parameter(name).view(-1)[inputs[0, 0] * 32 if name == "wte.weight" else 5] = poison
        loss, found = gradients(broken, inputs, targets)
        assert not math.isfinite(loss)
        assert not all(gradient.isfinite().all() for gradient in found.values())


def test_a_loss_gives_its_gradients_once(library):
    _, ours = both(library)
    loss = ours.loss(*tokens(ours, 1, 5))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="given away by an earlier backward"):
        loss.backward()


# -- what stays with torch -----------------------------------------------------------------------------------


def change(model: GPT, how: str) -> GPT:
    if how == "an adapter":
        add_lora(model, rank=2, alpha=2.0, targets=["c_fc", "lm_head"], generator=torch.Generator().manual_seed(5))
    elif how == "float64":
        model.double()
    return model


@pytest.mark.parametrize(
    ("how", "shape"),
    [
        ("manual", dict(attention="manual")),
        ("alibi", dict(position="alibi")),
        ("narrow heads", dict(n_head=4)),
        ("grouped queries", dict(n_kv_head=1)),
        ("swiglu", dict(mlp="swiglu")),
        ("an adapter", dict(tied_head=False)),
        ("float64", {}),
    ],
)
def test_another_model_is_torchs(library, how, shape, calls):
    """To the last bit, with the head's loss too where that is another one."""
    model, ours = both(library, **shape)
    model, ours = change(model, how), change(ours, how)
    inputs, targets = tokens(model, 2, 24)
    losses = []
    for m in (model, ours):
        torch.manual_seed(6)
        m.train()
        states = m.hidden(inputs)
        losses.append(states.square().sum())
        losses[-1].backward()
    assert torch.equal(*losses)
    mine = dict(model.named_parameters())
    assert all(p.grad is None or torch.equal(p.grad, mine[name].grad) for name, p in ours.named_parameters())
    assert calls == []
    ours.loss(inputs, targets)
    assert set(calls) <= {"entropy"} if how not in ("an adapter", "float64") else calls == []


def test_documents_and_a_cache_are_torchs(library, calls):
    model, ours = both(library)
    inputs, targets = tokens(model, 2, 24)
    documents = (torch.arange(24) // 10).expand(2, -1)
    assert torch.equal(ours(inputs, documents_BT=documents), model(inputs, documents_BT=documents))
    with torch.no_grad():
        caches = [m.new_cache(2, 24) for m in (model, ours)]
        assert torch.equal(*(m.hidden(inputs, cache) for m, cache in zip((model, ours), caches, strict=True)))
    assert calls == []
    wanted = targets > 30
    found = ours.loss(inputs, targets, documents_BT=documents, wanted_BT=wanted)
    expected = F.cross_entropy(model(inputs, documents_BT=documents, wanted_BT=wanted), targets[wanted], reduction="sum")
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_evaluating_a_model_with_dropout_needs_no_torch(library, calls):
    model, ours = both(library, dropout=0.5)
    inputs, _ = tokens(model, 2, 24)
    torch.testing.assert_close(ours.eval()(inputs), model.eval()(inputs), rtol=1e-5, atol=1e-5)
    assert "attend" in calls


def test_a_damaged_library_is_made_again(library, tmp_path):
    (whole,) = (library / "kernels").iterdir()
    damaged = tmp_path / "kernels" / whole.name
    damaged.parent.mkdir()
    damaged.write_bytes(b"\0" * 1000)  # as a machine that lost power may leave it
    assert compiled("train", tmp_path).attention_scratch(1, 16, 0) > 0
    assert len(damaged.read_bytes()) > 1000


def test_scratch_is_for_as_many_threads_as_compute(library):
    """Where OpenMP is not torch's own it may have more: emulated by telling it so behind torch's back."""
    _, ours = both(library)
    inputs, _ = tokens(ours, 3, 24)
    expected = ours(inputs)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    openmp = ctypes.CDLL(fused._library._name)
    openmp.omp_set_num_threads(8)
    try:
        x, y = torch.randn(3 * 24, 96), torch.empty(3 * 24, 32)
        sums, size = torch.empty(3, 2, 24), fused._library.attention_scratch(24, 16, 0)
        guarded = torch.zeros(1 + 7, size)
        tensors = (None if t is None else t.data_ptr() for t in (x, None, None))
        structure = fused._Attention(*tensors, 3, 24, 2, 16, 1, 0.0, 0, 0, 0)
        fused._library.attend(ctypes.byref(structure), y.data_ptr(), sums.data_ptr(), guarded.data_ptr())
        assert not guarded[1:].any()
    finally:
        openmp.omp_set_num_threads(before)
        torch.set_num_threads(before)
    torch.testing.assert_close(ours(inputs), expected)


def test_a_target_outside_the_vocabulary_is_an_error(library):
    _, ours = both(library)
    inputs, targets = tokens(ours, 2, 24)
    targets[1, 3] = 70
    with pytest.raises(IndexError, match="a target is token 70, of 70 in the vocabulary"):
        ours.loss(inputs, targets)


def test_without_gradients_the_loss_makes_none(library, calls, monkeypatch):
    _, ours = both(library)
    inputs, targets = tokens(ours, 2, 24)
    expected = ours.loss(inputs, targets).item()
    made = []
    monkeypatch.setattr(torch, "mm", lambda *a, mm=torch.mm, **k: made.append(a) or mm(*a, **k))
    with torch.no_grad():
        assert ours.loss(inputs, targets).item() == pytest.approx(expected)
    assert len(made) == 1  # the logits; with gradients it is two


def test_without_a_compiler_it_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    model = make()
    with caplog.at_level(logging.WARNING):
        assert not fused.accelerate(model, tmp_path)
    assert "through torch alone: there is no C compiler" in caplog.text
    assert not model.fused


def test_a_marked_model_can_be_copied(library):
    _, ours = both(library)
    inputs, targets = tokens(ours, 2, 24)
    assert copy.deepcopy(ours).loss(inputs, targets).item() == ours.loss(inputs, targets).item()


def test_the_task_takes_the_loss_from_the_model(library, calls):
    from gpt2x.data.batch import Batch

    class Tokenizer:
        def token_lengths(self):
            return [1] * 70

    task = LanguageModeling(Tokenizer(), {})
    model, ours = both(library)
    inputs, targets = tokens(model, 2, 24)
    batch = Batch(inputs, targets, weight=48.0)
    assert task.loss(ours, batch).item() == pytest.approx(task.loss(model, batch).item(), rel=1e-6)
    assert "entropy" in calls
    padded = torch.where(torch.arange(24) < 20, targets, -100)
    batch = Batch(inputs, padded, weight=40.0, lengths=torch.tensor([20, 20]))
    assert task.loss(ours, batch).item() == pytest.approx(task.loss(model, batch).item(), rel=1e-6)
