"""Training through compiled code: the same training as torch's, and the same bits again, wherever a run is interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gpt2x.model import fused
from gpt2x.tracking.tracker import read_metrics
from gpt2x.training.run import train

FITTING = {"model.n_embd": 32, "model.dropout": 0.0}  # two heads, each of 16, which train.c takes


def losses(run_dir: Path) -> list[float]:
    return [row["train/loss"] for row in read_metrics(run_dir) if "train/loss" in row]


def final_weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(sorted((run_dir / "checkpoints").glob("step-*"))[-1] / "model.safetensors")


@pytest.fixture
def count(monkeypatch) -> list[str]:
    """The blocks that were computed by compiled code."""
    names, run = [], fused.run
    monkeypatch.setattr(fused, "run", lambda *a: (names.append("block"), run(*a))[1])
    return names


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"trainer.accumulate": 3, "trainer.ema_decay": 0.9},
        {"device.precision": "bf16", "trainer.accumulate": 2},
        {
            "model.tied_head": False,
            "model.position": "rope",
            "model.norm": "rmsnorm",
            "model.mlp": "relu2",
            "model.softcap": 15.0,
        },
        {
            "optimizer._target_": "gpt2x.training.optimizer.muon",
            "optimizer.ns_precision": "fp32",  # auto is bf16 where there are instructions for it
            "model.bias": False,
            "model.qk_norm": True,
        },
    ],
    ids=str,
)
def test_it_is_the_training_that_torch_does(small_run, tmp_path, count, changes):
    """To the rounding of the sums; in bf16, of numbers of 8 bits in another order."""
    tolerance = 2e-2 if "device.precision" in changes else 2e-4
    config = small_run(**FITTING | changes)
    train(config, tmp_path / "kernels")
    assert count
    count.clear()
    plain = small_run(**FITTING | changes | {"device.kernels": False})
    train(plain, tmp_path / "torch")
    assert not count
    assert losses(tmp_path / "kernels") == pytest.approx(losses(tmp_path / "torch"), abs=tolerance)
    val = [[row["val/loss"] for row in read_metrics(tmp_path / name) if "val/loss" in row] for name in ("kernels", "torch")]
    assert val[0] == pytest.approx(val[1], abs=tolerance)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_that_goes_on_has_the_bits_of_one_that_was_never_stopped(small_run, tmp_path, count, precision):
    changes = FITTING | {
        "device.precision": precision,
        "model.dropout": 0.1,
        "schedule._target_": "gpt2x.training.schedule.Constant",
        "trainer.checkpoint_every": 6,
    }
    whole = train(small_run(**changes), tmp_path / "whole").run_dir
    half = train(small_run(**changes | {"trainer.max_steps": 6}), tmp_path / "half").run_dir
    train(small_run(**changes | {"resume": str(half)}), half)
    assert count
    first, second = final_weights(whole), final_weights(half)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recomputing_changes_no_bit(small_run, tmp_path, count, precision):
    changes = FITTING | {"device.precision": precision, "model.dropout": 0.1, "trainer.accumulate": 2}
    for name, recompute in (("a", False), ("b", True)):
        train(small_run(**changes | {"trainer.recompute": recompute}), tmp_path / name)
    assert count
    once, twice = final_weights(tmp_path / "a"), final_weights(tmp_path / "b")
    assert all(torch.equal(once[name], twice[name]) for name in once)


def test_without_a_compiler_torch_trains(small_run, tmp_path, monkeypatch, count):
    monkeypatch.setenv("CC", str(tmp_path / "no-compiler"))
    fused.compiled.cache_clear()
    train(small_run(**FITTING), tmp_path / "run")
    assert not count
    assert "training without the code for this processor" in (tmp_path / "run" / "run.log").read_text()
    fused.compiled.cache_clear()
