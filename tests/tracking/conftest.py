"""What the tracking tests share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_wandb import FakeWandb

ROOT = Path(__file__).parents[2]


@pytest.fixture
def wandb_server() -> Iterator[FakeWandb]:
    with FakeWandb() as server:
        yield server


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment of somebody who never used wandb, with gpt2x on the path."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("WANDB") and key != "NETRC"}
    env |= {"HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"}
    env |= {"WANDB__DISABLE_STATS": "true", "WANDB__DISABLE_MACHINE_INFO": "true"}  # no call to a cloud's metadata
    Path(env["HOME"]).mkdir()
    return env


@pytest.fixture
def python(environment: dict[str, str], tmp_path: Path):
    """Starts a script in a process of its own, in `tmp_path`, with further environment variables."""
    started: list[subprocess.Popen] = []

    def start(script: str, **variables: str) -> subprocess.Popen:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        env = environment | variables
        started.append(subprocess.Popen([sys.executable, "-c", script], env=env, cwd=tmp_path, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()
