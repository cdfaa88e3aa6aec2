"""Going on from an earlier run's model, through the command: the same weights, model and tokens, or a refusal by name."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml
from conftest import TEXT

from gpt2x.commands import train
from gpt2x.config.compose import compose, from_yaml
from gpt2x.config.schema import TrainConfig
from gpt2x.errors import UserError
from gpt2x.model.classifier import parts
from gpt2x.model.config import GPT2
from gpt2x.training.checkpoint import Checkpoints
from gpt2x.training.load import load_run

MODEL = ["model.n_layer=2", "model.n_head=2", "model.n_embd=16", "model.context_length=128", "model.dropout=0.1"]
QUICK = [
    "logger=none", "device.threads=1", "trainer.max_steps=4", "trainer.eval_every=2", "sampling.max_new_tokens=2",
]  # fmt: skip
TUNED = {
    "classifier": ["task=classifier", "data=spam_sample", "finetune=head"],
    "instruct": ["task=instruct", "task.template=phi3", "data=instructions_sample", "finetune=last_block", "finetune.blocks=0"],
}


def run(folder: Path, *overrides: str) -> int:
    """gpt2x-train in `folder`; its exit code."""
    return train([*QUICK, f"paths.outputs={folder.parent / 'outputs'}", f"hydra.run.dir={folder}", *overrides])


@pytest.fixture(scope="module")
def make_base(tmp_path_factory):
    """Train a language model: `make_base("name", *overrides)` gives its folder, the same one for the same name."""
    place = tmp_path_factory.mktemp("bases")
    (place / "text.txt").write_text(TEXT)

    def make(name: str, *overrides: str) -> Path:
        text = ["data=text", f"data.path={place / 'text.txt'}", "data.batch_size=2"]
        if "tokenizer=char" not in overrides:
            text.append("tokenizer.vocab_size=300")
        if not (place / name).exists():
            assert run(place / name, *text, *MODEL, *overrides) == 0
        return place / name

    return make


@pytest.fixture
def base(make_base) -> Path:
    return make_base("base")


def from_base(base: Path, *overrides: str) -> list[str]:
    return ["init=run", f"init.path={base}", *overrides]


def configuration(folder: Path) -> TrainConfig:
    return from_yaml(folder / "config.yaml", TrainConfig)


def gpt_weights(folder: Path, which: str = "best") -> dict[str, torch.Tensor]:
    return dict(parts(load_run(folder, which).model)[0].named_parameters())


def saved(folder: Path) -> dict[str, torch.Tensor]:
    return Checkpoints(folder / "checkpoints").select("last").tensors("model")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(weight, b[name]) for name, weight in a.items())


# -- what is taken over -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TUNED)
def test_weights_model_and_tokenizer_are_the_runs_own(base, tmp_path, kind):
    """What the run freezes is bit for bit the base's; of the instruct run all but the final norm, which it trains."""
    assert run(tmp_path / "run", *TUNED[kind], *from_base(base)) == 0
    mine, theirs = gpt_weights(tmp_path / "run", "last"), gpt_weights(base)
    assert mine.keys() == theirs.keys()
    trained = {name for name in mine if not torch.equal(mine[name], theirs[name])}
    assert trained == (set() if kind == "classifier" else {"ln_f.weight", "ln_f.bias"})
    assert (tmp_path / "run" / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert asdict(configuration(tmp_path / "run").model) == asdict(configuration(base).model)
    assert asdict(configuration(tmp_path / "run").tokenizer) == asdict(configuration(base).tokenizer)
    assert configuration(tmp_path / "run").init.path == str(base)


@pytest.mark.parametrize("which", ["last", "2"])
def test_the_checkpoint_that_is_meant_is_taken(make_base, tmp_path, which):
    base = make_base("base with an average", "trainer.ema_decay=0.5")
    assert run(tmp_path / "run", *TUNED["classifier"], *from_base(base, f"init.which={which}")) == 0
    assert same(gpt_weights(tmp_path / "run"), gpt_weights(base, which))  # the average, as everywhere
    assert not same(gpt_weights(base, "last"), gpt_weights(base, "2"))


def test_what_is_given_is_changed_and_the_rest_is_the_runs(base, tmp_path):
    changes = ["model.dropout=0", "model.context_length=40", "model.attention=manual", "model.tied_head=false"]
    given = [*TUNED["instruct"], "task.too_long=cut_end", *changes]
    assert run(tmp_path / "run", *given, *from_base(base)) == 0
    before, after = asdict(configuration(base).model), asdict(configuration(tmp_path / "run").model)
    changed = {name: value for name, value in after.items() if value != before[name]}
    assert changed == {"dropout": 0, "context_length": 40, "attention": "manual", "tied_head": False}
    theirs, mine = gpt_weights(base), gpt_weights(tmp_path / "run", "last")
    assert torch.equal(mine["wpe.weight"], theirs["wpe.weight"][:40])  # positions beyond it are left out
    assert torch.equal(mine["h.1.mlp.c_fc.weight"], theirs["h.1.mlp.c_fc.weight"])
    assert mine["lm_head.weight"].shape == theirs["wte.weight"].shape  # begins as the embedding it was tied to


def test_what_will_be_taken_over_can_be_seen_before(make_base, tmp_path, capsys):
    base = make_base("characters", "tokenizer=char")
    capsys.readouterr()
    assert run(tmp_path / "run", *TUNED["classifier"], *from_base(base, "model.dropout=0.3"), "--cfg", "job") == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["model"] == asdict(configuration(base).model) | {"dropout": 0.3}
    assert shown["tokenizer"] == asdict(configuration(base).tokenizer)
    assert not (tmp_path / "run").exists()


def test_a_head_that_was_tied_begins_as_the_embedding(base, tmp_path):
    more = ["task=instruct", "task.template=phi3", "data=instructions_sample", "finetune=head", "model.tied_head=false"]
    assert run(tmp_path / "run", *more, *from_base(base), "optimizer=sgd", "optimizer.lr=1e-30") == 0
    mine = gpt_weights(tmp_path / "run", "last")
    assert torch.equal(mine["lm_head.weight"], gpt_weights(base)["wte.weight"])
    assert torch.equal(mine["wte.weight"], mine["lm_head.weight"])


def test_a_run_with_an_adapter_or_another_head_can_be_gone_on_from(base, tmp_path):
    """An adapter is part of the weights that the next run begins with; the head of another task stays behind."""
    assert run(tmp_path / "adapted", *TUNED["instruct"][:3], "finetune=lora", *from_base(base), "optimizer.lr=0.1") == 0
    assert not same(gpt_weights(tmp_path / "adapted"), gpt_weights(base))
    assert run(tmp_path / "classifier", *TUNED["classifier"], *from_base(tmp_path / "adapted", "init.which=last")) == 0
    assert same(gpt_weights(tmp_path / "classifier"), gpt_weights(tmp_path / "adapted", "last"))
    assert run(tmp_path / "instruct", *TUNED["instruct"], *from_base(tmp_path / "classifier")) == 0
    mine, theirs = gpt_weights(tmp_path / "instruct", "last"), gpt_weights(tmp_path / "adapted", "last")
    assert torch.equal(mine["wte.weight"], theirs["wte.weight"])


# -- what is refused --------------------------------------------------------------------------------------------

OTHER_SHAPES = ["model.n_layer=1", "model.n_layer=3", "model.n_head=4", "model.n_embd=32", "model.context_length=200"]


@pytest.mark.parametrize("other", OTHER_SHAPES)
def test_a_model_of_another_shape_is_refused_with_both(base, tmp_path, capsys, other):
    assert run(tmp_path / "run", *TUNED["classifier"], *from_base(base, other)) == 2
    error = capsys.readouterr().err
    shapes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "context_length": 128}
    name, value = other.removeprefix("model.").split("=")
    assert f"init.path={base}: its model has" in error
    for shape in (shapes, shapes | {name: int(value)}):
        expected = "{n_layer} layers, {n_head} heads, {n_embd} wide, context {context_length}".format(**shape)
        assert expected in error
    assert "leave out model= and model.n_...=: with init=run the shape is the run's own" in error
    assert "Traceback" not in error


@pytest.mark.parametrize(("theirs", "mine"), [("learned", "rope"), ("rope", "none"), ("alibi", "learned")])
def test_other_positions_are_refused_by_name(make_base, tmp_path, capsys, theirs, mine):
    base = make_base(theirs, f"model.position={theirs}")
    assert run(tmp_path / "run", *TUNED["classifier"], *from_base(base, f"model.position={mine}")) == 2
    error = capsys.readouterr().err
    assert f"model.position={mine}: the model of init.path={base} has position={theirs}" in error
    assert "leave it out: with init=run it is the run's own" in error


@pytest.mark.parametrize("option", ["qk_norm=true", "softcap=15.0", "mlp=relu2", "residual_scalars=true"])
def test_another_variant_is_refused_by_name_also_where_the_weights_would_fit(base, tmp_path, capsys, option):
    assert run(tmp_path / "run", *TUNED["classifier"], *from_base(base, f"model.{option}")) == 2
    assert f"model.{option}: the model of init.path={base} has {option.split('=')[0]}=" in capsys.readouterr().err


def test_a_variant_is_the_runs_own(make_base, tmp_path):
    options = ("model.mlp=swiglu", "model.bias=false", "model.value_embeddings=table", "model.norm=rmsnorm")
    base = make_base("variant", *options)
    assert run(tmp_path / "run", *TUNED["classifier"], *from_base(base)) == 0
    assert same(gpt_weights(tmp_path / "run", "last"), gpt_weights(base))
    assert load_run(tmp_path / "run").model.gpt.variant == load_run(base).model.variant != GPT2


@pytest.mark.parametrize("position", ["rope", "alibi", "none"])
def test_without_learned_positions_they_are_the_runs_and_the_context_may_be_longer(make_base, tmp_path, position):
    base = make_base(position, f"model.position={position}")
    assert run(tmp_path / "run", *TUNED["classifier"], *from_base(base, "model.context_length=200")) == 0
    assert same(gpt_weights(tmp_path / "run", "last"), gpt_weights(base))
    longer = load_run(tmp_path / "run").model.gpt
    assert (longer.position, longer.context_length, longer.wpe) == (position, 200, None)


def test_other_tokens_are_refused(base, tmp_path, capsys):
    for tokenizer in ("tokenizer.vocab_size=310", "tokenizer=char"):
        assert run(tmp_path / tokenizer.replace("=", " "), *TUNED["classifier"], *from_base(base, tokenizer)) == 2
        error = capsys.readouterr().err
        assert f"init.path={base}: that run's tokens" in error
        assert "leave out tokenizer=" in error


@pytest.mark.parametrize(
    ("overrides", "code", "message"),
    [
        (["init=run", "init.path=nowhere"], 2, "init.path=nowhere: not the folder of a run (it has no config.yaml)"),
        (["init=run"], 2, "init.path"),
        (
            ["init=run", "init.path={base}", "init.which=newest"],
            2,
            "init.which=newest: expected best, last, or a step's number",
        ),
        (["init=run", "init.path={base}", "init.which=77"], 1, "77"),
        (["init.path={base}"], 2, "init.path"),  # init is scratch
    ],
)
def test_a_run_that_cannot_be_had_is_refused(base, tmp_path, capsys, overrides, code, message):
    overrides = [override.format(base=base) for override in overrides]
    assert run(tmp_path / "run", *TUNED["classifier"], *overrides) == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


# -- going on, and several --------------------------------------------------------------------------------------


def forget(folder: Path, *steps: int) -> None:
    for step in steps:
        shutil.rmtree(folder / "checkpoints" / f"step-{step:08d}")


@pytest.mark.parametrize("finetune", ["full", "last_block", "lora"])
def test_such_a_run_is_resumed_bit_for_bit(base, tmp_path, finetune):
    given = [
        *TUNED["classifier"][:2],
        f"finetune={finetune}",
        "model.dropout=0",
        "trainer.max_steps=40",
        "trainer.eval_every=10",
    ]
    assert run(tmp_path / "run", *given, "trainer.keep_last=9", *from_base(base)) == 0
    expected = saved(tmp_path / "run")
    forget(tmp_path / "run", 30, 40)
    assert train([f"resume={tmp_path / 'run'}"]) == 0
    assert same(saved(tmp_path / "run"), expected)


def test_what_became_of_the_first_run_changes_nothing_in_a_resumed_one(base, make_base, tmp_path, capsys):
    """What frozen layers make of the data is computed of the run's own weights, not of those now in the first run's place."""
    shutil.copytree(base, tmp_path / "base")
    given = [
        *TUNED["classifier"][:2],
        "finetune=last_block",
        "model.dropout=0",
        "trainer.max_steps=40",
        "trainer.eval_every=10",
    ]
    assert run(tmp_path / "run", *given, "trainer.keep_last=9", *from_base(tmp_path / "base")) == 0
    assert "frozen   the states of the 1 lower blocks are computed once" in capsys.readouterr().out
    expected = saved(tmp_path / "run")
    forget(tmp_path / "run", 30, 40)
    shutil.rmtree(tmp_path / "base")
    shutil.copytree(make_base("other weights", "seed=5"), tmp_path / "base")
    assert train([f"resume={tmp_path / 'run'}"]) == 0
    assert same(saved(tmp_path / "run"), expected)


def test_a_first_run_that_has_been_moved_is_missed_by_name_and_found_where_it_is(base, tmp_path, capsys):
    shutil.copytree(base, tmp_path / "base")
    given = [*TUNED["instruct"][:3], "finetune=lora", "trainer.keep_last=9"]  # an adapter cannot do without it
    assert run(tmp_path / "run", *given, *from_base(tmp_path / "base")) == 0
    expected = saved(tmp_path / "run")
    forget(tmp_path / "run", 4)
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    assert train([f"resume={tmp_path / 'run'}"]) == 2
    assert f"init.path={tmp_path / 'base'}: not the folder of a run" in capsys.readouterr().err
    assert train([f"resume={tmp_path / 'run'}", f"init.path={tmp_path / 'elsewhere'}"]) == 0
    assert same(saved(tmp_path / "run"), expected)


def test_a_sweep_over_first_runs_takes_each_ones_model(base, make_base, tmp_path):
    other = make_base("other shape", "model.n_layer=1", "model.n_head=1", "tokenizer.vocab_size=280")
    sweep = tmp_path / "sweep"
    arguments = [*QUICK, *TUNED["classifier"], "init=run", f"init.path={base},{other}", f"paths.outputs={tmp_path / 'outputs'}"]
    assert train(["-m", *arguments, f"hydra.sweep.dir={sweep}"]) == 0
    found = {}
    for path in sweep.rglob("config.yaml"):
        if (path.parent / "checkpoints").is_dir():
            found[configuration(path.parent).init.path] = path.parent
    assert found.keys() == {str(base), str(other)}
    for first, folder in found.items():
        assert same(gpt_weights(folder), gpt_weights(Path(first)))
        assert asdict(configuration(folder).model) == asdict(configuration(Path(first)).model)


def test_what_an_experiment_says_of_the_model_is_kept_even_where_the_default_says_the_same(base):
    """The run has a dropout of 0.1, as the file of model=gpt2; the recipe says 0, as the default model does."""
    composed = compose("train", TrainConfig, ["experiment=spam_book", "init=run", f"init.path={base}"])
    assert load_run(base).config.model.dropout == 0.1
    assert (composed.model.dropout, composed.model.n_layer) == (0.0, 12)


def test_a_default_that_is_chosen_outright_is_refused_where_the_run_has_another(base, tmp_path, capsys):
    assert run(tmp_path / "run", *TUNED["classifier"], *from_base(base, "model=nano")) == 2
    assert f"init.path={base}: its model has" in capsys.readouterr().err


def test_an_adapter_beside_other_weights_is_refused_and_one_whose_base_was_trained_on_is_not(make_base, tmp_path):
    base, other = make_base("trained on later"), make_base("of another seed", "seed=9")
    assert run(tmp_path / "run", *TUNED["instruct"][:3], *from_base(base, "finetune=lora")) == 0
    before = load_run(tmp_path / "run")
    assert before.config.init.which.isdecimal()  # the step is noted, whatever is best later
    assert train(["device.threads=1", f"resume={base}", "trainer.max_steps=6"]) == 0
    assert torch.equal(load_run(tmp_path / "run").model.wte.weight, before.model.wte.weight)
    path = tmp_path / "run" / "config.yaml"
    path.write_text(path.read_text().replace(f"path: {base}", f"path: {other}"))
    with pytest.raises(UserError, match="belongs to other weights than those of"):
        load_run(tmp_path / "run")


def test_a_run_that_holds_all_its_weights_goes_on_without_the_first_one(make_base, tmp_path):
    base = shutil.copytree(make_base("base"), tmp_path / "soon gone")
    assert run(tmp_path / "parted", *TUNED["classifier"], *from_base(base)) == 0
    shutil.rmtree(base)
    assert train([f"resume={tmp_path / 'parted'}", "trainer.max_steps=8"]) == 0
