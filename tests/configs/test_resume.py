"""What may change when a run is resumed, and what may not."""

from __future__ import annotations

import pytest

from gpt2x.config.compose import Composer, compose, to_yaml
from gpt2x.config.option import ConfigError
from gpt2x.config.resume import resume
from gpt2x.config.schema import TrainConfig

SAVED = compose(
    "train",
    TrainConfig,
    [
        "model.n_layer=3",
        "trainer.eval_every=100",
        "trainer.max_steps=500",
        "sample_prompt=${x}, y",
        "data.batch_size=2",
        "name=first",
    ],
)


def resumed(tmp_path, *texts: str, saved: TrainConfig = SAVED) -> TrainConfig:
    (tmp_path / "config.yaml").write_text(to_yaml(saved))
    composer = Composer("train", TrainConfig)
    overrides = composer.read(texts)
    resume(composer, tmp_path, overrides)
    return composer.config(overrides)


def test_the_configuration_is_the_runs_own(tmp_path):
    assert resumed(tmp_path) == SAVED


@pytest.mark.parametrize(
    "overrides",
    [
        "trainer.max_steps=501 trainer.keep_last=5 trainer.keep_best=false trainer.keep_every=200",
        "trainer.max_steps=500 model.n_layer=3 seed=1 data=storybook data.batch_size=2",
        "trainer.log_every=1 trainer.log_seconds=1 trainer.patience=3 device.threads=1 paths.cache=elsewhere",
        "trainer.recompute=true device.keep_memory=false device.kernels=false",
        'sampling.logit_bias={"a":-2}',
        "logger.mode=offline sampling=greedy sampling.top_k=3 sample_prompt=null",
        "logger=none",
    ],
)
def test_what_may_change(tmp_path, overrides):
    config = resumed(tmp_path, *overrides.split())
    assert (config.model, config.name) == (SAVED.model, "first")
    if overrides == "logger=none":
        assert type(config.logger).__name__ == "NoLoggerConfig"
    if "501" in overrides:
        assert (config.trainer.max_steps, config.trainer.keep_last) == (501, 5)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.n_layer=4", "model.n_layer=4: the run was started with 3; a change would make it another experiment"),
        ("model=micro", "model.n_layer="),
        ("optimizer=sgd", "optimizer._target_=gpt2x.training.optimizer.sgd: the run was started with"),
        ("seed=2", "seed=2: the run was started with 1"),
        ("name=second", "name=second: the run was started with first"),
        ("trainer.eval_every=51", "trainer.eval_every=51: the run was started with"),
        ("trainer.max_steps=499", "trainer.max_steps=499: the run was started with 500, which can be raised and nothing else"),
        ("device=cuda", "device.type=cuda: the run was started with cpu"),
        ("experiment=verdict_124m", "experiment=verdict_124m: a resumed run keeps its own configuration"),
        ("model.n_layr=3", "did you mean model.n_layer?"),
    ],
)
def test_what_may_not(tmp_path, override, expected):
    with pytest.raises(ConfigError) as caught:
        resumed(tmp_path, override)
    assert expected in str(caught.value)


def test_a_refusal_names_everything_and_what_to_do(tmp_path):
    with pytest.raises(ConfigError) as caught:
        resumed(tmp_path, "seed=2", "name=x")
    lines = str(caught.value).splitlines()
    assert [line.partition("=")[0] for line in lines[:2]] == ["name", "seed"]
    assert lines[2] == "leave them out, or start a new run: leave out resume="


def test_max_epochs_is_raised_likewise(tmp_path):
    saved = compose("train", TrainConfig, ["trainer.max_steps=null", "trainer.max_epochs=2"])
    assert resumed(tmp_path, "trainer.max_epochs=2.5", saved=saved).trainer.max_epochs == 2.5
    for overrides in (["trainer.max_epochs=1.5"], ["trainer.max_steps=5000", "trainer.max_epochs=null"]):
        with pytest.raises(ConfigError, match="can be raised and nothing else"):
            resumed(tmp_path, *overrides, saved=saved)


def test_folders_that_hold_no_run(tmp_path):
    composer = Composer("train", TrainConfig)
    with pytest.raises(ConfigError, match="no such folder"):
        resume(composer, tmp_path / "nowhere", [])
    with pytest.raises(ConfigError, match=r"there is no config\.yaml in it"):
        resume(composer, tmp_path, [])
