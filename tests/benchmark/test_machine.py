"""What is told about the machine is plausible, and a process's memory is its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import torch

from gpt2x.benchmark import machine
from gpt2x.device import peak_memory


def test_memory_is_read_at_a_plausible_speed():
    torch.set_num_threads(1)
    assert 1e8 < machine.memory_bandwidth(passes=1) < 1e13


def test_the_array_is_larger_than_the_caches_and_leaves_memory_free(monkeypatch):
    sizes = []
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda n: (sizes.append(4 * n), ones(10))[1])
    monkeypatch.setattr(machine, "largest_cache", lambda: 2**30)
    for free in (2**40, 2**32):
        monkeypatch.setattr(psutil, "virtual_memory", lambda free=free: type("Memory", (), {"available": free}))
        machine.memory_bandwidth(passes=1)
    monkeypatch.setattr(machine, "largest_cache", lambda: None)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 2**40}))
    machine.memory_bandwidth(passes=1)
    assert sizes == [2**32, 2**30, 2**30]


def test_the_facts_are_plain_data():
    facts = json.loads(json.dumps(machine.facts()))
    assert facts["cpu"]
    assert 1 <= facts["usable_cores"] <= os.cpu_count()
    assert facts["memory_bytes"] > 1e8


def test_peak_memory_is_not_the_parents():
    ballast = bytearray(400_000_000)
    code = "from gpt2x.device import peak_memory; print(peak_memory()); x = b'1' * 100_000_000; print(peak_memory())"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert peak_memory() > len(ballast)
    assert after - before > 90_000_000
    if sys.platform == "linux":
        assert before < 200_000_000
