"""The learning-rate range test, on curves that are known and on real runs; and runs that diverge."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2x.tracking.tracker import read_metrics
from gpt2x.training.config import RangeTestConfig
from gpt2x.training.lr_range import lr_range, read_lr_range
from gpt2x.training.run import train
from gpt2x.training.trainer import NonFiniteError

LRS = np.geomspace(1e-5, 1.0, 200)


def result(folder) -> dict:
    return json.loads((folder / "result.json").read_text())


@given(at=st.floats(-4.0, -1.5), noise=st.floats(0, 0.05), seed=st.integers(0, 100))
def test_the_middle_of_a_logistic_way_down_is_suggested(at, noise, seed):
    way = 8 - 3 / (1 + np.exp(-4 * (np.log10(LRS) - at)))
    blown_up = 20 * (np.log10(LRS) - at - 1).clip(0)
    found = lr_range(LRS, way + blown_up + noise * np.random.default_rng(seed).standard_normal(200))
    assert abs(math.log10(found.suggested) - at) < 0.3


def test_a_loss_that_never_falls_suggests_nothing():
    assert lr_range(LRS, np.linspace(7, 9, 200)).suggested is None
    assert lr_range(LRS, np.full(200, 7.0)).suggested is None


def test_steep_after_the_lowest_point_does_not_count():
    loss = np.concatenate([np.linspace(8, 5, 100), np.linspace(5, 30, 50), np.linspace(30, 6, 50)])
    assert lr_range(LRS, loss).suggested <= LRS[100]


def range_test(small_run, **changes):
    config = small_run(**{"optimizer.lr": 10.0, "trainer.max_steps": 120, "trainer.eval_every": 120} | changes)
    config.schedule, config.sample_prompt = RangeTestConfig(start=1e-7), None
    return config


def test_of_muon_it_is_the_rate_of_the_matrices(small_run, tmp_path):
    changes = {"optimizer._target_": "gpt2x.training.optimizer.muon", "optimizer.muon_lr": 1.0, "optimizer.lr": 0.1}
    train(range_test(small_run, **changes), tmp_path / "test")
    rows = [row["lr"] for row in read_metrics(tmp_path / "test") if "lr" in row]
    assert rows[-1] == pytest.approx(1.0, rel=0.2)
    suggested = result(tmp_path / "test")["suggested_lr"]
    assert f"suggest  optimizer.muon_lr={suggested:.2g}" in (tmp_path / "test" / "run.log").read_text()


def test_it_finds_a_rate_that_trains_while_the_test_itself_diverges(small_run, tmp_path):
    train(range_test(small_run, **{"trainer.divergence": 1.2, "trainer.clip_norm": None}), tmp_path / "test")
    ended = result(tmp_path / "test")
    assert ended["status"] == "finished"
    assert ended["steps"] < 120
    assert "stopping early: the training loss has diverged" in (tmp_path / "test" / "run.log").read_text()
    assert (tmp_path / "test" / "plots" / "lr_range.png").stat().st_size > 10_000
    suggested = ended["suggested_lr"]
    assert f"suggest  optimizer.lr={suggested:.2g}" in (tmp_path / "test" / "run.log").read_text()
    assert suggested == float(f"{read_lr_range(tmp_path / 'test').suggested:.2g}")

    def reached(lr: float) -> float:
        folder = tmp_path / f"{lr}"
        train(
            small_run(**{"optimizer.lr": lr, "trainer.max_steps": 40, "trainer.eval_every": 40, "sample_prompt": None}), folder
        )
        return result(folder)["last"]["val/loss"]

    good = reached(suggested)
    assert good < reached(suggested / 100) - 0.2
    assert good < reached(min(10.0, suggested * 1000)) - 0.2


def test_it_is_resumed_to_the_same_suggestion(small_run, tmp_path):
    settings = {"trainer.divergence": 1.2, "trainer.clip_norm": None, "trainer.eval_every": 40, "trainer.checkpoint_every": 15}

    def crash(step, metrics):
        if step == 40:
            raise OSError("the power is gone")

    train(range_test(small_run, **settings), tmp_path / "whole")
    with pytest.raises(OSError, match="power"):
        train(range_test(small_run, **settings), tmp_path / "part", prune=crash)
    train(range_test(small_run, **settings, resume=str(tmp_path / "part")), tmp_path / "part")
    whole, part = result(tmp_path / "whole"), result(tmp_path / "part")
    assert part["suggested_lr"] == whole["suggested_lr"]
    assert part["steps"] == whole["steps"]


def test_without_the_setting_a_loss_that_is_no_number_fails_and_with_it_ends_the_run(small_run, tmp_path):
    wild = {"optimizer.lr": 10.0, "trainer.clip_norm": None, "trainer.max_steps": 100, "trainer.eval_every": 100}
    wild |= {"sample_prompt": None, "optimizer._target_": "gpt2x.training.optimizer.sgd"}
    with pytest.raises(NonFiniteError, match="diverged at step"):
        train(small_run(**wild), tmp_path / "fails")
    assert result(tmp_path / "fails")["status"] == "failed"
    train(small_run(**wild, **{"trainer.divergence": 1e9}), tmp_path / "ends")
    assert result(tmp_path / "ends")["status"] == "finished"
    assert result(tmp_path / "ends")["steps"] == result(tmp_path / "fails")["steps"]
    assert all(math.isfinite(row["train/loss"]) for row in read_metrics(tmp_path / "ends") if "train/loss" in row)


def test_a_run_that_learns_does_not_diverge(small_run, tmp_path):
    settings = {"trainer.max_steps": 40, "trainer.eval_every": 20, "sample_prompt": None}
    train(small_run(**settings), tmp_path / "without")
    train(small_run(**settings, **{"trainer.divergence": 1.05}), tmp_path / "with")
    assert result(tmp_path / "with")["last"] == result(tmp_path / "without")["last"]
    assert result(tmp_path / "with")["steps"] == 40
