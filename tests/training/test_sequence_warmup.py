"""Rows that grow during the first steps: of which tokens, what is counted, and that nothing else changes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt2x.config.compose import compose
from gpt2x.config.option import ConfigError
from gpt2x.config.schema import TrainConfig
from gpt2x.task.lm import LanguageModeling
from gpt2x.tracking.tracker import read_metrics
from gpt2x.training.checkpoint import Checkpoints
from gpt2x.training.flops import flops_per_token
from gpt2x.training.load import load_run
from gpt2x.training.run import train
from gpt2x.training.schedule import SequenceWarmup

GROWING = {"model.context_length": 40, "trainer.sequence_warmup_steps": 8, "trainer.sequence_start": 4}
LENGTHS = [4, 8, 8, 16, 16, 24, 24, 32, 40, 40, 40, 40]  # a line from 4 to 40 in 8 steps, rounded down to eights, at least 4


@given(start=st.integers(1, 200), more=st.integers(1, 2000), steps=st.integers(1, 300))
def test_rows_grow_from_the_first_length_to_the_last(start, more, steps):
    length = SequenceWarmup(start=start, full=start + more, steps=steps)
    lengths = [length(step) for step in range(steps + 2)]
    assert lengths == sorted(lengths)
    assert (lengths[0], lengths[steps]) == (start, start + more)
    assert all(n % 8 == 0 or n == start for n in lengths[:steps])
    assert all(abs(n - (start + more * step / steps)) <= max(8, start % 8) for step, n in enumerate(lengths[: steps + 1]))


def test_a_batch_is_the_beginning_of_the_one_it_would_be_and_tokens_are_counted(small_run, tmp_path, monkeypatch):
    seen: dict[str, list] = {"whole": [], "growing": []}
    evaluated = set()
    real, measure = LanguageModeling.loss, LanguageModeling.evaluate
    name = "whole"

    def loss(self, model, batch):
        seen[name].append(batch)
        return real(self, model, batch)

    def evaluate(self, model, batches, stop):
        batches = list(batches)
        evaluated.update(batch.inputs.shape[1] for batch in batches[:-1])
        return measure(self, model, batches, stop)

    monkeypatch.setattr(LanguageModeling, "loss", loss)
    monkeypatch.setattr(LanguageModeling, "evaluate", evaluate)
    states = {}
    for name in seen:
        changes = GROWING if name == "growing" else {"model.context_length": 40}
        states[name] = train(small_run(**changes, **{"trainer.accumulate": 2}), tmp_path / name).state
    assert [batch.inputs.shape[1] for batch in seen["growing"][::2]] == LENGTHS
    for whole, growing in zip(seen["whole"], seen["growing"], strict=True):
        n = growing.inputs.shape[1]
        assert torch.equal(growing.inputs, whole.inputs[:, :n])
        assert torch.equal(growing.targets, whole.targets[:, :n])
        assert growing.weight == growing.tokens == 4 * n
    assert evaluated == {40}
    assert states["growing"].tokens == 2 * 4 * sum(LENGTHS)
    model = load_run(tmp_path / "growing").model
    assert states["growing"].flops == pytest.approx(sum(8 * n * flops_per_token(model, n) for n in LENGTHS))
    rows = [row["tokens"] for row in read_metrics(tmp_path / "growing")]
    assert rows == [2 * 4 * sum(LENGTHS[:step]) for step in range(13)]
    assert "the first 8 are shorter, from 4 tokens on" in (tmp_path / "growing" / "run.log").read_text()


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(small_run, tmp_path):
    run = tmp_path / "run"
    settings = GROWING | {"trainer.keep_last": 9, "optimizer.beta2_half_life_tokens": 2000.0}
    train(small_run(**settings), run)
    whole = Checkpoints(run / "checkpoints").load(12).tensors("model")
    for step in (8, 12):
        for file in (run / "checkpoints" / f"step-{step:08d}").iterdir():
            file.unlink()
        (run / "checkpoints" / f"step-{step:08d}").rmdir()
    train(small_run(resume=str(run), **settings), run)
    again = Checkpoints(run / "checkpoints").load(12).tensors("model")
    assert all(torch.equal(again[name], weight) for name, weight in whole.items())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=classifier", "data=spam_sample"], "sequence_warmup_steps=100: is for text"),
        (["trainer.max_steps=50"], "sequence_warmup_steps=100: the rows would still grow at the end of trainer.max_steps=50"),
        (["trainer.sequence_start=128"], "sequence_start=128: rows have model.context_length=128 tokens"),
    ],
)
def test_what_cannot_grow_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        compose("train", TrainConfig, ["trainer.sequence_warmup_steps=100", *overrides])
