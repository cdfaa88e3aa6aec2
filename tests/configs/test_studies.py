"""The studies that change one thing at a time: what they call plain is plain, all of it composes, and nothing is forgotten."""

from __future__ import annotations

from dataclasses import asdict, fields

import pytest

from gpt2x.compare.runs import flat
from gpt2x.config.compose import Composer, compose
from gpt2x.config.multirun import plan
from gpt2x.config.schema import TrainConfig
from gpt2x.model.config import Variant
from gpt2x.sweep.search import OneAtATime

STUDIES = ("study_options", "study_modern")


def read(study: str, *overrides: str) -> dict:
    """All settings of a run of the study, without those that say what is swept."""
    config = flat(asdict(compose("train", TrainConfig, [f"experiment={study}", *overrides])))
    return {key: value for key, value in config.items() if not key.startswith(("sweep", "seeds", "name"))}


@pytest.mark.parametrize("study", STUDIES)
def test_each_run_changes_one_setting_or_one_group(study):
    params = compose("train", TrainConfig, [f"experiment={study}"]).sweep.params
    space = plan(Composer("train", TrainConfig), [], params).space
    plain, *others = [trial.values for trial in OneAtATime(space).ask(1000)]
    itself = read(study)
    assert read(study, *(f"{key}={value}" for key, value in plain.items())) == itself
    assert len({values["name"] for values in others}) == len(others) == sum(len(axis.values) - 1 for axis in space.values())
    for values in others:
        changed = read(study, *(f"{key}={value}" for key, value in values.items()))
        different = {key for key in {**itself, **changed} if itself.get(key) != changed.get(key)}
        (key,) = (key for key in space if values[key] != plain[key])
        assert different and all(name == key or name.startswith(f"{key}.") for name in different), key


@pytest.mark.parametrize("study", STUDIES)
def test_every_option_of_a_model_is_among_them(study):
    params = compose("train", TrainConfig, [f"experiment={study}"]).sweep.params
    assert {f"model.{field.name}" for field in fields(Variant)} | {"optimizer", "schedule", "trainer.ema_decay"} <= set(params)
