"""What each way to fine-tune trains, said in a table, learned at the rate that is asked for, and nothing else touched."""

from __future__ import annotations

import re

import pytest
import torch
from models import POSITIONS, SHAPE, far_from_linear, gpt, some_tokens

from gpt2x.config.compose import compose
from gpt2x.config.instantiate import instantiate
from gpt2x.config.option import ConfigError
from gpt2x.config.schema import TrainConfig
from gpt2x.model.classifier import Classifier
from gpt2x.training.checkpoint import Checkpoints
from gpt2x.training.config import AdamWConfig, FullConfig, HeadConfig, LastBlockConfig, LoRAConfig, SGDConfig
from gpt2x.training.finetune import frozen_blocks, table
from gpt2x.training.run import train

N = SHAPE["n_layer"]
KINDS = ("tied", "untied", "classifier")


def model_of(kind: str) -> torch.nn.Module:
    plain = far_from_linear(gpt(tied_head=kind != "untied"))
    return Classifier(plain, n_classes=3, pooling="last_token") if kind == "classifier" else plain


def trained(model: torch.nn.Module) -> set[str]:
    """The names of what is trained, of a classifier too without the "gpt." of its transformer."""
    return {name.removeprefix("gpt.") for name, p in model.named_parameters() if p.requires_grad}


def within(model: torch.nn.Module, *parts: str) -> set[str]:
    names = {name.removeprefix("gpt.") for name, _ in model.named_parameters()}
    return {name for name in names if name.startswith(parts)}


# -- what is trained -------------------------------------------------------------------------------------------

HEAD = {"tied": (), "untied": ("lm_head.",), "classifier": ("score.",)}


@pytest.mark.parametrize("kind", KINDS)
def test_full_trains_everything(kind):
    model = model_of(kind)
    instantiate(FullConfig(), model)
    assert trained(model) == within(model, "")
    assert frozen_blocks(model) == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("blocks", range(N + 1))
def test_last_block_trains_the_last_blocks_the_final_norm_and_the_head(kind, blocks):
    model = model_of(kind)
    instantiate(LastBlockConfig(blocks=blocks), model)
    assert trained(model) == within(model, "ln_f.", *HEAD[kind], *(f"h.{i}." for i in range(N - blocks, N)))
    assert frozen_blocks(model) == N - blocks
    with pytest.raises(ValueError, match=f"blocks={N + 1}: the model has {N}"):
        instantiate(LastBlockConfig(blocks=N + 1), model)


@pytest.mark.parametrize("kind", KINDS)
def test_head_trains_the_head_alone_where_there_is_one(kind):
    model = model_of(kind)
    if kind == "tied":
        with pytest.raises(ValueError, match="no head to train alone"):
            instantiate(HeadConfig(), model)
        return
    instantiate(HeadConfig(), model)
    assert trained(model) == within(model, *HEAD[kind])
    assert frozen_blocks(model) == N


@pytest.mark.parametrize(
    ("targets", "frozen"),
    [
        (["c_attn"], 0),
        (["h.1.attn.c_attn"], 1),
        (["h.2.mlp.c_fc", "h.2.attn.c_proj"], 2),
        (["h.2.c_fc", "h.0.mlp.c_proj"], None),
    ],
)
def test_lora_trains_its_matrices_and_the_head_of_a_classifier(targets, frozen):
    for kind in KINDS:
        model = model_of(kind)
        if frozen is None:
            with pytest.raises(ConfigError, match="finetune.targets"):
                instantiate(LoRAConfig(targets=targets), model)
            continue
        instantiate(LoRAConfig(targets=targets), model)
        ours = {name for name in trained(model) if not name.startswith(HEAD[kind] or "nothing")}
        assert ours
        assert all(".lora_" in name and any(f"{target}." in name for target in targets) for name in ours)
        assert bool(trained(model) - ours) == (kind == "classifier")
        assert frozen_blocks(model) == frozen


def test_a_trained_embedding_leaves_no_block_frozen():
    model = model_of("tied").requires_grad_(False)
    assert frozen_blocks(model) == N
    model.wpe.weight.requires_grad_(True)
    assert frozen_blocks(model) == 0


# -- the table -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("finetune", [FullConfig(), LastBlockConfig(), LastBlockConfig(blocks=0), LoRAConfig(rank=3)], ids=str)
def test_the_table_adds_up(kind, finetune):
    model = model_of(kind)
    instantiate(finetune, model)
    header, *lines, share = table(model).splitlines()
    assert header.split() == ["trained", "frozen"]
    rows = {}
    for line in lines:
        name, mine, theirs = re.fullmatch(r"(\S.*?) +([\d,]+) +([\d,]+)", line).groups()
        rows[name] = (int(mine.replace(",", "")), int(theirs.replace(",", "")))
    total = rows.pop("all")
    assert total == tuple(map(sum, zip(*rows.values(), strict=True)))
    assert total[0] == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(total) == sum(p.numel() for p in model.parameters())
    assert share == f"trained: {total[0] / sum(total):.2%}"


def test_blocks_that_are_alike_share_a_line_and_the_others_do_not():
    model = gpt(n_layer=5)
    instantiate(LastBlockConfig(blocks=2), model)
    names = [re.split(r"  +", line)[0] for line in table(model).splitlines()[1:-1]]
    assert names == ["wte, wpe", "h.0 - h.2", "h.3 - h.4", "ln_f", "all"]
    with torch.no_grad():
        model.h[1].requires_grad_(True)
    names = [re.split(r"  +", line)[0] for line in table(model).splitlines()[1:-1]]
    assert names == ["wte, wpe", "h.0", "h.1", "h.2", "h.3 - h.4", "ln_f", "all"]


def test_a_run_says_what_it_trains_and_leaves_the_rest_as_it_was(fine_tuning, tmp_path, capsys):
    weights = []
    for steps in (2, 5):
        config = fine_tuning("classifier", finetune=LastBlockConfig(), **{"trainer.max_steps": steps, "optimizer.lr": 0.1})
        train(config, tmp_path / str(steps))
        weights.append(Checkpoints(tmp_path / str(steps) / "checkpoints").select("last").tensors("model"))
    out = capsys.readouterr().out
    assert re.search(r"^h\.0 - h\.1 +0 +6,560$", out, re.MULTILINE)
    assert re.search(r"^trained: 20\.60%$", out, re.MULTILINE)
    changed = {name for name, weight in weights[0].items() if not torch.equal(weight, weights[1][name])}
    assert changed == {name for name in weights[0] if name.startswith(("gpt.h.2.", "gpt.ln_f.", "score."))}
    train(fine_tuning("classifier", **{"trainer.max_steps": 2}), tmp_path / "full")
    assert "frozen" not in capsys.readouterr().out  # all of it is trained: no table


@pytest.mark.parametrize("position", POSITIONS[1:])
def test_without_learned_positions_the_tokens_are_the_only_embedding(position):
    model = gpt(position=position)
    instantiate(LastBlockConfig(), model)
    assert frozen_blocks(model) == N - 1
    assert re.search(rf"^wte +0 +{model.wte.weight.numel():,}$", table(model), re.MULTILINE)
    model.wte.requires_grad_(True)
    assert frozen_blocks(model) == 0
    optimizer = instantiate(AdamWConfig(lr=0.1, layer_decay=0.5), gpt(position=position))
    rates = {tuple(p.shape): group["lr"] for group in optimizer.param_groups for p in group["params"] if p.dim() == 2}
    assert rates[tuple(model.wte.weight.shape)] == pytest.approx(0.1 * 0.5 ** (N + 1))


# -- learning rates --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [AdamWConfig, SGDConfig])
@pytest.mark.parametrize("kind", KINDS)
def test_each_block_learns_a_share_as_fast_as_the_one_above_it(config, kind):
    model = model_of(kind)
    optimizer = instantiate(config(lr=0.1, weight_decay=0.2, layer_decay=0.5), model)
    names = {parameter: name.removeprefix("gpt.") for name, parameter in model.named_parameters()}
    rate, decay = {}, {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert names[parameter] not in rate
            rate[names[parameter]], decay[names[parameter]] = group["lr"], group["weight_decay"]
    assert rate.keys() == set(names.values())
    for name, value in rate.items():
        block = re.match(r"h\.(\d)\.", name)
        below = N - int(block[1]) if block else N + 1 if name.startswith(("wte", "wpe")) else 0
        assert value == pytest.approx(0.1 * 0.5**below), name
    matrices = {name for parameter, name in names.items() if parameter.dim() == 2}
    assert {name for name, value in decay.items() if value == 0.2} == matrices
    assert {value for name, value in decay.items() if name not in matrices} == {0.0}


def test_without_layer_decay_there_are_two_groups_and_what_is_frozen_is_in_neither():
    model = model_of("classifier")
    assert len(instantiate(AdamWConfig(), model).param_groups) == 2
    instantiate(LastBlockConfig(), model)
    for decay in (1.0, 0.5):
        optimizer = instantiate(AdamWConfig(layer_decay=decay, lr=0.1), model)
        held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        assert held == {parameter for parameter in model.parameters() if parameter.requires_grad}
        assert {group["lr"] for group in optimizer.param_groups} == ({0.1} if decay == 1 else {0.1, 0.05})


def test_one_step_is_as_long_as_the_rate_says():
    """Of plain gradient descent: each weight moves by its own rate times its gradient, a block below by half as much."""
    steps = []
    for decay in (1.0, 0.5):
        model = model_of("tied").double()
        optimizer = instantiate(SGDConfig(lr=0.1, momentum=0.0, layer_decay=decay), model)
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        model(some_tokens()).sin().sum().backward()
        optimizer.step()
        steps.append({name: parameter.detach() - before[name] for name, parameter in model.named_parameters()})
    for name, share in (
        ("h.2.mlp.c_fc.weight", 1 / 2),
        ("h.0.mlp.c_fc.weight", 1 / 8),
        ("wte.weight", 1 / 16),
        ("ln_f.weight", 1),
    ):
        torch.testing.assert_close(steps[1][name], share * steps[0][name], atol=1e-9, rtol=1e-9)


def test_layer_decay_goes_with_the_schedule_and_a_resume(fine_tuning, tmp_path):
    settings = {"optimizer.layer_decay": 0.5, "trainer.keep_last": 9}
    train(fine_tuning("classifier", **settings), tmp_path / "run")
    expected = Checkpoints(tmp_path / "run" / "checkpoints").select("last").tensors("model")
    for file in (tmp_path / "run" / "checkpoints" / "step-00000060").iterdir():
        file.unlink()
    (tmp_path / "run" / "checkpoints" / "step-00000060").rmdir()
    train(fine_tuning("classifier", resume=str(tmp_path / "run"), **settings), tmp_path / "run")
    resumed = Checkpoints(tmp_path / "run" / "checkpoints").select("last").tensors("model")
    assert all(torch.equal(weight, resumed[name]) for name, weight in expected.items())


# -- what does not fit together --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["finetune=head"], "finetune=head: the model's head is its token embedding, .*\n  use finetune=last_block, or"),
        (["finetune=head", "task=instruct", "data=instructions_sample"], "finetune=head: the model's head is its token embedd"),
        (["finetune=last_block", "finetune.blocks=5"], "finetune.blocks=5: the model has model.n_layer=4 blocks\n  use"),
        (["finetune=last_block", "finetune.blocks=-1"], "finetune.blocks=-1"),
        (["optimizer.layer_decay=0"], "optimizer.layer_decay=0"),
        (["optimizer.layer_decay=1.1"], "optimizer.layer_decay=1.1"),
        (["finetune=some"], "finetune=some: no such choice\n  choices of finetune: full, head, last_block, lora"),
        (["task=classifier"], "data=.*: this is text to continue, and the task needs a table of texts and labels"),
        (["data=spam_sample"], "data=spam_sample: this is a table .* and the task needs text to continue"),
        (["data=spam_sample", "task=instruct"], "this is a table .*\n  use task=classifier, or other data"),
        (["task=classifier", "data=instructions_sample"], "use task=instruct, or other data, such as data=spam_sample"),
        (["task=classifier", "data=spam_sample", "sample_prompt=Hello"], "sample_prompt=Hello: is for task=lm"),
        (["trainer.frozen_cache=tape"], "trainer.frozen_cache=tape: .*auto, memory, disk, off"),
        (["trainer.frozen_cache_gb=0"], "trainer.frozen_cache_gb=0"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_refused_by_name(overrides, message):
    with pytest.raises(ConfigError, match=message):
        compose("train", TrainConfig, ["model.n_layer=4", *overrides])


@pytest.mark.parametrize(
    "overrides",
    [
        ["finetune=head", "model.tied_head=false"],
        ["finetune=head", "task=classifier", "data=spam_sample"],
        ["finetune=last_block", "finetune.blocks=4"],
        ["finetune=last_block", "finetune.blocks=0"],
        ["finetune=lora", "task=instruct", "data=instructions_sample", "optimizer.layer_decay=0.9"],
    ],
    ids=str,
)
def test_what_does_is_not(overrides):
    compose("train", TrainConfig, ["model.n_layer=4", *overrides])
