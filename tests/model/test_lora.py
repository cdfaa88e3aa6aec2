"""LoRA: the function of the papers (written out here in another way) and of PEFT's layers, merged and unmerged the same."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from models import SHAPE, far_from_linear, gpt, some_tokens
from peft import LoraConfig
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import nn
from torch.utils.checkpoint import checkpoint

from gpt2x.config.option import ConfigError
from gpt2x.model.gpt import GPT
from gpt2x.model.lora import (
    LoRALinear,
    adapted_layers,
    adapter_parameters,
    add_lora,
    base_hash,
    merge,
    targeted,
)
from gpt2x.model.prepared import prepare
from gpt2x.training.config import AdamWConfig
from gpt2x.training.optimizer import adamw

KINDS = {
    "LoRA": {},
    "rsLoRA": {"rslora": True},
    "DoRA": {"dora": True},
    "rsLoRA and DoRA": {"rslora": True, "dora": True},
}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
ALL = ["c_attn", "c_proj", "c_fc"]


class Classifier(nn.Module):
    """The shape of a classifier, as far as LoRA knows it."""

    def __init__(self, classes: int = 3, bias: bool = True):
        super().__init__()
        self.gpt, self.score = gpt(), nn.Linear(SHAPE["n_embd"], classes, bias=bias)

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        return self.score(self.gpt.hidden(tokens_BT)[:, -1])


def with_lora(model: nn.Module, *, seed: int = 3, **changes) -> nn.Module:
    drawn = torch.Generator().manual_seed(seed)
    add_lora(model, **({"rank": 4, "alpha": 8.0, "targets": ALL} | changes), generator=drawn)
    return model


@torch.no_grad()
def trained(model: nn.Module, seed: int = 4) -> nn.Module:
    """As after a long training: B is far from zero, and so are the magnitudes from where they began."""
    generator = torch.Generator().manual_seed(seed)
    for layer in adapted_layers(model).values():
        layer.lora_B.copy_(torch.randn(layer.lora_B.shape, generator=generator))
        if layer.magnitude is not None:
            layer.magnitude.mul_(0.5 + torch.rand(layer.magnitude.shape, generator=generator))
    return model


def linear(inputs: int = 7, outputs: int = 5, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias=bias).double()


def peft_twin(layer: LoRALinear) -> PeftLinear:
    """PEFT's layer with the same weights."""
    plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None).to(layer.weight.dtype)
    plain.load_state_dict({"weight": layer.weight} | ({} if layer.bias is None else {"bias": layer.bias}))
    config = LoraConfig(use_rslora=layer.rslora, use_dora=layer.magnitude is not None, lora_dropout=layer.dropout)
    twin = PeftLinear(plain, "default", config, r=layer.rank, lora_alpha=layer.alpha).to(layer.weight.dtype)
    with torch.no_grad():
        for ours, theirs in pairs(layer, twin):
            theirs.copy_(ours)
    return twin


def pairs(layer: LoRALinear, twin: PeftLinear) -> list[tuple[nn.Parameter, nn.Parameter]]:
    found = [(layer.lora_A, twin.lora_A["default"].weight), (layer.lora_B, twin.lora_B["default"].weight)]
    if layer.magnitude is not None:
        found.append((layer.magnitude, twin.lora_magnitude_vector["default"].weight))
    return found


# -- one layer ---------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    inputs=st.integers(1, 20),
    outputs=st.integers(1, 20),
    rank=st.integers(1, 24),
    alpha=st.floats(0.1, 64),
    kind=st.sampled_from([*KINDS.values()]),
    bias=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_a_layer_is_its_formula_in_float64(inputs, outputs, rank, alpha, kind, bias, seed):
    layer = LoRALinear(linear(inputs, outputs, bias), rank=rank, alpha=alpha, **kind)
    torch.manual_seed(seed)
    with torch.no_grad():
        layer.lora_B.normal_()
        if layer.magnitude is not None:
            layer.magnitude.uniform_(0.1, 3)
    scale = alpha / (rank**0.5 if kind.get("rslora") else rank)
    weight = layer.weight + scale * sum(torch.outer(b, a) for b, a in zip(layer.lora_B.T, layer.lora_A))
    if kind.get("dora"):
        weight = torch.stack([m * row / row.square().sum().sqrt() for m, row in zip(layer.magnitude, weight)])
    x = torch.randn(2, 3, inputs, dtype=torch.float64)
    expected = torch.einsum("bti,oi->bto", x, weight) + (layer.bias if bias else 0)
    torch.testing.assert_close(layer(x), expected, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(layer.merged_weight(), weight, atol=1e-10, rtol=1e-10)


@kinds
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_outputs_and_gradients_are_peft_s(kind, bias, dropout):
    """With dropout too: both draw one mask for the same input."""
    layer = trained(nn.Sequential(LoRALinear(linear(bias=bias), rank=3, alpha=5, dropout=dropout, **kind)))[0]
    twin = peft_twin(layer)
    x = torch.randn(4, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    outputs = []
    for module, mine in ((layer, x.clone().requires_grad_()), (twin, x.clone().requires_grad_())):
        torch.manual_seed(11)
        y = module(mine)
        y.sin().sum().backward()
        outputs.append((y, mine.grad))
    torch.testing.assert_close(*outputs, atol=1e-12, rtol=1e-12)
    for ours, theirs in pairs(layer, twin):
        assert theirs.grad.abs().max() > 1e-3
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-12, rtol=1e-12)
    assert layer.weight.grad is None


def test_a_starts_as_in_peft():
    layer = LoRALinear(nn.Linear(40, 3), rank=6, alpha=1, generator=torch.Generator().manual_seed(5))
    expected = nn.init.kaiming_uniform_(torch.empty(6, 40), a=math.sqrt(5), generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(layer.lora_A.detach(), expected, atol=0, rtol=1e-6)
    assert not layer.lora_B.any()


def test_rslora_keeps_the_size_of_the_change_at_every_rank():
    """The theorem, measured: with B as random as A the change has a spread that does not fall with the rank."""
    x = torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
    spread = {}
    for rslora in (True, False):
        for rank in (4, 256):
            layer = LoRALinear(nn.Linear(64, 64), rank=rank, alpha=8, rslora=rslora)
            plain = layer(x)
            torch.manual_seed(rank)
            with torch.no_grad():
                layer.lora_B.normal_()
            spread[rslora, rank] = (layer(x) - plain).std().item()
    assert spread[True, 256] == pytest.approx(spread[True, 4], rel=0.2)
    assert spread[False, 256] == pytest.approx(spread[False, 4] / 8, rel=0.2)


@pytest.mark.parametrize("dora", [False, True])
def test_dropout_is_on_the_adapter_s_input_alone(dora):
    """The mean over many masks is what is computed without dropout, and the share that falls away is as asked."""
    layer = LoRALinear(nn.Linear(1, 1), rank=1, alpha=1, dropout=0.3, dora=dora)
    with torch.no_grad():
        for parameter, value in ((layer.weight, 2.0), (layer.bias, 5.0), (layer.lora_A, 1.0), (layer.lora_B, 1.0)):
            parameter.fill_(value)
        if dora:
            layer.magnitude.fill_(6.0)
    torch.manual_seed(0)
    y = layer(torch.ones(20_000, 1))
    whole = 6.0 if dora else 3.0  # of which the base's 2 never falls away
    kept = 2 + (whole - 2) / 0.7
    assert sorted(set(y.flatten().tolist())) == pytest.approx([7.0, 5 + kept])
    assert (y == 7.0).float().mean().item() == pytest.approx(0.3, abs=0.02)  # 6 standard errors
    assert layer.eval()(torch.ones(1, 1)).item() == pytest.approx(5 + whole)


def test_a_row_of_zeros_is_no_division_by_zero():
    plain = linear()
    with torch.no_grad():
        plain.weight[2] = 0
    layer = LoRALinear(plain, rank=2, alpha=2, dora=True)
    x = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert torch.equal(y, F.linear(x, plain.weight, plain.bias))
    assert all(torch.isfinite(p.grad).all() for p in (x, layer.lora_A, layer.lora_B, layer.magnitude))


# -- a model -----------------------------------------------------------------------------------------------------


@kinds
def test_a_new_adapter_changes_no_bit(kind):
    model, tokens = far_from_linear(gpt()).eval(), some_tokens()
    before = model(tokens)
    assert torch.equal(with_lora(model, **kind)(tokens), before)


def test_a_new_adapter_draws_from_its_generator_alone():
    models = [gpt() for _ in range(3)]
    before = torch.get_rng_state()
    first, second, other = (with_lora(model, seed=seed) for model, seed in zip(models, (3, 3, 4)))
    assert torch.equal(torch.get_rng_state(), before)
    for name in adapter_parameters(first):
        assert torch.equal(first.get_parameter(name), second.get_parameter(name))
        assert torch.equal(first.get_parameter(name), other.get_parameter(name)) == name.endswith("lora_B")


@kinds
@pytest.mark.parametrize("tied_head", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-3)])
def test_merged_is_unmerged(kind, tied_head, dtype, tolerance):
    """In float32 the logits, of sizes up to hundreds, may differ by the roundings of three layers."""
    model = far_from_linear(gpt(tied_head=tied_head)).to(dtype).eval()
    targets = ALL if tied_head else [*ALL, "lm_head"]
    tokens, plain = some_tokens(), model(some_tokens())
    trained(with_lora(model, targets=targets, **kind))
    unmerged, names = model(tokens), adapter_parameters(model)
    merge(model)
    assert (unmerged - plain).abs().max() > 0.1
    torch.testing.assert_close(model(tokens), unmerged, atol=tolerance, rtol=tolerance)
    assert all(type(module) is not LoRALinear for module in model.modules())
    assert {name for name, _ in model.named_parameters()} == {name for name, _ in gpt(tied_head=tied_head).named_parameters()}
    assert names
    assert adapter_parameters(model) == []


def test_bf16_weights_are_merged_in_fp32():
    layer = LoRALinear(nn.Linear(64, 32).bfloat16(), rank=4, alpha=4, dora=True)
    exact = copy.deepcopy(layer).double()
    assert layer.merged_weight().dtype == torch.float32
    torch.testing.assert_close(layer.merged_weight().double(), exact.merged_weight(), atol=2e-3, rtol=1e-2)
    merge(model := nn.Sequential(layer))
    assert model[0].weight.dtype == torch.bfloat16


@pytest.mark.parametrize("dora", [False, True])
def test_merged_weights_can_be_prepared(kernels, dora):
    model = trained(with_lora(far_from_linear(gpt()), dora=dora)).eval()
    with torch.no_grad():
        expected = model(some_tokens())
        unmerged = copy.deepcopy(model)
        merge(model)
        prepared = prepare(model, cache=kernels)(some_tokens())
        torch.testing.assert_close(prepared, expected, atol=1e-3, rtol=1e-3)
        assert torch.equal(prepare(unmerged, cache=kernels)(some_tokens()), prepared)  # which merges first


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["c_fc"], {"h.0.mlp.c_fc", "h.1.mlp.c_fc", "h.2.mlp.c_fc"}),
        (["attn.c_proj"], {f"h.{i}.attn.c_proj" for i in range(3)}),
        (["c_proj"], {f"h.{i}.{part}.c_proj" for i in range(3) for part in ("attn", "mlp")}),
        (["h.1.mlp.c_fc", "0.attn.c_attn"], {"h.1.mlp.c_fc", "h.0.attn.c_attn"}),
        (["c_fc", "mlp.c_fc"], {"h.0.mlp.c_fc", "h.1.mlp.c_fc", "h.2.mlp.c_fc"}),
    ],
)
def test_targets_are_ends_of_names(targets, expected):
    assert targeted(gpt(), targets).keys() == expected
    assert adapted_layers(with_lora(gpt(), targets=targets)).keys() == expected


def test_a_block_is_not_another_one_whose_number_ends_alike():
    model = GPT(**(SHAPE | {"n_layer": 12}))
    assert targeted(model, ["1.attn.c_attn"]).keys() == {"h.1.attn.c_attn"}


@pytest.mark.parametrize("target", ["proj", "attn", "h.3.attn.c_attn", "wte", "ln_f", "lm_head", "", "c_attn.weight", "score"])
def test_a_target_that_is_no_layer_is_refused(target):
    model = gpt()
    with pytest.raises(ConfigError) as refused:
        with_lora(model, targets=["c_attn", target])
    assert refused.value.key == "targets"
    assert repr(target) in str(refused.value)
    assert "there are: attn.c_attn, attn.c_proj, c_attn, c_fc, c_proj, mlp.c_fc, mlp.c_proj" in str(refused.value)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_second_adapter_is_refused():
    with pytest.raises(ValueError, match="merge it first"):
        with_lora(with_lora(gpt()))


@kinds
def test_only_the_adapter_is_trained(kind):
    model = with_lora(far_from_linear(gpt()), dropout=0.1, **kind)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    settings = AdamWConfig(lr=0.01)
    optimizer = adamw(model, lr=0.01, weight_decay=0.1, betas=settings.betas, eps=1e-8, decay_all=False, layer_decay=1.0)
    losses = []
    for _ in range(30):
        loss = F.cross_entropy(model(some_tokens())[:, :-1].flatten(0, 1), some_tokens()[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == set(adapter_parameters(model))
    assert {p.requires_grad for name, p in model.named_parameters() if name not in changed} == {False}
    own = 3 if kind.get("dora") else 2
    assert len(changed) == 12 * own  # four layers of three blocks


def test_a_classifier_s_head_is_trained_whole():
    model = with_lora(Classifier())
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {*adapter_parameters(model), "score.weight", "score.bias"}
    assert "gpt.h.2.mlp.c_proj.lora_A" in trainable
    with pytest.raises(ConfigError, match="score, a classifier's head, is trained whole"):
        with_lora(Classifier(), targets=["score"])


@kinds
def test_blocks_may_be_computed_anew_in_the_backward_pass(kind):
    """With dropout, which must be the same in both passes."""
    model, tokens = trained(with_lora(far_from_linear(gpt()), dropout=0.3, **kind)), some_tokens()
    again = copy.deepcopy(model)
    for block in again.h:
        block.forward = lambda x, cache=None, inner=block.forward: checkpoint(inner, x, cache, use_reentrant=False)
    for each in (model, again):
        torch.manual_seed(0)
        each(tokens).logsumexp(-1).sum().backward()
    for name in adapter_parameters(model):
        torch.testing.assert_close(again.get_parameter(name).grad, model.get_parameter(name).grad)


@kinds
def test_dynamo_traces_it_whole(kind):
    """torch.compile without a graph break; the eager backend shows that without a compiler."""
    model, tokens = trained(with_lora(far_from_linear(gpt()), **kind)), some_tokens()
    traced = torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True)
    traced(tokens).logsumexp(-1).sum().backward()
    model(tokens).logsumexp(-1).sum().backward()
    for name in adapter_parameters(model):
        grad = model.get_parameter(name).grad
        torch.testing.assert_close(traced.get_parameter(f"_orig_mod.{name}").grad, grad, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("dora", [False, True])
def test_autocast_keeps_the_type_of_the_layer(dora):
    layer = trained(nn.Sequential(LoRALinear(nn.Linear(16, 16), rank=2, alpha=2, dora=dora)))[0]
    x = torch.randn(3, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), atol=0.1, rtol=0.05)


# -- the base's identity -----------------------------------------------------------------------------------------


def rebuilt(model: Classifier) -> Classifier:
    """The same base without an adapter."""
    fresh = Classifier()
    fresh.load_state_dict({name: model.get_parameter(name) for name, _ in fresh.named_parameters()})
    return fresh


def test_the_hash_is_the_base_s_alone():
    model = with_lora(Classifier())
    base = base_hash(model)
    assert len(base) == 64
    trained(model)
    with torch.no_grad():
        model.score.weight.add_(1)
    assert base_hash(model) == base
    assert base_hash(with_lora(rebuilt(model), rank=2, dora=True, targets=["c_fc"])) == base


@settings(max_examples=40)
@given(st.data())
def test_any_bit_of_the_base_changes_the_hash(data):
    model = with_lora(gpt())
    base = base_hash(model)
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    values = frozen[data.draw(st.sampled_from(sorted(frozen)))].detach().flatten().view(torch.int32)
    values[data.draw(st.integers(0, len(values) - 1))] ^= 1 << data.draw(st.integers(0, 30))
    assert base_hash(model) != base


def test_shapes_types_and_names_are_part_of_the_hash():
    def frozen(**parameters: torch.Tensor) -> nn.Module:
        module = nn.Module()
        for name, tensor in parameters.items():
            module.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
        return module

    zeros = torch.zeros(2, 6)
    different = [frozen(a=zeros), frozen(b=zeros), frozen(a=zeros.view(3, 4)), frozen(a=zeros.int())]
    different.append(frozen(a=zeros[:1], b=zeros[1:]))
    assert len({base_hash(module) for module in different}) == len(different)
    assert base_hash(frozen(a=zeros, b=zeros + 1)) == base_hash(frozen(b=zeros + 1, a=zeros))
