"""Loading a trained model out of its folder."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from models import gpt

from gpt2x.commands import generate
from gpt2x.errors import UserError
from gpt2x.training.checkpoint import Checkpoints
from gpt2x.training.load import Undrawn, load_run
from gpt2x.training.run import train


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def run(small_run, runs):
    if not (runs / "run").exists():
        train(small_run(), runs / "run")
    return runs / "run"


def test_the_loaded_model_has_the_checkpoint_s_weights_and_loss(run):
    loaded = load_run(run, "last")
    weights = Checkpoints(run / "checkpoints").newest().tensors("model")
    assert all(torch.equal(p, weights[name]) for name, p in loaded.model.named_parameters())
    assert loaded.checkpoint.step == 12
    assert not loaded.model.training


def test_where_weights_were_averaged_the_average_is_loaded(small_run, tmp_path):
    train(small_run(**{"trainer.ema_decay": 0.9}), tmp_path / "run")
    checkpoint = Checkpoints(tmp_path / "run" / "checkpoints").select("last")
    loaded = load_run(tmp_path / "run", "last")
    assert torch.equal(loaded.model.wte.weight, checkpoint.tensors("ema")["wte.weight"])
    assert not torch.equal(loaded.model.wte.weight, checkpoint.tensors("model")["wte.weight"])


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="not the folder of a run"):
        load_run(tmp_path)


def test_a_run_without_a_checkpoint_is_refused(run, tmp_path):
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(UserError, match="has not saved one yet"):
        load_run(tmp_path / "run")


def test_another_tokenizer_is_refused_by_name(run, small_run, tmp_path):
    train(small_run(**{"tokenizer.vocab_size": 280}), tmp_path / "other")
    shutil.copytree(run, tmp_path / "run")
    shutil.copy(tmp_path / "other" / "tokenizer.json", tmp_path / "run" / "tokenizer.json")
    ours = json.loads((run / "tokenizer.json").read_text())["fingerprint"]
    theirs = json.loads((tmp_path / "other" / "tokenizer.json").read_text())["fingerprint"]
    with pytest.raises(UserError, match=f"belongs to another tokenizer: it has {ours}, this run has {theirs}"):
        load_run(tmp_path / "run")


def test_a_hostile_configuration_cannot_call_anything(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / "config.yaml"
    path.write_text(path.read_text().replace("gpt2x.model.gpt.GPT", "os.system"))
    with pytest.raises(UserError, match=r"os\.system"):
        load_run(tmp_path / "run")


def test_nothing_is_drawn_for_weights_that_are_about_to_be_overwritten():
    before = torch.get_rng_state()
    with Undrawn():
        model = gpt(position="rope", tied_head=False)
        torch.nn.Linear(3, 3)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(model.rotary.turns, gpt(position="rope").rotary.turns)  # what is computed is there
    assert not torch.equal(torch.get_rng_state(), before)  # torch draws by itself where it may
    assert torch.equal(gpt(seed=3).wte.weight, gpt(seed=3).wte.weight)


def test_loading_a_run_draws_nothing(run):
    before = torch.get_rng_state()
    load_run(run)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_can_be_loaded_after_its_text_has_gone(small_run, tmp_path):
    config = small_run()
    train(config, tmp_path / "run")
    (tmp_path / "text.txt").unlink()
    assert load_run(tmp_path / "run").model is not None


def test_generate_prints_prompt_and_continuation_and_repeats_itself_for_a_seed(run, capsys):
    command = [f"checkpoint={run}", "prompt=The cat", "sampling.max_new_tokens=20"]
    texts = []
    for seed in (1, 1, 2):
        assert generate([*command, f"seed={seed}"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].startswith("The cat")
    assert len(texts[0]) > len("The cat\n")


def test_an_unknown_character_is_named(small_run, tmp_path, capsys):
    from gpt2x.tokenizer.config import CharTokenizerConfig

    config = small_run()
    config.tokenizer = CharTokenizerConfig()
    train(config, tmp_path / "run")
    assert generate([f"checkpoint={tmp_path / 'run'}", "prompt=naïve"]) == 1
    error = capsys.readouterr().err
    assert "ï" in error
    assert "KeyError" not in error


def test_generate_says_what_is_wrong_with_its_checkpoint(tmp_path, capsys):
    assert generate([f"checkpoint={tmp_path / 'nowhere'}"]) == 2
    assert "nowhere" in capsys.readouterr().err
