"""A stand-in for training and generation, so that the command line can be tested in milliseconds."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from gpt2x import commands
from gpt2x.config.compose import to_yaml
from gpt2x.config.schema import GenerateConfig, TrainedModelConfig
from gpt2x.errors import UserError


@dataclass
class Outcome:
    code: int
    out: str
    err: str


@dataclass
class Fake:
    """What was run, what the next runs shall raise, by seed, and what they leave as their result, by their configuration."""

    runs: list[SimpleNamespace] = field(default_factory=list)
    raises: dict[int, BaseException] = field(default_factory=dict)
    result: Callable[[Any], dict[str, Any]] = lambda config: {"status": "finished"}

    def train(self, config: Any, run_dir: Path, *, overrides: list[str], sweep: str | None = None) -> None:
        (run_dir / "config.yaml").write_text(to_yaml(config))
        self.runs.append(SimpleNamespace(config=config, run_dir=run_dir, overrides=overrides, sweep=sweep))
        if config.seed in self.raises:
            raise self.raises[config.seed]
        result = self.result(config)
        (run_dir / "result.json").write_text(json.dumps(result))
        if result["status"] == "failed":
            raise UserError("it failed")

    def generate(self, config: Any) -> None:
        self.runs.append(SimpleNamespace(config=config))

    evaluate = generate


@pytest.fixture
def fake(monkeypatch, tmp_path):
    fake = Fake()
    monkeypatch.chdir(tmp_path)
    for name, function in (("training", "train"), ("generation", "generate"), ("evaluation", "evaluate")):
        module = ModuleType(f"gpt2x.{name}.run")
        setattr(module, function, getattr(fake, function))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for schema in (TrainedModelConfig, GenerateConfig):
        monkeypatch.setattr(schema, "check_available", lambda self: None)  # no run is needed
    return fake


@pytest.fixture
def train(fake, capsys):
    """Run gpt2x-train in this process: `train("seed=2")` gives its exit code and what it printed."""
    return _runner(commands.train, capsys)


@pytest.fixture
def generate(fake, capsys):
    return _runner(commands.generate, capsys)


@pytest.fixture
def evaluate(fake, capsys):
    return _runner(commands.evaluate, capsys)


def _runner(command, capsys):
    def run(*argv: str) -> Outcome:
        try:
            code = command(list(argv))
        except SystemExit as exit:
            code = exit.code
        return Outcome(code, *capsys.readouterr())

    return run


def files(folder: Path) -> list[str]:
    """Everything below a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
