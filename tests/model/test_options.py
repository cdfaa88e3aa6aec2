"""What a model does otherwise than GPT-2: each option against its formula, and together with all that a model is used for."""

from __future__ import annotations

import copy
import itertools
import logging
import math
from dataclasses import fields, replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from models import MODERN, SHAPE, VARIANTS, far_from_linear, gpt, some_tokens
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama import modeling_llama

from gpt2x.config.compose import compose
from gpt2x.config.instantiate import instantiate
from gpt2x.config.option import ConfigError
from gpt2x.config.schema import TrainConfig
from gpt2x.model.classifier import Classifier
from gpt2x.model.config import GPT2, GPTConfig, Variant
from gpt2x.model.gpt import GPT, MLP
from gpt2x.model.lora import add_lora, merge
from gpt2x.model.prepared import WEIGHTS, prepare
from gpt2x.model.variants import norm, relu2, unit, why_not_gpt2
from gpt2x.training.config import MuonConfig

T, C, V = SHAPE["context_length"], SHAPE["n_embd"], SHAPE["vocab_size"]
IN_THE_KERNEL = ("ngrams", "norm", "relu2", "bias", "qk_norm", "softcap", "modern")


def make(name: str, **changes) -> GPT:
    return far_from_linear(gpt(**VARIANTS[name] | changes))


# -- the formulas, told once more in loops ------------------------------------------------------------------------


@torch.no_grad()
def reference(model: GPT, tokens: list[int]) -> Tensor:
    """Logits (T, V) of one text, one head at a time, from the weights alone."""
    does, N = model.variant, model.n_head
    H, K = C // N, does.n_kv_head or N
    slopes = [2 ** (-8 * (n + 1) / N) for n in range(N)]

    def rms(x: Tensor) -> Tensor:
        return x / ((x**2).mean(-1, keepdim=True) + 1e-5) ** 0.5

    def normed(layer, x: Tensor) -> Tensor:
        if does.norm == "rmsnorm":
            assert list(layer.parameters()) == []
            return rms(x)
        y = rms(x - x.mean(-1, keepdim=True)) * layer.weight
        return y + layer.bias if does.bias else y

    def linear(layer, x: Tensor) -> Tensor:
        assert (layer.bias is not None) == does.bias
        return x @ layer.weight.T + layer.bias if does.bias else x @ layer.weight.T

    def turned(x_TH: Tensor) -> Tensor:
        out = x_TH.clone()
        for t in range(len(x_TH)):
            for i in range(H // 2):
                a = t * 10000 ** (-2 * i / H)
                x, y = x_TH[t, 2 * i], x_TH[t, 2 * i + 1]
                out[t, 2 * i], out[t, 2 * i + 1] = x * math.cos(a) - y * math.sin(a), x * math.sin(a) + y * math.cos(a)
        return out

    x = model.wte.weight[tokens]
    if does.position == "learned":
        x = x + model.wpe.weight[: len(tokens)]
    for i, table in enumerate(model.ngrams.tables if does.ngram_embeddings else []):
        length, rows = i + 2, min(does.ngram_embeddings[i], (V + 1) ** (i + 2))
        width = C // len(does.ngram_embeddings)
        assert table.weight.shape == (rows, width)
        for t in range(len(tokens)):
            key = 0
            for place in range(t, t - length, -1):
                key = (key * (V + 1) + (tokens[place] + 1 if place >= 0 else 0)) % (2**31 - 1)
            if rows < (V + 1) ** length:
                key = key * 1_000_003 % (2**31 - 1)
            x[t, i * width : (i + 1) * width] += table.weight[key % rows]
    x0 = x
    for block in model.h:
        if does.residual_scalars:
            x = block.mix.x.item() * x + block.mix.x0.item() * x0
        h, out = normed(block.ln_1, x), []
        row = linear(block.attn.c_attn, h)
        for n in range(N):
            k = n // (N // K)  # the head of keys and values that this head shares
            query, key, value = (row[:, H * place : H * (place + 1)] for place in (n, N + k, N + K + k))
            if does.qk_norm:
                query, key = rms(query), rms(key)
            if block.attn.value is not None:
                own = block.attn.value
                vector = own.table.weight[tokens] if does.value_embeddings == "table" else x0 @ own.projection.weight.T
                value = value + 2 / (1 + (-h @ own.gate.weight[k]).exp())[:, None] * vector[:, H * k : H * (k + 1)]
            if does.position == "rope":
                query, key = turned(query), turned(key)
            scores = query @ key.T / math.sqrt(H)
            if does.position == "alibi":
                scores -= slopes[n] * (torch.arange(len(tokens))[:, None] - torch.arange(len(tokens)))
            out.append(torch.stack([scores[i, : i + 1].softmax(0) @ value[: i + 1] for i in range(len(tokens))]))
        x = x + linear(block.attn.c_proj, torch.cat(out, dim=1))
        hidden = linear(block.mlp.c_fc, normed(block.ln_2, x))
        if does.mlp == "relu2":
            hidden = torch.where(hidden > 0, hidden**2, 0.0)
        elif does.mlp == "swiglu":
            a, b = hidden.chunk(2, dim=1)
            hidden = a / (1 + (-a).exp()) * b
        else:
            hidden = 0.5 * hidden * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
        x = x + linear(block.mlp.c_proj, hidden)
    logits = normed(model.ln_f, x) @ model.wte.weight.T
    return logits if does.softcap is None else does.softcap * torch.tanh(logits / does.softcap)


@pytest.mark.parametrize("attention", ["manual", "sdpa"])
@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_logits_are_those_of_the_formulas(name, attention):
    """In float64; only the table of rotary angles is fp32, and moves them by 1e-6."""
    model, tokens = make(name, attention=attention).double().eval(), some_tokens(batch=1, length=11)
    logits, expected = model(tokens)[0], reference(model, tokens[0].tolist())
    torch.testing.assert_close(logits, expected, atol=1e-5 if model.position == "rope" else 1e-10, rtol=0)
    assert expected.std() > 0.2


@pytest.mark.parametrize("changed", [f.name for f in fields(Variant)])
@torch.no_grad()
def test_the_comparison_would_notice_each_option(changed):
    """Of a model that does everything otherwise; an option without weights is put back, one with them is doubled."""
    model, tokens = make("others", softcap=3.0, qk_norm=True, norm="rmsnorm", bias=False).double().eval(), some_tokens()[0, :9]
    before = reference(model, tokens.tolist())
    if changed in ("position", "norm", "mlp", "qk_norm", "softcap"):
        setattr(model.variant, changed, {"position": "none", "norm": "layernorm", "mlp": "gelu"}.get(changed))
        if changed == "norm":
            for layer in (model.ln_f, *(layer for block in model.h for layer in (block.ln_1, block.ln_2))):
                layer.weight = nn.Parameter(torch.ones(C, dtype=torch.float64))
    else:
        ends = {
            "bias": "c_fc.weight",
            "ngram_embeddings": "tables.0.weight",
            "n_kv_head": "c_attn.weight",
            "residual_scalars": "mix.x0",
        }
        for name, parameter in model.named_parameters():
            if name.endswith(ends.get(changed, "projection.weight")):
                parameter.mul_(2)
    assert (reference(model, tokens.tolist()) - before).abs().max() > 1e-3


@torch.no_grad()
def test_parts_are_those_of_llama():
    """Its norm with weights of one; it computes that in fp32."""
    torch.manual_seed(0)
    x = torch.randn(5, C)
    torch.testing.assert_close(norm(Variant(norm="rmsnorm"), C)(x), modeling_llama.LlamaRMSNorm(C, eps=1e-5)(x))
    ours = MLP(n_embd=C, dropout=0.0, variant=Variant(mlp="swiglu", bias=False))
    theirs = modeling_llama.LlamaMLP(LlamaConfig(hidden_size=C, intermediate_size=ours.c_proj.in_features, hidden_act="silu"))
    gate, up = ours.c_fc.weight.chunk(2)
    theirs.load_state_dict({"gate_proj.weight": gate, "up_proj.weight": up, "down_proj.weight": ours.c_proj.weight})
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("mine", "torchs"),
    [(unit, lambda x: F.rms_norm(x, x.shape[-1:], eps=1e-5)), (relu2, lambda x: F.relu(x).square())],
)
def test_gradients_written_by_hand_are_those_of_torch(mine, torchs, dtype):
    """Of rows of every size, zeros too; to the rounding of the type, and in bf16 no further from the exact ones than torch."""
    generator = torch.Generator().manual_seed(0)
    x, g = (torch.randn(4, 3, 7, 16, dtype=torch.float64, generator=generator) for _ in "xg")
    x = (x * 10.0 ** torch.arange(-3, 1)[:, None, None, None]).transpose(1, 2)
    x[0, 0] = 0
    x = x.to(dtype).double()  # what is compared has the same inputs
    outcomes = []
    for function, type in ((mine, dtype), (torchs, dtype), (torchs, torch.float64)):
        inputs = x.to(type).requires_grad_()
        y = function(inputs)
        (gradient,) = torch.autograd.grad(y, inputs, g.transpose(1, 2).to(dtype).to(type))
        assert y.dtype == gradient.dtype == type
        outcomes.append([y.double(), gradient.double()])
    for ours, theirs, exact in zip(*outcomes, strict=True):
        error, allowed = (
            (values - exact).abs() / exact.abs().amax(-1, keepdim=True).clamp(min=1e-9) for values in (ours, theirs)
        )
        assert error.max() <= max(2 * allowed.max().item(), 4 * torch.finfo(dtype).eps)


# -- sizes, names and first weights -------------------------------------------------------------------------------


def test_by_default_a_model_is_gpt_2():
    names = ["wte.weight", "wpe.weight"]
    for i in range(SHAPE["n_layer"]):
        layers = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
        names += [f"h.{i}.{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    model = gpt()
    assert list(model.state_dict()) == [*names, "ln_f.weight", "ln_f.bias"]
    assert model.variant == GPT2
    assert why_not_gpt2(model) is None
    assert gpt(n_kv_head=SHAPE["n_head"]).variant == GPT2  # as many as it has
    assert all(getattr(GPTConfig(n_layer=1, n_head=1, n_embd=1), f.name) == getattr(GPT2, f.name) for f in fields(Variant))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_says_what_it_is_and_is_told_from_gpt_2(name):
    model = gpt(**VARIANTS[name])
    assert all(f"{option}=" in str(model) and f"{option}=" in why_not_gpt2(model) for option in VARIANTS[name])
    assert why_not_gpt2(Classifier(model, n_classes=2, pooling="mean")) == why_not_gpt2(model)


@pytest.mark.parametrize("n_embd", [32, 64, 128, 192, 256, 384, 768, 1600])
def test_the_gated_mlp_has_as_many_parameters(n_embd):
    plain, gated = (
        sum(p.numel() for p in MLP(n_embd=n_embd, dropout=0.0, variant=Variant(mlp=kind)).parameters())
        for kind in ("gelu", "swiglu")
    )
    assert gated == pytest.approx(plain, rel=0.04 if n_embd < 128 else 0.01)


def test_the_modern_model_is_as_wide_and_deep_as_nanogpt_s_small_recipe():
    """4 blocks of 12 x 128 x 128 weights, without biases, norms' weights or positions, and 66 characters; beside them the
    tables, of 67 x 67 pairs and of 16,384 longer runs, all a quarter as wide."""
    config = compose("train", TrainConfig, ["model=modern_nano"]).model
    tables = [16384] * 4
    assert config.changes() == MODERN | {"ngram_embeddings": tables}
    plain = replace(config, ngram_embeddings=[])
    assert instantiate(plain, vocab_size=66).n_parameters() == 4 * 12 * 128**2 + 66 * 128 == 794_880
    assert instantiate(config, vocab_size=66).n_parameters() == 794_880 + 32 * (67**2 + 3 * 16384)
    recipe = compose("train", TrainConfig, ["experiment=shakespeare_char_cpu"]).model
    shape = ("n_layer", "n_head", "n_embd", "context_length", "dropout", "tied_head")
    assert [getattr(config, name) for name in shape] == [getattr(recipe, name) for name in shape]


def test_zero_projections_are_all_that_differs_from_gpt_2_s_first_weights():
    first, zero = gpt(), gpt(init="gpt2_zero")
    for (name, mine), theirs in zip(zero.named_parameters(), first.parameters(), strict=True):
        assert torch.equal(mine, torch.zeros_like(theirs) if name.endswith("c_proj.weight") else theirs), name
    tokens = some_tokens()
    x = zero.wte(tokens) + zero.wpe(torch.arange(T))
    assert torch.equal(zero.hidden(tokens), zero.ln_f(x))  # no block adds anything


@pytest.mark.parametrize("init", ["gpt2", "torch"])
def test_a_mix_and_a_gate_start_where_they_change_little(init):
    model = gpt(**VARIANTS["all"], init=init)
    assert [(block.mix.x.item(), block.mix.x0.item()) for block in model.h] == [(1, 0)] * SHAPE["n_layer"]
    assert [block.attn.value is not None for block in model.h] == [True, False, True]


def test_tables_of_runs_share_the_width_and_have_no_more_rows_than_there_are_runs():
    model = gpt(ngram_embeddings=[10**6, 500])
    assert [tuple(table.weight.shape) for table in model.ngrams.tables] == [((V + 1) ** 2, C // 2), (500, C // 2)]
    with pytest.raises(ConfigError, match=r"(?s)ngram_embeddings=.9,9,9.: the embeddings stand side by side.* give 1, 2, 4, 8"):
        GPTConfig(n_layer=1, n_head=4, n_embd=C, ngram_embeddings=[9, 9, 9]).check()


@torch.no_grad()
def test_runs_of_large_vocabularies_are_spread_over_the_rows():
    """Of 20,000 runs of GPT-2's vocabulary, random or neighbouring, no row gets many more than chance gives it."""
    ngrams = gpt(vocab_size=50257, ngram_embeddings=[4096, 4096]).ngrams
    for table in ngrams.tables:
        table.weight.copy_(torch.arange(4096.0)[:, None].expand_as(table.weight))
    generator = torch.Generator().manual_seed(0)
    for tokens in (torch.randint(50257, (1, 20_000), generator=generator), torch.arange(20_000)[None] * 2):
        places = torch.arange(20_000)[None]
        rows = ngrams(tokens, places, places)[0][:, [0, -1]].long()
        for column in rows.T:
            assert column.bincount(minlength=4096).max() < 40  # 4.9 on average


# -- learning -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_learns_and_both_kinds_of_attention_agree(name):
    gradients = []
    for attention in ("manual", "sdpa"):
        model = make(name, attention=attention).double()
        model(some_tokens()).sin().sum().backward()
        gradients.append(dict(model.named_parameters()))
    for key, parameter in gradients[0].items():
        assert parameter.grad.abs().max() > 1e-8, key
        torch.testing.assert_close(parameter.grad, gradients[1][key].grad, atol=1e-9, rtol=1e-9, msg=key)


@pytest.mark.parametrize("name", ["modern", "all", "others"])
def test_in_bfloat16_it_is_near_and_logits_are_capped_in_fp32(name):
    """As near as GPT-2 is, within a factor of three."""
    errors = []
    for model in (make(name), far_from_linear(gpt())):
        tokens = some_tokens()
        exact = model(tokens)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = model(tokens)
        assert rounded.dtype == (torch.bfloat16 if model.variant.softcap is None else torch.float32)
        errors.append(((rounded - exact).std() / exact.std()).item())
        rounded.float().square().mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert 0 < errors[0] < 3 * errors[1]


@pytest.mark.parametrize("name", ["modern", "all", "others"])
def test_dynamo_traces_it_whole(name):
    torch._dynamo.reset()
    model, tokens = make(name), some_tokens()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(tokens), model(tokens))


# -- every way to compute it --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
@settings(max_examples=8)
@given(
    cuts=st.lists(st.integers(1, T - 1), max_size=5, unique=True), lengths=st.lists(st.integers(1, 12), min_size=1, max_size=3)
)
@torch.no_grad()
def test_with_a_cache_the_logits_are_those_without(name, cuts, lengths):
    """In float64, to another order of the sums; in pieces, and of rows of unequal lengths."""
    model, tokens = make(name).double().eval(), some_tokens()
    whole, ends, cache = model(tokens), [0, *sorted(cuts), T], model.new_cache(3, T)
    pieces = [model.logits(model.hidden(tokens[:, a:b], cache)) for a, b in itertools.pairwise(ends)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-11, rtol=0)

    cache, rows = model.new_cache(len(lengths), T), range(len(lengths))
    model.hidden(tokens[: len(lengths), : max(lengths)], cache)
    cache.lengths = list(lengths)
    more = torch.stack([tokens[b, n : n + 2] for b, n in enumerate(lengths)])
    logits = model.logits(model.hidden(more, cache))
    torch.testing.assert_close(logits, torch.stack([whole[b, lengths[b] : lengths[b] + 2] for b in rows]), atol=1e-11, rtol=0)


def test_shared_keys_and_values_are_kept_once():
    cache = gpt(n_kv_head=1).new_cache(2, 10)
    assert cache.keys.shape == cache.values.shape == (SHAPE["n_layer"], 2, 1, 10, C // SHAPE["n_head"])


@pytest.mark.parametrize("name", VARIANTS)
def test_packed_texts_and_a_single_position_are_what_each_text_gives_alone(name):
    model, tokens = make(name).double(), some_tokens(batch=4)
    documents, at = (torch.arange(T) // 10).expand(4, T), torch.tensor([0, 9, 10, T - 1])
    packed = model.hidden(tokens, documents_BT=documents)
    alone = [model.hidden(part) for part in tokens.split(10, dim=1)]
    torch.testing.assert_close(packed, torch.cat(alone, dim=1), atol=1e-10, rtol=0)
    only = model.hidden(tokens, documents_BT=documents, at_B=at)
    torch.testing.assert_close(only, packed[torch.arange(4), at][:, None], atol=1e-10, rtol=0)
    wanted = [p for p in model.parameters() if p is not model.wte.weight]
    grads = [torch.autograd.grad(x.sin().sum(), wanted) for x in (only, packed[torch.arange(4), at])]
    for mine, whole in zip(*grads, strict=True):
        torch.testing.assert_close(mine, whole, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_going_on_from_what_the_lower_blocks_made_gives_the_same(name):
    model, tokens = make(name).double().eval(), some_tokens()
    whole = model(tokens)
    for n in range(SHAPE["n_layer"] + 1):
        torch.testing.assert_close(model(tokens, below=model.below(tokens, n)), whole, atol=1e-11, rtol=0)


@pytest.mark.parametrize("name", ["modern", "all", "others"])
def test_an_adapter_is_the_merged_model(name):
    model = Classifier(make(name), n_classes=3, pooling="last_token").double().eval()
    targets = ["c_attn", "c_fc", "c_proj", *(["value.gate"] if name != "modern" else [])]
    add_lora(model, rank=2, alpha=4.0, targets=targets, generator=torch.Generator().manual_seed(0))
    plain = model(some_tokens(), torch.tensor([3, T, 11])).detach()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("lora_B"):
                parameter.normal_(std=0.3)
    adapted = model(some_tokens(), torch.tensor([3, T, 11])).detach()
    assert (adapted - plain).abs().max() > 0.01
    merge(model)
    torch.testing.assert_close(model(some_tokens(), torch.tensor([3, T, 11])).detach(), adapted, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", ["modern", "all", "others", "projection"])
def test_nothing_is_bound_to_the_processor(name):
    """Moved to torch's meta device, which computes shapes alone, any tensor that stayed behind would be an error."""
    model, tokens = gpt(**VARIANTS[name]).to("meta"), torch.zeros(3, T, dtype=torch.long, device="meta")
    optimizer = instantiate(MuonConfig(), model)
    model(tokens, documents_BT=tokens).sum().backward()
    with torch.no_grad():
        optimizer._step(optimizer.param_groups[0])
        cache = model.new_cache(3, T)
        model.hidden(tokens[:, :7], cache)
        cache.lengths = [7, 3, 5]
        assert model.logits(model.hidden(tokens[:, 7:9], cache)).device.type == "meta"


# -- prepared to generate -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", IN_THE_KERNEL)
@torch.no_grad()
def test_the_kernel_computes_what_the_model_does(kernels, name, weights):
    """And gives a text the same bits in pieces; the tolerances are those of GPT-2's in test_prepared.py."""
    model, tokens = make(name).eval(), some_tokens()
    expected = model(tokens)
    prepared = prepare(copy.deepcopy(model), weights=weights, cache=kernels)
    logits = prepared(tokens)
    assert type(prepared.h[0]).__name__ == "_KernelBlock"
    assert (logits - expected).abs().max() < {"fp32": 1e-5, "bf16": 0.1, "int8": 0.2}[weights] * max(1, expected.std())
    cache = prepared.new_cache(3, T)
    pieces = [prepared.logits(prepared.hidden(piece, cache)) for piece in tokens.split([7, 1, 1, T - 9], dim=1)]
    assert torch.equal(torch.cat(pieces, dim=1), logits)


@pytest.mark.parametrize("name", sorted(VARIANTS.keys() - set(IN_THE_KERNEL)))
@torch.no_grad()
def test_what_the_kernel_does_not_know_stays_with_torch_or_is_refused_by_name(kernels, name, caplog):
    model, tokens = make(name).eval(), some_tokens()
    expected = model(tokens)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(prepare(copy.deepcopy(model), cache=kernels)(tokens), expected)
    unknown = [option for option in VARIANTS[name] if f"it does not know model.{option}=" in caplog.text]
    assert unknown
    for weights in ("bf16", "int8"):
        with pytest.raises(ConfigError, match=f"weights={weights}: needs the kernel .* does not know model.{unknown[0]}="):
            prepare(copy.deepcopy(model), weights=weights, cache=kernels)
    rounded = prepare(copy.deepcopy(model), precision="bf16", cache=kernels)(tokens)
    assert 1e-4 < (rounded - expected).abs().max() < 0.2 * max(1, expected.std())
