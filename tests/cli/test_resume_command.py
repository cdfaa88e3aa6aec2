"""gpt2x-train resume=FOLDER: the run's own configuration in its own folder."""

from __future__ import annotations

import os

import pytest
import yaml

from gpt2x.config.compose import compose, to_yaml
from gpt2x.config.schema import TrainConfig

CONFIG = to_yaml(compose("train", TrainConfig, ["model.n_layer=3", "trainer.max_steps=500", "sample_prompt=${x}, y"]))


@pytest.fixture
def run(tmp_path):
    """The folder of a run."""
    folder = tmp_path / "outputs/runs/a/b"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "result.json").write_text('{"status": "finished"}')
    return folder


def listing(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("path", ["absolute", "relative"])
def test_the_configuration_is_the_runs_own_and_so_is_the_folder(train, fake, run, tmp_path, path):
    before = listing(tmp_path)
    given = run if path == "absolute" else os.path.relpath(run)
    assert train(f"resume={given}", "trainer.max_steps=600").code == 0
    (again,) = fake.runs
    assert again.run_dir == run
    assert again.overrides == [f"resume='{given}'", "trainer.max_steps=600"]
    assert (again.config.resume, again.config.model.n_layer, again.config.sample_prompt) == (str(given), 3, "${x}, y")
    assert listing(tmp_path) == before
    # And once more: what was changed then is the run's own now.
    assert train(f"resume={given}").code == 0
    assert fake.runs[-1].config.trainer.max_steps == 600


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["seed=2"], "seed=2: the run was started with 1"),
        (["model=micro"], "another experiment"),
        (["-m"], "-m starts a new sweep"),
        (["-m", "seed=1,2"], "-m starts a new sweep"),
    ],
)
def test_refusals_touch_nothing(train, fake, run, tmp_path, argv, expected):
    before = listing(tmp_path)
    outcome = train(f"resume={run}", *argv)
    assert outcome.code == 2
    assert expected in outcome.err
    assert fake.runs == []
    assert listing(tmp_path) == before
    assert (run / "config.yaml").read_text() == CONFIG


def test_null_starts_a_new_run(train, fake):
    assert train("resume=null").code == 0
    assert fake.runs[0].config.resume is None


def test_cfg_shows_what_would_be_resumed(train, run):
    assert train(f"resume={run}", "--cfg", "job", "-p", "model.n_layer").out == "3\n"


@pytest.mark.parametrize(
    "text", ["model: {_target_: os.system, command: touch pwned}", "a: [", "hydra: {run: {dir: pwned}}", "seed: x"]
)
def test_a_hostile_or_broken_folder_is_refused(train, fake, run, tmp_path, text):
    (run / "config.yaml").write_text(text)
    before = listing(tmp_path)
    outcome = train(f"resume={run}")
    assert outcome.code == 2
    assert "config.yaml" in outcome.err
    assert fake.runs == []
    assert listing(tmp_path) == before


def test_references_in_a_saved_file_are_not_followed(train, fake, run, monkeypatch):
    monkeypatch.setenv("SECRET", "secret")
    (run / "config.yaml").write_text(yaml.safe_dump(yaml.safe_load(CONFIG) | {"sample_prompt": "${oc.env:SECRET}"}))
    assert train(f"resume={run}").code == 0
    assert fake.runs[0].config.sample_prompt == "${oc.env:SECRET}"


def test_a_file_cannot_start_a_resume(train, run, tmp_path):
    (tmp_path / "mine/experiment").mkdir(parents=True)
    (tmp_path / "mine/experiment/e.yaml").write_text(f"# @package _global_\nresume: {run}\n")
    outcome = train("-cd", "mine", "experiment=e")
    assert outcome.code == 2
    assert "named on the command line" in outcome.err


@pytest.mark.parametrize("name", ["it's, $odd [1]", "a=b", " {c}", "back\\slash\\"])
def test_any_folder_name_will_do(train, fake, run, tmp_path, name):
    odd = run.rename(tmp_path / name)
    assert train(f"resume={odd}").code == 0
    assert fake.runs[0].run_dir == odd
