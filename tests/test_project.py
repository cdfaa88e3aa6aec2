"""The project as a whole: its layout, its wheel, and what imports what."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from gpt2x.task.config import TEMPLATES

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "gpt2x").rglob("*.py"))


def test_nothing_unpickles_or_evaluates():
    pattern = re.compile(r"\b(pickle|marshal|torch\.load|torch\.save|eval\(|exec\()")
    tensors_alone = r"torch\.load\([^()]*weights_only=True[^()]*\)"  # others' pytorch_model.bin
    written = r"torch\.save\(load_file\("  # such a file of random weights, whose reading is measured
    harmless = rf"\.eval\(\)|{tensors_alone}|{written}"
    hits = [path.name for path in SOURCES if pattern.search(re.sub(harmless, "", path.read_text(encoding="utf-8")))]
    assert hits == []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of the tracked files alone."""
    where = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.splitlines():
        target = where / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).exists():
            target.write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(where), str(where / "source")]
    built = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = where.glob("*.whl")
    return path


def test_the_wheel_holds_the_configs_and_what_ships_beside_the_code(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    listed = subprocess.run(["git", "ls-files", "configs"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {name for name in names if "/configs/" in name} == {f"gpt2x/{name}" for name in listed.stdout.split()}
    shipped = {"storybook.txt", "spam_sample.csv", "instructions_sample.json"}
    assert {f"gpt2x/data/{name}" for name in shipped} <= names
    assert {f"gpt2x/compare/page.{ending}" for ending in ("html", "css", "js")} <= names
    assert {f"gpt2x/task/templates/{name}.yaml" for name in TEMPLATES} <= names
    assert not any(name.startswith(("tests", "outputs", "scripts")) for name in names)


def test_the_wheel_works_in_another_folder_without_the_checkout(wheel, tmp_path):
    """Unpacked into an environment that borrows this one's packages but not its gpt2x."""
    environment = tmp_path / "env"
    venv.create(environment, with_pip=False, symlinks=os.name != "nt")
    python = environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True, check=True
    ).stdout.strip()
    zipfile.ZipFile(wheel).extractall(site)
    import torch

    (Path(site) / "borrowed.pth").write_text(str(Path(torch.__file__).parent.parent) + "\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = "import sys; from gpt2x import commands; print(commands.__file__); sys.exit(commands.train(sys.argv[1:]))"
    small = ["model.n_layer=1", "model.n_embd=16", "model.n_head=2", "model.context_length=16", "trainer.max_steps=2"]
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    ran = subprocess.run(
        [python, "-c", code, *small, "logger=none", "sampling.max_new_tokens=5", "data.val_fraction=0.01"],
        cwd=elsewhere, capture_output=True, text=True, timeout=240, env=clean,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.splitlines()[0].startswith(site)
    assert "finished at step 2" in ran.stdout
    assert len(list((elsewhere / "outputs" / "runs").rglob("result.json"))) == 1
