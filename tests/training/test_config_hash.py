"""Which settings are beside what a run computes: one list, for the hash of a configuration and for comparing runs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

import pytest

from gpt2x.compare.runs import flat
from gpt2x.config.compose import compose
from gpt2x.config.schema import BESIDE, OBSERVED, REPEATED, TrainConfig, is_any_of
from gpt2x.training.run_folder import config_hash


def test_the_hash_is_of_all_groups_but_those_beside():
    """As it is in the result.json of every run that there is."""
    config = compose("train", TrainConfig, [])
    beside = ("name", "resume", "paths", "logger", "sweep", "seeds", "evaluation", "judge")
    left = {k: v for k, v in asdict(config).items() if k not in beside}
    assert config_hash(config) == hashlib.sha256(json.dumps(left, sort_keys=True).encode()).hexdigest()


@pytest.mark.parametrize(("override", "same"), [
    ("name=other", True), ("paths.outputs=elsewhere", True), ("logger=none", True), ("seeds=3", True), ("sweep=paired", True),
    ("seed=2", False), ("device.threads=1", False), ("optimizer.lr=1", False), ("sampling.top_k=3", False),
])  # fmt: skip
def test_what_changes_the_hash(override, same):
    first, other = compose("train", TrainConfig, []), compose("train", TrainConfig, [override])
    assert (config_hash(first) == config_hash(other)) == same
    changed = {key for key, value in flat(asdict(other)).items() if flat(asdict(first)).get(key) != value}
    assert changed
    assert all(is_any_of(key, BESIDE) for key in changed) == same


def test_every_pattern_is_of_a_setting_that_exists():
    settings = flat(asdict(compose("train", TrainConfig, [])))
    assert [pattern for pattern in OBSERVED if not any(is_any_of(key, (pattern,)) for key in settings)] == []
    assert set(BESIDE) < set(REPEATED) < set(OBSERVED)
