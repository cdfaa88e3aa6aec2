"""The commands as real processes: exit codes, what is imported, signals between processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
# Stands in for training; `seed` says what happens.
TRAINING = """
import sys, time, types
sys.path.insert(0, sys.argv.pop(1))
module = types.ModuleType("gpt2x.training.run")
def train(config, run_dir, *, overrides, sweep=None):
    print("heavy modules:", [name for name in ("torch", "wandb", "numpy", "pandas") if name in sys.modules], flush=True)
    if config.seed == 2:
        from gpt2x.errors import UserError
        raise UserError("no data")
    if config.seed == 3:
        sys.exit(143)
    if config.seed == 4:
        time.sleep(60)
module.train = train
sys.modules[module.__name__] = module
from gpt2x.commands import train as command
code = command()
print("heavy modules:", [name for name in ("torch", "wandb", "numpy", "pandas") if name in sys.modules])
sys.exit(code)
"""


def start(tmp_path, *argv) -> subprocess.Popen:
    command = [sys.executable, "-c", TRAINING, str(REPO), *argv]
    return subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["--help"], 0),
        (["--cfg", "job", "--resolve"], 0),
        (["init=openai", "init.size=124M", "--cfg", "job"], 0),
        (["optimizer.lrr=1"], 2),
        ([], 0),
        (["seed=2"], 1),
        (["-m", "seed=1,2"], 1),
        (["-m", "seed=1,3"], 143),
    ],
)
def test_exit_code_and_no_heavy_import(tmp_path, argv, code):
    process = start(tmp_path, *argv)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    heavy = [line for line in out.splitlines() if line.startswith("heavy modules:")]
    assert set(heavy) <= {"heavy modules: []"}
    assert heavy or code == 143


def test_a_folder_to_begin_with_is_described_without_torch(tmp_path):
    folder = REPO / "tests" / "interop" / "fixtures" / "openai"
    out, err = start(tmp_path, "init=openai", f"init.path={folder}", "--cfg", "job").communicate(timeout=60)
    assert "n_embd: 24" in out, err
    assert "heavy modules: ['numpy']" in out  # of the tokenizer's module


@pytest.mark.skipif(os.name == "nt", reason="no SIGTERM")
def test_a_terminated_sweep_exits_with_143(tmp_path):
    process = start(tmp_path, "-m", "seed=1,4")
    for line in process.stdout:
        if line.startswith("gpt2x-train: run 1"):
            break
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143


@pytest.mark.parametrize("name", ["train", "generate", "evaluate"])
def test_the_scripts_run_from_anywhere_without_an_installation(tmp_path, name):
    script = REPO / "scripts" / f"{name}.py"
    done = subprocess.run(
        [sys.executable, "-I", str(script), "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert f"usage: gpt2x-{name}" in done.stdout
    assert "@hydra.main" in script.read_text()  # what bash's tab completion looks for


@pytest.mark.skipif(os.name == "nt", reason="no head")
def test_a_reader_that_leaves_early_is_no_error(tmp_path):
    script = REPO / "scripts/train.py"
    command = f"{sys.executable} {script} --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
