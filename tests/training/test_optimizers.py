"""Optimizers: Muon and AdamW as one against torch's own alone, what changes from step to step, and whom each of them moves."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from models import VARIANTS, gpt, some_tokens
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gpt2x.config.instantiate import instantiate
from gpt2x.config.option import ConfigError
from gpt2x.model.classifier import Classifier
from gpt2x.training.checkpoint import Checkpoints
from gpt2x.training.config import AdamWConfig, HeadConfig, MuonConfig
from gpt2x.training.finetune import head, last_block
from gpt2x.training.muon import newton_schulz_flops, orthogonalized
from gpt2x.training.optimizer import before_step
from gpt2x.training.run import train


def muon(model: nn.Module, **changes):
    return instantiate(MuonConfig(**changes), model)


def backward(model: nn.Module, seed: int) -> None:
    model(some_tokens(seed=seed)).logsumexp(-1).sum().backward()


def matrices(model: nn.Module) -> list[str]:
    """Names of the blocks' matrices, by what a block of GPT-2 is made of."""
    ends = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
    return [name for name, _ in model.named_parameters() if name.endswith(ends)]


# -- Muon ---------------------------------------------------------------------------------------------------------


def pieces(name: str, weight: torch.Tensor, n_head: int, n_kv_head: int) -> list[torch.Tensor]:
    """The matrices that a weight is made of: queries, keys and values; gates and values of a gated MLP."""
    if name.endswith("c_attn.weight"):
        width = weight.shape[1] // n_head
        return list(weight.split([n_head * width, n_kv_head * width, n_kv_head * width]))
    if name.endswith("c_fc.weight") and weight.shape[0] != 4 * weight.shape[1]:
        return list(weight.chunk(2))
    return [weight]


@pytest.mark.parametrize("variant", [{}, {"mlp": "swiglu", "n_kv_head": 2}])
@pytest.mark.parametrize("changes", [{}, {"nesterov": False, "ns_steps": 3, "adjust_lr": "match_rms_adamw", "momentum": 0.8}])
def test_it_moves_matrices_as_torch_s_muon_alone_and_the_rest_as_adamw_alone(changes, variant):
    """With the same gradients; Muon's products are in bf16, of many matrices at once: to its rounding, of steps of size lr."""
    model = gpt(**variant)
    optimizer = muon(model, muon_lr=0.03, muon_weight_decay=0.2, lr=0.01, ns_precision="bf16", **changes)
    names, generator = matrices(model), torch.Generator().manual_seed(1)
    copies = {
        name: [
            nn.Parameter(piece.detach().clone())
            for piece in pieces(name, model.get_parameter(name), 4, variant.get("n_kv_head", 4))
        ]
        for name in names
    }
    rest = {name: nn.Parameter(p.detach().clone()) for name, p in model.named_parameters() if name not in names}
    options = {"adjust_lr_fn": changes.get("adjust_lr"), **{k: v for k, v in changes.items() if k != "adjust_lr"}}
    alone = [
        torch.optim.Muon([p for name in names for p in copies[name]], lr=0.03, weight_decay=0.2, **options),
        torch.optim.AdamW([p for p in rest.values() if p.dim() == 2], lr=0.01, weight_decay=0.1, betas=(0.9, 0.95), fused=True),
        torch.optim.AdamW([p for p in rest.values() if p.dim() == 1], lr=0.01, weight_decay=0.0, betas=(0.9, 0.95), fused=True),
    ]
    for step in range(6):
        for name, parameter in model.named_parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            if name in rest:
                rest[name].grad = parameter.grad.clone()
            else:
                for copied, piece in zip(
                    copies[name], pieces(name, parameter.grad, 4, variant.get("n_kv_head", 4)), strict=True
                ):
                    copied.grad = piece.clone()
        for each in (optimizer, *alone):
            each.step()
        if step == 2:
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for name, parameter in model.named_parameters():
        if name in rest:
            assert torch.equal(parameter, rest[name]), name
        else:
            torch.testing.assert_close(
                parameter.detach(), torch.cat(copies[name]).detach(), atol=6 * 0.03 * 0.02, rtol=0, msg=name
            )


@pytest.mark.parametrize("shape", [(3, 8, 24), (2, 32, 8), (1, 16, 16)])
def test_the_iteration_is_the_polynomial_of_the_singular_values(shape):
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    U, S, V = torch.linalg.svd(x, full_matrices=False)
    S = S / S.square().sum(-1, keepdim=True).sqrt()
    for _ in range(5):
        S = 3.4445 * S - 4.7750 * S**3 + 2.0315 * S**5
    torch.testing.assert_close(orthogonalized(x, 5, torch.float64), U * S[:, None] @ V, atol=1e-12, rtol=0)
    assert orthogonalized(torch.zeros(shape), 5, torch.bfloat16).abs().max() == 0  # of no gradient no step


def test_auto_is_bf16_where_there_are_instructions_for_it(monkeypatch):
    moved = {}
    for precision, has in itertools.product(("fp32", "bf16", "auto"), (False, True)):
        monkeypatch.setattr("gpt2x.training.muon.has_bf16", lambda type, has=has: has)
        model = gpt()
        optimizer = muon(model, ns_precision=precision)
        backward(model, seed=0)
        optimizer.step()
        moved[precision, has] = model.h[0].mlp.c_fc.weight.detach()
    assert torch.equal(moved["auto", True], moved["bf16", True])
    assert torch.equal(moved["auto", False], moved["fp32", True])
    assert not torch.equal(moved["fp32", True], moved["bf16", True])
    step, rounded = (moved[precision, True] - gpt().h[0].mlp.c_fc.weight.detach() for precision in ("fp32", "bf16"))
    assert (rounded - step).norm() < 0.1 * step.norm()


def test_a_step_has_the_singular_values_that_muon_promises():
    """Between 0.5 and 1.5 about, times the rate, and for a matrix taller than wide the root of the ratio more."""
    model, generator = gpt(n_embd=64), torch.Generator().manual_seed(0)
    optimizer = muon(model, muon_lr=0.1, muon_weight_decay=0.0)
    before = {name: model.get_parameter(name).detach().clone() for name in matrices(model)}
    for parameter in model.parameters():
        parameter.grad = 1e-3 * torch.randn(parameter.shape, generator=generator)
    optimizer.step()
    for name, was in before.items():
        for step in pieces(name, (was - model.get_parameter(name)).detach(), 4, 4):
            values = torch.linalg.svdvals(step) / 0.1 / max(1, step.shape[0] / step.shape[1]) ** 0.5
            assert values.max() < 1.6
            assert values.quantile(0.1) > 0.4


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_has_one_place(name):
    model = gpt(**VARIANTS[name], tied_head=False)
    optimizer = muon(model)
    ours, rest = optimizer.param_groups[:1], optimizer.param_groups[1:]
    chosen = {id(p) for p in ours[0]["params"]}
    linear = {id(layer.weight) for layer in model.h.modules() if isinstance(layer, nn.Linear)}
    assert chosen == linear >= {id(model.get_parameter(name)) for name in matrices(model)}
    everything = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(everything) == sorted(id(p) for p in model.parameters())
    assert {id(model.wte.weight), id(model.lm_head.weight)} <= {id(p) for p in rest[0]["params"]}
    assert all(p.dim() == 1 and group["weight_decay"] == 0 for group in rest[1:] for p in group["params"])


def test_lower_blocks_learn_more_slowly_with_layer_decay():
    model = gpt()
    rates = {p: group["lr"] for group in muon(model, layer_decay=0.5).param_groups for p in group["params"]}
    assert [rates[block.mlp.c_fc.weight] for block in model.h] == [0.02 * 0.5**below for below in (3, 2, 1)]
    assert [rates[block.mlp.c_fc.bias] for block in model.h] == [3e-3 * 0.5**below for below in (3, 2, 1)]
    assert rates[model.wte.weight] == 3e-3 * 0.5**4


def test_only_what_is_trained_is_moved_and_without_a_matrix_it_is_refused():
    model = Classifier(gpt(), n_classes=2, pooling="mean")
    last_block(model, blocks=1)
    assert {p for group in muon(model).param_groups for p in group["params"]} == {
        p for p in model.parameters() if p.requires_grad
    }
    head(model)
    with pytest.raises(ConfigError, match="optimizer=muon: is for the matrices of blocks, and none of them is trained"):
        muon(model)


@pytest.mark.parametrize("shape", [(8, 24), (32, 8), (16, 16)])
def test_its_operations_are_those_that_torch_counts(shape):
    with FlopCounterMode(display=False) as counter:
        orthogonalized(torch.randn(2, *shape), 3, torch.float32)
    assert counter.get_total_flops() == 2 * 3 * newton_schulz_flops(torch.empty(shape))


def test_a_run_counts_and_prints_what_it_takes(small_run, tmp_path):
    flops = {}
    for name, optimizer in {"adamw": AdamWConfig(), "muon": MuonConfig(momentum_warmup_steps=6)}.items():
        config = small_run()
        config.optimizer = optimizer
        flops[name] = train(config, tmp_path / name).state.flops
    per_block = sum(newton_schulz_flops(torch.empty(shape)) for shape in (*[(16, 16)] * 4, (64, 16), (16, 64)))
    assert flops["muon"] - flops["adamw"] == pytest.approx(12 * 2 * 5 * per_block, rel=1e-9)
    log = (tmp_path / "muon" / "run.log").read_text()
    assert "Muon on 6,144 parameters, 0.00246 GFLOP more a step; AdamW on" in log
    assert "% of the steps' time was Muon's" in log
    assert "Muon" not in (tmp_path / "adamw" / "run.log").read_text()


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(small_run, tmp_path):
    """The momenta are saved and its warm-up goes by the step; with other settings the bits are others."""

    def weights(name: str, resume: bool = False, **changes) -> dict[str, torch.Tensor]:
        config = small_run(resume=str(tmp_path / name) if resume else None, **{"trainer.keep_last": 9})
        config.optimizer = MuonConfig(momentum_warmup_steps=9, **changes)
        train(config, tmp_path / name)
        return Checkpoints(tmp_path / name / "checkpoints").load(12).tensors("model")

    whole = weights("run")
    for step in (8, 12):
        for file in (tmp_path / "run" / "checkpoints" / f"step-{step:08d}").iterdir():
            file.unlink()
        (tmp_path / "run" / "checkpoints" / f"step-{step:08d}").rmdir()
    again = weights("run", resume=True)
    assert all(torch.equal(again[name], weight) for name, weight in whole.items())
    other = weights("other", nesterov=False)
    assert not all(torch.equal(other[name], weight) for name, weight in whole.items())


# -- what changes from step to step -------------------------------------------------------------------------------


def test_momentum_rises_in_a_line_to_its_peak():
    optimizer = muon(gpt(), momentum=0.95, momentum_warmup_steps=10)
    seen = []
    for step in (0, 5, 10, 999):
        before_step(optimizer, step, tokens=64)
        seen.append(optimizer.param_groups[0]["momentum"])
    assert seen == pytest.approx([0.85, 0.90, 0.95, 0.95])
    low = muon(gpt(), momentum=0.5, momentum_warmup_steps=10)  # below where others begin: it stays
    before_step(low, 0, tokens=64)
    assert low.param_groups[0]["momentum"] == 0.5
    still = muon(gpt(), momentum=0.95)
    before_step(still, 0, tokens=64)
    assert still.param_groups[0]["momentum"] == 0.95


@pytest.mark.parametrize(("tokens", "half_life", "beta2"), [(64, 64, 0.5), (100, 1e4, 0.5**0.01), (1, 10, 0.1**0.1 * 5**0.1)])
def test_the_half_life_of_the_second_moment_is_in_tokens(tokens, half_life, beta2):
    for config in (AdamWConfig(beta2_half_life_tokens=half_life), MuonConfig(beta2_half_life_tokens=half_life)):
        optimizer = instantiate(config, gpt())
        before_step(optimizer, 3, tokens)
        groups = [group for group in optimizer.param_groups if "betas" in group]
        assert len(groups) == 2
        for group in groups:
            assert group["betas"] == (0.9, pytest.approx(beta2, rel=1e-12))
            assert group["betas"][1] ** (half_life / tokens) == pytest.approx(0.5)


def test_a_run_with_a_half_life_is_one_with_that_beta2(small_run, tmp_path):
    """A step is of 4 x 16 tokens: of two micro-batches twice as many."""
    for name, changes in {
        "half-life": {"optimizer.beta2_half_life_tokens": 128.0, "trainer.accumulate": 2},
        "beta2": {"optimizer.betas": [0.9, 0.5], "trainer.accumulate": 2},
    }.items():
        train(small_run(**changes), tmp_path / name)
    half_life, beta2 = (
        (tmp_path / name / "checkpoints" / "step-00000012" / "model.safetensors").read_bytes()
        for name in ("half-life", "beta2")
    )
    assert half_life == beta2


def test_muon_is_refused_where_only_the_head_is_trained(fine_tuning, tmp_path):
    config = fine_tuning("classifier", finetune=HeadConfig())
    config.optimizer = MuonConfig()
    with pytest.raises(ConfigError, match="optimizer=muon: is for the matrices of blocks"):
        train(config, tmp_path / "run")
