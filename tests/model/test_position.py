"""Positions: each choice against its formula in loops, others' code, what it promises, and where it has to be told."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import POSITIONS, SHAPE, far_from_linear, gpt, some_tokens
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.gptj import modeling_gptj
from transformers.models.llama import modeling_llama

from gpt2x.model.classifier import Classifier
from gpt2x.model.gpt import GPT
from gpt2x.model.lora import add_lora, merge
from gpt2x.model.position import ALiBi, Rotary, rotate, slopes
from gpt2x.model.prepared import prepare

T, C, V = SHAPE["context_length"], SHAPE["n_embd"], SHAPE["vocab_size"]
NEW = POSITIONS[1:]
KINDS = ("manual", "sdpa")


# -- the whole model, told once more in loops ---------------------------------------------------------------------


def turned(x_H: torch.Tensor, t: int) -> torch.Tensor:
    """R_t x, with the matrix of equation 15 of RoFormer."""
    H = len(x_H)
    matrix = torch.zeros(H, H, dtype=torch.float64)
    for i in range(H // 2):
        a = t * 10000 ** (-2 * i / H)
        matrix[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = torch.tensor(
            [[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]], dtype=torch.float64
        )
    return matrix @ x_H


SLOPES = [1 / 4, 1 / 16, 1 / 64, 1 / 256]  # of four heads: 2^-2, 2^-4, ...


@torch.no_grad()
def reference(model: GPT, tokens: list[int]) -> torch.Tensor:
    """Logits (T, V) of one text, one score at a time."""
    N, H = model.n_head, C // model.n_head
    x = model.wte.weight[tokens]
    if model.position == "learned":
        x = x + model.wpe.weight[: len(tokens)]
    for block in model.h:
        q, k, v = block.attn.c_attn(block.ln_1(x)).split(C, dim=-1)
        heads = torch.zeros_like(x)
        for n in range(N):
            own = slice(n * H, (n + 1) * H)
            for i in range(len(tokens)):
                scores = []
                for j in range(i + 1):
                    if model.position == "rope":
                        score = turned(q[i, own], i) @ turned(k[j, own], j) / math.sqrt(H)
                    else:
                        score = q[i, own] @ k[j, own] / math.sqrt(H)
                    scores.append(score - SLOPES[n] * (i - j) if model.position == "alibi" else score)
                heads[i, own] = torch.stack(scores).softmax(0) @ v[: i + 1, own]
        x = x + block.attn.c_proj(heads)
        x = x + block.mlp(block.ln_2(x))
    return model.ln_f(x) @ model.wte.weight.T


@pytest.mark.parametrize("attention", KINDS)
@pytest.mark.parametrize("position", POSITIONS)
def test_logits_are_those_of_the_formulas(position, attention):
    model = far_from_linear(gpt(position=position, attention=attention, n_layer=2)).double().eval()
    tokens = some_tokens(batch=1, length=9)
    logits, expected = model(tokens)[0].detach(), reference(model, tokens[0].tolist())
    exact = position != "rope"  # whose table of angles is fp32
    torch.testing.assert_close(logits, expected, atol=1e-10 if exact else 1e-5, rtol=0)
    for other in NEW:
        if other != position:
            model.position = other  # which the loops alone look at
            assert (reference(model, tokens[0].tolist()) - expected).abs().max() > 0.1


@pytest.mark.parametrize("position", POSITIONS)
def test_gradients_and_logits_of_both_kinds_of_attention_are_the_same(position):
    manual, sdpa = (far_from_linear(gpt(position=position, attention=kind)).double() for kind in KINDS)
    outputs = [model(some_tokens()) for model in (manual, sdpa)]
    torch.testing.assert_close(*outputs, atol=1e-11, rtol=0)
    for logits in outputs:
        logits.sin().sum().backward()
    for (name, mine), other in zip(manual.named_parameters(), sdpa.parameters(), strict=True):
        assert mine.grad.abs().max() > 0
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-9, rtol=1e-9, msg=name)


@pytest.mark.parametrize("position", NEW)
@pytest.mark.parametrize("attention", KINDS)
@torch.no_grad()
def test_no_token_changes_a_logit_before_it(position, attention):
    model, tokens = far_from_linear(gpt(position=position, attention=attention)).double().eval(), some_tokens(batch=1)
    before = model(tokens)
    for t in range(T):
        changed = tokens.clone()
        changed[0, t] = (tokens[0, t] + 1) % V
        difference = (model(changed) - before).abs().amax(dim=-1)[0]
        assert difference[:t].sum() <= 1e-11
        assert difference[t] > 1e-3


# -- GPT-2 as it was ----------------------------------------------------------------------------------------------


def test_by_default_the_parameters_and_their_random_numbers_are_gpt_2_s():
    model, drawn = gpt(seed=3), torch.Generator().manual_seed(3)
    assert [name for name, _ in model.named_parameters()][:2] == ["wte.weight", "wpe.weight"]
    assert torch.equal(model.wte.weight, torch.empty(V, C).normal_(std=0.02, generator=drawn))
    assert torch.equal(model.wpe.weight, torch.empty(T, C).normal_(std=0.01, generator=drawn))
    assert torch.equal(model.h[0].attn.c_attn.weight, torch.empty(3 * C, C).normal_(std=0.02, generator=drawn))
    assert "position" not in str(model)


@pytest.mark.parametrize("position", NEW)
def test_the_others_have_no_vectors_of_positions_and_nothing_else_in_a_checkpoint(position):
    learned, model = gpt(), gpt(position=position)
    names = [name for name, _ in model.named_parameters()]
    assert names == [name for name, _ in learned.named_parameters() if name != "wpe.weight"]
    assert list(model.state_dict()) == names
    assert learned.n_parameters() - model.n_parameters() == T * C
    assert gpt(position=position, context_length=10 * T).n_parameters() == model.n_parameters()
    assert str(model).endswith(f"context {T}, position={position}")


@pytest.mark.parametrize("position", NEW)
@torch.no_grad()
def test_a_longer_context_computes_the_same_and_goes_further(position):
    """No parameter is missing; the context stays the limit of what is taken in."""
    model, longer = gpt(position=position).eval(), gpt(position=position, context_length=3 * T).eval()
    longer.load_state_dict(model.state_dict())
    tokens = some_tokens(length=2 * T)
    torch.testing.assert_close(longer(tokens)[:, :T], model(tokens[:, :T]))
    with pytest.raises(ValueError, match=f"{2 * T} tokens do not fit the model's context of {T}"):
        model(tokens)


# -- rotary -------------------------------------------------------------------------------------------------------


def test_turning_is_gpt_j_s():
    x_BTNH = torch.randn(2, 40, 3, 16, dtype=torch.float64)
    table = modeling_gptj.create_sinusoidal_positions(40, 16).double()
    sin, cos = table.expand(2, -1, -1).chunk(2, dim=-1)
    expected = modeling_gptj.apply_rotary_pos_emb(x_BTNH, sin, cos).transpose(1, 2)
    turns = Rotary(head_width=16, context_length=40).double()(torch.arange(40))
    torch.testing.assert_close(rotate(x_BTNH.transpose(1, 2), turns), expected, atol=1e-5, rtol=0)


def test_turning_is_llama_s_with_the_numbers_of_a_head_in_another_order():
    q, k = torch.randn(2, 2, 3, 40, 16, dtype=torch.float64).unbind()
    angles = torch.arange(40)[:, None] * 10000.0 ** -(torch.arange(8) / 8).double()
    cos, sin = (f(torch.cat([angles, angles], -1))[None] for f in (torch.cos, torch.sin))
    halves = torch.cat([torch.arange(0, 16, 2), torch.arange(1, 16, 2)])
    theirs = modeling_llama.apply_rotary_pos_emb(q[..., halves], k[..., halves], cos, sin)
    turns = Rotary(head_width=16, context_length=40).double()(torch.arange(40))
    for mine, other in zip((q, k), theirs, strict=True):
        torch.testing.assert_close(rotate(mine, turns)[..., halves], other, atol=1e-5, rtol=0)


@settings(max_examples=60)
@given(
    width=st.integers(1, 40),
    places=st.lists(st.integers(0, 400), min_size=2, max_size=2),
    shift=st.integers(0, 600),
    seed=st.integers(0, 999),
)
def test_a_score_depends_on_the_distance_alone_and_lengths_stay(width, places, shift, seed):
    H, drawn = 2 * width, torch.Generator().manual_seed(seed)
    q, k = (torch.randn(1, 1, 1, H, dtype=torch.float64, generator=drawn) for _ in range(2))
    rotary = Rotary(head_width=H, context_length=1001).double()

    def score(i: int, j: int) -> float:
        return (rotate(q, rotary(torch.tensor([i]))) * rotate(k, rotary(torch.tensor([j])))).sum().item()

    i, j = places
    size = (q.norm() * k.norm()).item()
    assert abs(score(i, j) - score(i + shift, j + shift)) < 1e-6 * size
    assert rotate(q, rotary(torch.tensor([i]))).norm().item() == pytest.approx(q.norm().item(), rel=1e-6)
    assert score(i, i) == pytest.approx((q * k).sum().item(), abs=1e-6 * size)


def test_the_angles_are_exact_far_out_and_the_rotation_is_in_fp32():
    rotary = Rotary(head_width=64, context_length=4096)
    for t, i in ((4095, 0), (4095, 31), (1023, 1), (1, 0)):
        angle = t * 10000 ** (-2 * i / 64)
        assert rotary.turns[t, i].tolist() == pytest.approx([math.cos(angle), math.sin(angle)], abs=1e-7)
    x, turns = torch.randn(2, 3, 50, 64).bfloat16(), rotary(torch.arange(4046, 4096))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = rotate(x, turns)
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(rounded, rotate(x.float(), turns).bfloat16())  # rounded once, at the end


def test_an_odd_head_cannot_be_turned():
    with pytest.raises(ValueError, match="a head is 3 wide"):
        gpt(n_embd=12, position="rope")


# -- ALiBi --------------------------------------------------------------------------------------------------------


def test_the_biases_of_two_heads_by_hand():
    hidden = float("-inf")
    expected = [
        [[0, hidden, hidden], [-1 / 16, 0, hidden], [-2 / 16, -1 / 16, 0]],
        [[0, hidden, hidden], [-1 / 256, 0, hidden], [-2 / 256, -1 / 256, 0]],
    ]
    assert ALiBi(n_head=2)(torch.arange(3), 3).tolist() == [expected]
    rows = ALiBi(n_head=2)(torch.tensor([[2], [0]]), 3)
    assert rows.tolist() == [[[head[2]] for head in expected], [[head[0]] for head in expected]]


@pytest.mark.parametrize("n_head", [*range(1, 34), 40, 48, 64, 112])
def test_slopes_are_bloom_s(n_head):
    theirs = build_alibi_tensor(torch.ones(1, 2), n_head, torch.float32)[:, 0, 1]  # a slope times position 1
    torch.testing.assert_close(torch.tensor(slopes(n_head)), theirs, rtol=1e-5, atol=0)
    assert len(set(slopes(n_head))) == n_head


def test_the_paper_s_slopes():
    assert slopes(8) == [2**-i for i in range(1, 9)]
    assert slopes(16)[:4] == pytest.approx([2**-0.5, 2**-1, 2**-1.5, 2**-2])
    assert slopes(12) == pytest.approx([2**-i for i in range(1, 9)] + [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5])


# -- what each knows of the order ---------------------------------------------------------------------------------


@pytest.mark.parametrize("position", POSITIONS)
@torch.no_grad()
def test_one_layer_without_positions_sees_a_set_and_all_others_an_order(position):
    for n_layer in (1, 2):
        model = far_from_linear(gpt(position=position, n_layer=n_layer)).double().eval()
        tokens = some_tokens(batch=1)
        mixed = torch.cat([tokens[:, torch.randperm(T - 1, generator=torch.Generator().manual_seed(0))], tokens[:, -1:]], 1)
        difference = (model(tokens) - model(mixed))[0, -1].abs().max()
        if position == "none" and n_layer == 1:
            assert difference < 1e-12
        else:
            assert difference > 1e-3


# -- every way to compute it --------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("attention", KINDS)
def test_the_only_position_of_packed_rows_is_what_all_give_there(position, attention):
    documents, at = (torch.arange(T) // 10).expand(4, T), torch.tensor([0, 9, 10, T - 1])
    results = []
    for only in (True, False):
        model, tokens = far_from_linear(gpt(position=position, attention=attention)).double(), some_tokens(batch=4)
        states = model.hidden(tokens, documents_BT=documents, at_B=at if only else None)
        states = states if only else states[torch.arange(4), at][:, None]
        states.sin().sum().backward()
        results.append([states, *(parameter.grad for parameter in model.parameters())])
    for mine, whole in zip(*results, strict=True):
        torch.testing.assert_close(mine, whole, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("position", NEW)
def test_an_adapter_is_the_merged_model(position):
    model = Classifier(far_from_linear(gpt(position=position)), n_classes=3, pooling="last_token").double().eval()
    add_lora(model, rank=2, alpha=4.0, targets=["c_attn", "c_fc"], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                parameter.normal_(std=0.3)
    tokens, lengths = some_tokens(), torch.tensor([3, T, 11])
    adapted = model(tokens, lengths).detach()
    merge(model)
    torch.testing.assert_close(model(tokens, lengths).detach(), adapted, atol=1e-9, rtol=0)


@pytest.mark.parametrize("position", NEW)
def test_dynamo_traces_it_whole(position):
    """torch.compile without a graph break; the eager backend shows that without a compiler."""
    torch._dynamo.reset()  # it gives up on code that it has seen in too many forms
    model, tokens = far_from_linear(gpt(position=position)), some_tokens()
    for more in ({}, {"documents_BT": (torch.arange(T) // 10).expand_as(tokens)}):
        model.zero_grad()
        traced = torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True)
        for each in (traced, model):
            each(tokens, **more).logsumexp(-1).sum().backward()
        for mine, other in zip(traced.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, other.grad, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("position", NEW)
@pytest.mark.parametrize("attention", KINDS)
@torch.no_grad()
def test_bf16_is_near(position, attention):
    model, tokens = far_from_linear(gpt(position=position, attention=attention)).eval(), some_tokens()
    expected = model(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(tokens)
    assert 0 < (rounded.float() - expected).abs().max() < 0.1  # logits reach 3; the wrong positions are off by that


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("n_head", [2, 4, 8])
@torch.no_grad()
def test_the_kernel_computes_heads_of_any_width(kernels, position, n_head):
    model = far_from_linear(gpt(position=position, n_head=n_head)).eval()
    expected = copy.deepcopy(model).double()(some_tokens())
    prepared = prepare(model, cache=kernels)
    assert type(prepared.h[0]).__name__ == "_KernelBlock"
    torch.testing.assert_close(prepared(some_tokens()).double(), expected, atol=1e-4, rtol=0)
