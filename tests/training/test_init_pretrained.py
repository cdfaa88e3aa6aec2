"""Going on from a model that another program wrote, through the command: any task, any fine-tuning, or a refusal by name."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import TEXT
from file_server import served
from models import gpt

from gpt2x.commands import export, train
from gpt2x.config.compose import compose, from_yaml
from gpt2x.config.schema import TrainConfig
from gpt2x.errors import UserError
from gpt2x.interop import openai
from gpt2x.interop.huggingface_export import write_huggingface
from gpt2x.interop.pretrained import read
from gpt2x.model.classifier import parts
from gpt2x.tokenizer.bpe import BPETokenizer
from gpt2x.tokenizer.gpt2 import GPT2Tokenizer
from gpt2x.training.checkpoint import Checkpoints
from gpt2x.training.init import spread
from gpt2x.training.load import load_run

SHAPE = dict(n_layer=2, n_head=2, n_embd=16, context_length=128)
TOKENIZER = BPETokenizer.from_corpus([TEXT], vocab_size=300)
QUICK = [
    "logger=none", "device.threads=1", "trainer.max_steps=4", "trainer.eval_every=4", "sample_prompt=null",
    "sampling.max_new_tokens=2",
]  # fmt: skip
TASKS = {
    "lm": ["data=text", "data.batch_size=2"],
    "classifier": ["task=classifier", "data=spam_sample"],
    "instruct": ["task=instruct", "task.template=phi3", "task.answers=0", "data=instructions_sample"],
}


@pytest.fixture(scope="module", autouse=True)
def text(tmp_path_factory) -> None:
    """What language models are trained on here."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT[:3000])
    TASKS["lm"].append(f"data.path={path}")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> Path:
    """A model as OpenAI's are."""
    folder = tmp_path_factory.mktemp("theirs") / "openai"
    openai.write(folder, gpt(vocab_size=TOKENIZER.vocab_size, **SHAPE), TOKENIZER)
    return folder


@pytest.fixture(scope="module")
def in_hf_form(theirs) -> Path:
    """The same model in Hugging Face's form."""
    loaded = load_run(theirs)
    write_huggingface(theirs.with_name("hf"), loaded.model, loaded.tokenizer)
    return theirs.with_name("hf")


def run(folder: Path, *overrides: str) -> int:
    """gpt2x-train in `folder`; its exit code."""
    return train([*QUICK, f"paths.outputs={folder.parent / 'outputs'}", f"hydra.run.dir={folder}", *overrides])


def begun(theirs: Path, *overrides: str) -> list[str]:
    return ["init=openai", f"init.path={theirs}", *overrides]


def configuration(folder: Path) -> TrainConfig:
    return from_yaml(folder / "config.yaml", TrainConfig)


def gpt_weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(parts(load_run(folder, "last").model)[0].named_parameters())


def saved(folder: Path) -> dict[str, torch.Tensor]:
    return Checkpoints(folder / "checkpoints").select("last").tensors("model")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(weight, b[name]) for name, weight in a.items())


# -- any task, any way to fine-tune ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "finetune", "trained"),
    [
        ("lm", "full", "every"),
        ("lm", "lora", "adapted"),
        ("classifier", "head", "none"),
        ("classifier", "last_block", "last"),
        ("instruct", "lora", "adapted"),
        ("instruct", "last_block", "last"),
    ],
)
def test_any_task_and_any_way_to_fine_tune_begin_with_the_folder_s_model(theirs, tmp_path, task, finetune, trained):
    """What the run freezes is bit for bit the folder's, and what it trains is not."""
    more = ["finetune.targets=[c_fc]"] if finetune == "lora" else []
    assert run(tmp_path / "run", *TASKS[task], f"finetune={finetune}", *more, *begun(theirs)) == 0
    mine, first = gpt_weights(tmp_path / "run"), read(theirs).tensors
    changed = {name for name in mine if not torch.equal(mine[name], first[name])}
    expected = {
        "every": set(mine),
        "none": set(),
        "last": {name for name in mine if name.startswith(("h.1.", "ln_f"))},
        "adapted": {"h.0.mlp.c_fc.weight", "h.1.mlp.c_fc.weight"},
    }
    assert changed == expected[trained]
    assert load_run(tmp_path / "run").tokenizer.fingerprint == TOKENIZER.fingerprint
    config = configuration(tmp_path / "run")
    assert asdict(config.model).items() >= SHAPE.items()
    assert (config.init.path, config.init.size) == (str(theirs), None)


@pytest.mark.parametrize(("task", "finetune"), [("classifier", "last_block"), ("lm", "lora")])
def test_so_does_a_model_in_hugging_face_s_form(theirs, in_hf_form, tmp_path, task, finetune):
    """With the same numbers, to the bit."""
    given = [*TASKS[task], f"finetune={finetune}", "model.context_length=100", "model.dropout=0"]
    for folder, init in (("mine", begun(theirs)), ("run", ["init=hf", f"init.path={in_hf_form}"])):
        assert run(tmp_path / folder, *given, *init) == 0
    assert same(saved(tmp_path / "run"), saved(tmp_path / "mine"))
    assert same(gpt_weights(tmp_path / "run"), gpt_weights(tmp_path / "mine"))
    assert configuration(tmp_path / "run").init.path == str(in_hf_form)


@pytest.mark.parametrize("form", ["run", "hf"])
def test_a_classifier_goes_on_with_its_head_where_the_classes_are_the_same(theirs, tmp_path, form):
    first = tmp_path / "first"
    assert run(first, *TASKS["classifier"], *begun(theirs), "model.context_length=32") == 0
    head = load_run(first, "last").model.score
    if form == "hf":
        assert export([f"checkpoint={first}", "which=last", "format=hf", f"output={tmp_path / 'hf'}"]) == 0
        first = tmp_path / "hf"
    began = [f"init={form}", f"init.path={first}", *["init.which=last"] * (form == "run"), "finetune=last_block"]
    still = ["optimizer.lr=1e-30", "optimizer.weight_decay=0", "trainer.max_steps=1"]
    assert run(tmp_path / "same", *TASKS["classifier"], *began, *still) == 0
    mine = load_run(tmp_path / "same", "last").model.score
    assert torch.equal(mine.weight, head.weight)
    bias = head.bias if form == "run" else torch.zeros(2)  # there it has gone into the final norm
    assert torch.allclose(mine.bias, bias, rtol=0, atol=1e-20)  # the step moves a zero by its learning rate
    # The same classes in another order are other classes, for the outputs of a head.
    assert run(tmp_path / "other", *TASKS["classifier"], "data.labels=[spam,ham]", *began, *still) == 0
    assert not torch.equal(load_run(tmp_path / "other", "last").model.score.weight, head.weight)


@pytest.mark.parametrize("finetune", ["full", "lora"])
def test_such_a_run_is_resumed_bit_for_bit(theirs, tmp_path, finetune):
    first = shutil.copytree(theirs, tmp_path / "theirs")
    given = [*TASKS["classifier"], f"finetune={finetune}", "model.dropout=0.1", "trainer.eval_every=2", "trainer.keep_last=9"]
    assert run(tmp_path / "run", *given, *begun(first)) == 0
    expected = saved(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000004")
    if finetune == "full":
        shutil.rmtree(first)  # all its weights are in its own checkpoints
    assert train([f"resume={tmp_path / 'run'}"]) == 0
    assert same(saved(tmp_path / "run"), expected)


def test_an_adapter_finds_its_base_or_says_what_is_wrong_with_it(theirs, tmp_path, capsys):
    first = shutil.copytree(theirs, tmp_path / "theirs")
    assert run(tmp_path / "run", *TASKS["lm"], "finetune=lora", *begun(first)) == 0
    before = gpt_weights(tmp_path / "run")
    first = first.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"an adapter alone, for the model in {tmp_path / 'theirs'}, which is not there"):
        load_run(tmp_path / "run")
    capsys.readouterr()
    assert train([f"resume={tmp_path / 'run'}", "trainer.max_steps=6"]) == 2
    assert f"init.path={tmp_path / 'theirs'}: not the folder of a model of OpenAI's" in capsys.readouterr().err
    assert train([f"resume={tmp_path / 'run'}", "trainer.max_steps=6", f"init.path={first}"]) == 0
    openai.write(tmp_path / "theirs", gpt(vocab_size=TOKENIZER.vocab_size, **SHAPE, seed=7), TOKENIZER)
    path = tmp_path / "run" / "config.yaml"
    path.write_text(path.read_text().replace(str(first), str(tmp_path / "theirs")))
    with pytest.raises(UserError, match="belongs to other weights than those of .*theirs$"):
        load_run(tmp_path / "run")
    path.write_text(path.read_text().replace(str(tmp_path / "theirs"), str(first)))
    assert not same(gpt_weights(tmp_path / "run"), before)  # it was trained on


# -- positions ---------------------------------------------------------------------------------------------------


def test_a_shorter_context_leaves_the_positions_beyond_it_out(theirs, tmp_path):
    given = [*TASKS["lm"], "finetune=last_block", "model.context_length=40"]
    assert run(tmp_path / "run", *given, *begun(theirs)) == 0
    assert torch.equal(gpt_weights(tmp_path / "run")["wpe.weight"], read(theirs).tensors["wpe.weight"][:40])


def test_a_longer_context_needs_a_word_and_gets_its_positions(theirs, tmp_path, capsys):
    given = [*TASKS["lm"], "finetune=last_block", "model.context_length=300"]
    assert run(tmp_path / "run", *given, *begun(theirs)) == 2
    error = capsys.readouterr().err
    assert "model.context_length=300: the model that it begins with has 128 positions" in error
    assert "init.positions=repeat, init.positions=interpolate" in error
    assert run(tmp_path / "run", *given, *begun(theirs, "init.positions=interpolate")) == 0
    mine = gpt_weights(tmp_path / "run")
    assert torch.equal(mine["wpe.weight"], spread(read(theirs).tensors["wpe.weight"], 300, "interpolate"))
    assert load_run(tmp_path / "run").model.context_length == 300


def test_what_repeating_and_interpolating_make():
    wpe = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(spread(wpe, 12, "repeat"), torch.cat([wpe, wpe, wpe[:2]]))
    at = np.linspace(0, 4, 12)
    expected = np.stack([np.interp(at, range(5), column) for column in wpe.T.numpy()], axis=1)
    np.testing.assert_allclose(spread(wpe, 12, "interpolate"), expected, atol=1e-6)


def test_a_run_s_positions_can_be_extended_too(theirs, tmp_path, capsys):
    given = [*TASKS["lm"], "finetune=last_block"]
    assert run(tmp_path / "first", *given, *begun(theirs)) == 0
    longer = ["init=run", f"init.path={tmp_path / 'first'}", "model.context_length=200"]
    assert run(tmp_path / "refused", *given, *longer) == 2
    assert "init.positions=repeat" in capsys.readouterr().err
    assert run(tmp_path / "run", *given, *longer, "init.positions=repeat") == 0
    wpe = read(theirs).tensors["wpe.weight"]
    assert torch.equal(gpt_weights(tmp_path / "run")["wpe.weight"], torch.cat([wpe, wpe[:72]]))


# -- what is known before ----------------------------------------------------------------------------------------


def shown(capsys, *overrides: str) -> dict:
    capsys.readouterr()
    assert train([*overrides, "--cfg", "job"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize(("size", "n_layer", "n_head", "n_embd"), [("124M", 12, 12, 768), ("1558M", 48, 25, 1600)])
def test_a_size_brings_its_shape_and_tokenizer_without_any_file(size, n_layer, n_head, n_embd):
    config = compose("train", TrainConfig, ["init=openai", f"init.size={size}", "model.dropout=0.2"])
    shape = dict(n_layer=n_layer, n_head=n_head, n_embd=n_embd, context_length=1024, tied_head=True, position="learned")
    assert asdict(config.model).items() >= (shape | {"dropout": 0.2}).items()
    assert asdict(config.tokenizer) == {"_target_": "gpt2x.tokenizer.gpt2.GPT2Tokenizer.from_corpus"}
    assert (config.init.size, config.init.path) == (size, None)


def test_a_folder_brings_its_own(theirs, capsys):
    config = shown(capsys, *begun(theirs, "model.context_length=64"))
    assert config["model"].items() >= (SHAPE | {"context_length": 64}).items()
    assert config["tokenizer"]["vocab_size"] == TOKENIZER.vocab_size


def test_recipes_keep_what_they_say_of_the_model():
    composed = compose("train", TrainConfig, ["experiment=spam_book", "init=openai", "init.size=124M"])
    assert (composed.model.n_layer, composed.model.dropout, composed.model.context_length) == (12, 0.0, 1024)
    composed = compose("train", TrainConfig, ["experiment=instruct_book", "init=openai", "init.size=124M"])
    assert (composed.model.n_layer, composed.tokenizer._target_) == (12, "gpt2x.tokenizer.gpt2.GPT2Tokenizer.from_corpus")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["init=openai"], "init.size=null: neither a size nor a folder is given\n  such as init.size=124M"),
        (["init=openai", "init.size=117M"], "init.size=117M: expected one of null, 124M, 355M, 774M, 1558M"),
        (["init=openai", "init.path=nowhere"], "init.path=nowhere: not the folder of a model of OpenAI's (it has no hparams"),
        (["init=run", "init.path={theirs}"], "it is that of a model of OpenAI's: use init=openai"),
        (["init=hf", "init.path={theirs}"], "it is that of a model of OpenAI's: use init=openai"),
        (["init=openai", "init.path={theirs}", "init.size=124M"], "init.size=124M: the model in init.path={theirs} is of an"),
        (["init=openai", "init.path={theirs}", "model.n_layer=3"], "model.n_layer=3: the model that it begins with has 2"),
        (["init=openai", "init.size=124M", "model=gpt2-medium"], "model.n_layer=24: the model that it begins with has 12"),
        (
            ["init=openai", "init.size=124M", "model.position=rope"],
            "model.position=rope: the model that it begins with has ",
        ),
        (["init=openai", "init.size=124M", "model.context_length=2048"], "the model that it begins with has 1,024 positions"),
        (["init=openai", "init.path={theirs}", "tokenizer=char"], "init.path={theirs}: that model's tokens (bpe, 300) are not"),
        (["init=openai", "init.path={theirs}", "tokenizer=gpt2"], "init.path={theirs}: that model's tokens (bpe, 300) are not"),
        (
            ["init=openai", "init.path={theirs}", "init.positions=zeros"],
            "init.positions=zeros: expected one of null, ",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(theirs, tmp_path, capsys, overrides, said):
    overrides = [override.format(theirs=theirs) for override in overrides]
    assert run(tmp_path / "run", f"paths.mirror={tmp_path}", *overrides) == 2
    error = capsys.readouterr().err
    assert said.format(theirs=theirs) in error
    assert "Traceback" not in error


def test_a_head_of_its_own_is_not_left_behind_without_a_word(tmp_path, capsys):
    write_huggingface(tmp_path / "untied", gpt(vocab_size=TOKENIZER.vocab_size, tied_head=False, **SHAPE), TOKENIZER)
    init = ["init=hf", f"init.path={tmp_path / 'untied'}"]
    assert run(tmp_path / "run", *init, "model.tied_head=true") == 2
    assert "model.tied_head=true: the model that it begins with has a head of its own" in capsys.readouterr().err
    assert run(tmp_path / "run", *TASKS["lm"], *init, "finetune=head") == 0
    mine, first = gpt_weights(tmp_path / "run"), read(tmp_path / "untied").tensors
    assert {name for name in mine if not torch.equal(mine[name], first[name])} == {"lm_head.weight"}


def test_torn_weights_are_refused_by_name_and_a_torn_shape_before_anything(theirs, tmp_path, capsys):
    torn = shutil.copytree(theirs, tmp_path / "torn")
    with open(torn / openai.DATA, "rb+") as file:
        file.truncate(1000)
    assert run(tmp_path / "run", *begun(torn)) == 1
    assert f"{torn / openai.DATA}: cut short: it has 1,000 bytes" in capsys.readouterr().err
    (torn / "hparams.json").write_text("{}")
    assert run(tmp_path / "other", *begun(torn)) == 2
    assert f"init=openai: {torn / 'hparams.json'}: expected a JSON object" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


# -- fetching ----------------------------------------------------------------------------------------------------


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A small model in the place of the 124M: on a server, with a folder for what is fetched from it."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setitem(openai.SIZES, "124M", dict(n_layer=1, n_head=1, n_embd=8))
    monkeypatch.setattr(openai, "_PUBLISHED", {})
    monkeypatch.setattr(openai, "N_CTX", 128)
    shape = dict(n_layer=1, n_head=1, n_embd=8, context_length=128)
    openai.write(tmp_path / "published", gpt(vocab_size=50_257, **shape), GPT2Tokenizer())
    with served() as server:
        monkeypatch.setattr(openai, "_SOURCES", (server.url("{size}/{file}"),))
        server.files = {path.name: path.read_bytes() for path in (tmp_path / "published").iterdir()}
        yield server


def test_a_size_is_fetched_and_where_it_lies_is_noted(published, tmp_path, capsys):
    given = [*TASKS["lm"], "finetune=lora", "init=openai", "init.size=124M", f"paths.cache={tmp_path / 'cache'}"]
    assert run(tmp_path / "run", *given, f"paths.mirror={tmp_path}", "device.threads=1") == 0
    assert f"fetching OpenAI's 124M, 2 MB, into {tmp_path / 'cache' / 'openai' / '124M'}\n" in capsys.readouterr().err
    config = configuration(tmp_path / "run")
    assert (config.init.size, config.init.path) == ("124M", str(tmp_path / "cache" / "openai" / "124M"))
    assert len(published.requests) == 3
    assert gpt_weights(tmp_path / "run")["wte.weight"].shape == (50_257, 8)  # the adapter finds its base there
    published.status = 503
    shutil.rmtree(tmp_path / "cache" / "openai")
    capsys.readouterr()
    assert run(tmp_path / "again", *given) == 1
    error = capsys.readouterr().err
    assert "HTTP status 503" in error
    assert "paths.mirror=FOLDER" in error


def test_a_sweep_over_sizes_goes_on_with_what_it_has(published, tmp_path):
    """The folder that a size was found in is no other setting than the size."""
    sweep = tmp_path / "sweep"
    given = [*QUICK, *TASKS["lm"], "finetune=last_block", "init=openai", "init.size=124M", "optimizer.lr=1e-3,1e-2"]
    paths = [f"paths.outputs={tmp_path / 'outputs'}", f"paths.cache={tmp_path / 'cache'}"]
    assert train(["-m", *given, *paths, f"hydra.sweep.dir={sweep}"]) == 0
    before = {folder: saved(folder) for folder in (sweep / "0", sweep / "1")}
    published.requests.clear()
    assert train([f"resume={sweep}"]) == 0
    assert published.requests == []
    assert all(same(saved(folder), weights) for folder, weights in before.items())
