"""Every YAML file under configs/ composes, says what it is, and calls nothing that is not allowed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from needed import needed

import gpt2x
from gpt2x.config.compose import CONFIG_DIR, Composer, compose, to_yaml
from gpt2x.config.reference import headline, reference
from gpt2x.config.schema import (
    GROUPS,
    BenchmarkConfig,
    CompareConfig,
    EvaluateConfig,
    ExportConfig,
    GenerateConfig,
    TrainConfig,
)

ROOTS = {
    "train": TrainConfig,
    "generate": GenerateConfig,
    "evaluate": EvaluateConfig,
    "compare": CompareConfig,
    "export": ExportConfig,
    "benchmark": BenchmarkConfig,
}
FILES = sorted(path for path in CONFIG_DIR.glob("*/*.yaml") if path.parent.name != "local")
# What a root needs of itself; a benchmark takes no other device than the processor.
NEEDED = {
    "generate": ["checkpoint=run"],
    "evaluate": ["checkpoint=run"],
    "export": ["checkpoint=run", "format=gguf", "output=x.gguf"],
    "benchmark": ["device.type=cpu", "device.precision=fp32"],
}


def compose_file(root: str, group: str, choice: str):
    """The configuration of `root` with one group's choice."""
    return compose(root, ROOTS[root], [f"{group}={choice}", *NEEDED.get(root, []), *needed(group, choice, root)])


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_file_of_every_group_composes(path):
    group, choice = path.parent.name, path.stem
    roots = [name for name, schema in ROOTS.items() if group in Composer(name, schema).groups]
    if (group, choice) == ("evaluation", "judged"):
        roots.remove("train")  # which refuses it: what a run ends with is judged first
    assert roots, f"no command has the group {group}"
    for root in roots:
        config = compose_file(root, group, choice)
        if group in GROUPS:
            assert type(getattr(config, group)) in GROUPS[group]


@pytest.mark.parametrize("path", [*FILES, *CONFIG_DIR.glob("*.yaml")], ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_file_opens_with_what_it_is(path):
    assert len(headline(path)) > 10


@pytest.mark.parametrize("root", ROOTS)
def test_every_root_composes_to_plain_dataclasses(root):
    config = compose(root, ROOTS[root], NEEDED.get(root, []))
    assert type(config) is ROOTS[root]
    assert "${" not in to_yaml(config)


def test_the_reference_is_not_stale():
    written = (CONFIG_DIR / "README.md").read_text(encoding="utf-8")
    assert written == reference(), "run: python -m gpt2x.config.reference"


def test_only_the_config_package_knows_hydra():
    package = Path(gpt2x.__file__).parent
    importing = re.compile(r"^\s*(import|from) (hydra|omegaconf)\b", re.MULTILINE)
    knowing = {path.relative_to(package).parts[0] for path in package.rglob("*.py") if importing.search(path.read_text())}
    assert knowing == {"config"}
