"""Devices: threads, precision, and what is refused."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from gpt2x.config.option import ConfigError
from gpt2x.device import Device, DeviceConfig, _cpu_has_bf16, default_threads, waited
from gpt2x.tracking.tracker import read_metrics
from gpt2x.training.run import train


def make(**changes) -> Device:
    settings = dict(type="cpu", precision="fp32", threads=1, compile=False, deterministic=True, flush_denormals=True)
    return Device(**settings | {"keep_memory": False, "kernels": True} | changes)


def test_threads_are_what_is_asked_for():
    make(threads=1)
    assert torch.get_num_threads() == 1
    make(threads=2)
    assert torch.get_num_threads() == 2


def test_a_parallel_job_takes_its_share(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert default_threads() == 1
    assert make(threads=None).threads == 1
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert default_threads() >= 1


def test_denormals_are_flushed_or_kept():
    tiny = torch.tensor([1e-39])
    make(flush_denormals=True)
    flushed = (tiny * 1.0).item()
    make(flush_denormals=False)
    assert flushed == 0.0
    assert (tiny * 1.0).item() != 0.0


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
@pytest.mark.parametrize("keep", [True, False])
def test_memory_is_kept_or_given_back(keep):
    """In a process of its own, where nothing was freed before."""
    code = f"""
import psutil, torch
from tests.test_device import make
make(keep_memory=not {keep})
make(keep_memory={keep})
resident = lambda: psutil.Process().memory_info().rss
before, large = resident(), torch.ones(50_000_000)
held = resident() - before
del large
print(held, resident() - before)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    held, left = map(int, done.stdout.split())
    assert held > 190e6
    assert (left > 190e6) == keep


def test_kernels_are_a_processors_and_compiling_does_without():
    assert make().kernels
    assert not make(kernels=False).kernels
    assert not make(compile=True).kernels


def test_each_switch_is_set_either_way():
    make(deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    make(deterministic=False)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu_says_the_remedy():
    with pytest.raises(ConfigError, match="device=cpu"):
        DeviceConfig(type="cuda").check_available()


@pytest.mark.parametrize("changes", [{"compile": True}, {"type": "cuda"}], ids=str)
def test_kernels_that_would_not_be_used_are_refused(changes):
    with pytest.raises(ConfigError, match="would not be used\n  leave it out, or device.kernels=false"):
        DeviceConfig(kernels=True, **changes).check_available()
    DeviceConfig(kernels=False, compile=True).check_available()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity") or not os.path.exists("/proc/self/schedstat"), reason="not told here")
def test_time_that_another_program_takes_is_waited_for(monkeypatch):
    """On one CPU with it."""
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(mine)})
    try:
        with subprocess.Popen([sys.executable, "-uc", "print()\nwhile True: pass"], stdout=subprocess.PIPE) as other:
            other.stdout.readline()
            before, begun = waited(), time.thread_time()
            while time.thread_time() - begun < 0.1:
                pass
            delay = waited() - before
            other.kill()
        assert delay > 0.02
    finally:
        os.sched_setaffinity(0, mine)
    monkeypatch.setattr("gpt2x.device.glob.glob", lambda pattern: [])
    assert waited() == 0


def test_bf16_without_the_instructions_says_the_remedy(monkeypatch):
    monkeypatch.setattr("gpt2x.device._cpu_has_bf16", lambda: False)
    with pytest.raises(ConfigError, match="device=cpu"):
        DeviceConfig(precision="bf16").check_available()


@pytest.mark.skipif(not _cpu_has_bf16(), reason="this processor has no bfloat16")
def test_bf16_trains_to_about_the_same_loss_and_repeats_its_bits(small_run, tmp_path):
    losses = []
    for name, precision in (("fp32", "fp32"), ("bf16", "bf16"), ("again", "bf16")):
        train(small_run(**{"device.precision": precision, "model.n_embd": 32}), tmp_path / name)
        losses.append([row["train/loss"] for row in read_metrics(tmp_path / name) if "train/loss" in row])
    assert losses[1] != losses[0]
    assert losses[1] == losses[2]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)  # bfloat16 carries 8 bits: 0.4 % a product


def test_compiled_training_equals_eager_training(small_run, tmp_path):
    pytest.importorskip("torch._inductor")
    for name, compiled in (("eager", False), ("compiled", True)):
        train(small_run(**{"device.compile": compiled, "trainer.max_steps": 4, "model.dropout": 0.0}), tmp_path / name)
    eager, compiled = (
        [r["train/loss"] for r in read_metrics(tmp_path / n) if "train/loss" in r] for n in ("eager", "compiled")
    )
    assert compiled == pytest.approx(eager, abs=1e-4)
