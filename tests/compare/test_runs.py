"""load_runs on real runs, and on folders in every state that a crash, another version or another process leaves."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml
from filelock import FileLock

from gpt2x.compare import load_runs
from gpt2x.errors import UserError
from gpt2x.tracking.tracker import read_metrics


@pytest.fixture
def run(outputs, tmp_path):
    """A copy of one finished run, to be damaged."""
    return shutil.copytree(outputs / "sweeps/2026-11-24/10-00-00/1", tmp_path / "run")


def test_every_run_below_a_folder_is_found_with_its_state(outputs):
    runs = load_runs(outputs)
    table = runs.table
    assert list(table["status"].value_counts().sort_index().items()) == [
        ("failed", 1), ("finished", 6), ("interrupted", 1), ("killed", 1)
    ]  # fmt: skip
    assert runs.root == outputs
    assert list(table.index)[-6:] == [f"sweeps/2026-11-24/10-00-00/{job}" for job in range(6)]
    assert list(table["job"])[-6:] == list("012345")
    assert set(table["sweep"].dropna()) == {"2026-11-24/10-00-00"}
    assert "diverged" in table.at["runs/2026-11-24/failed", "error"]
    assert runs.problems == []


def test_a_row_says_what_the_run_s_own_files_say(outputs):
    folder = outputs / "sweeps/2026-11-24/10-00-00/4"
    runs = load_runs(folder)
    (row,) = runs.table.to_dict("records")
    result = json.loads((folder / "result.json").read_text())
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (row["metric"], row["best_step"]) == (result["metric"]["value"], result["metric"]["step"])
    assert (row["steps"], row["tokens"], row["seconds"]) == (result["steps"], result["tokens"], result["seconds"])
    assert row["started"] == pd.Timestamp(result["started"])
    assert row["overrides"] == "optimizer.lr=1e-3 seed=2"
    assert row["config.optimizer.lr"] == config["optimizer"]["lr"] == 0.001
    assert row["config.optimizer.betas"] == "[0.9,0.95]"
    assert row["config.model.n_layer"] == 1
    assert row["last.val/bpb"] == result["last"]["val/bpb"]
    rows = read_metrics(folder)
    assert len(runs.metrics) == len(rows)
    for name in ("step", "tokens", "seconds", "train/loss", "val/loss", "lr"):
        expected = np.array([row.get(name, np.nan) for row in rows], dtype=float)
        np.testing.assert_array_equal(runs.metrics[name].to_numpy(float), expected)
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert list(runs.samples["text"]) == [sample["text"] for sample in samples]
    assert list(runs.samples["step"]) == [0, 4, 8, 12]


def test_folders_named_twice_or_inside_each_other_count_once(outputs):
    sweep = outputs / "sweeps/2026-11-24/10-00-00"
    assert len(load_runs(sweep, sweep / "3", outputs / "sweeps")) == 6


def test_a_killed_run_is_told_from_its_rows(run):
    expected = load_runs(run).table.iloc[0]
    (run / "result.json").unlink()
    killed = load_runs(run).table.iloc[0]
    assert killed["status"] == "killed"
    for column in ("metric", "best_step", "steps", "tokens", "overrides", "last.val/loss", "name"):
        assert killed[column] == expected[column]


def test_a_run_that_another_process_has_open_is_running_and_stays_so(run):
    (run / "result.json").unlink()
    with FileLock(run / ".lock"):
        assert load_runs(run).table["status"].item() == "running"
        with pytest.raises(TimeoutError):
            FileLock(run / ".lock").acquire(timeout=0)
    assert load_runs(run).table["status"].item() == "killed"


def test_a_torn_last_line_is_left_out_without_a_word(run):
    before = load_runs(run).metrics
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 99, "train/lo')
    runs = load_runs(run)
    pd.testing.assert_frame_equal(runs.metrics, before)
    assert runs.problems == []


def test_damage_costs_what_is_damaged_and_is_named(run, outputs, tmp_path, caplog):
    shutil.copytree(outputs / "sweeps/2026-11-24/10-00-00/2", tmp_path / "whole")
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join([*lines[:3], "\x00\x00\n", *lines[3:]]))
    (run / "config.yaml").write_text("model: [")
    (run / "samples.jsonl").write_bytes(b"\xff\n" * 3)
    (run / "result.json").write_text('{"status": "fin')
    runs = load_runs(tmp_path)
    assert list(runs.table["status"]) == ["killed", "finished"]
    assert (runs.metrics["run"] == "run").sum() == 3
    assert (runs.metrics["run"] == "whole").sum() == len(read_metrics(tmp_path / "whole"))
    for name in ("metrics.jsonl, line 4", "config.yaml", "samples.jsonl, line 1", "result.json"):
        assert any(f"{run / name.split(',')[0]}" in problem and name in problem for problem in runs.problems), name
        assert name in caplog.text
    assert len(runs.problems) == 4
    assert runs.overview().shape[0] == 2


@pytest.mark.parametrize("content", ["", "\n", "5\n", "[1]\n", '{"loss": 1}\n', '{"step": "3"}\n'])
def test_rows_that_are_none_are_no_rows(run, content):
    (run / "metrics.jsonl").write_text(content)
    runs = load_runs(run)
    assert len(runs.metrics) == 0
    assert runs.table["metric"].notna().all()  # result.json has it


def test_what_a_text_s_row_says_of_itself_does_not_change_whose_it_is(run):
    (run / "samples.jsonl").write_text(json.dumps({"step": 3, "run": "another", "prompt": "a", "text": "b"}) + "\n")
    assert load_runs(run).samples[["run", "step"]].values.tolist() == [["run", 3]]


def test_a_run_of_an_older_version_has_the_defaults_of_settings_that_came_later(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    del config["model"]["attention"], config["finetune"], config["trainer"]["patience"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    result = json.loads((run / "result.json").read_text())
    for key in ("metric", "last", "config_hash", "overrides", "git_commit"):
        result.pop(key)
    (run / "result.json").write_text(json.dumps(result))
    row = load_runs(run).table.iloc[0]
    assert row["config.model.attention"] == "sdpa"
    assert row["config.finetune._target_"] == "gpt2x.training.finetune.full"
    assert (row["status"], row["overrides"]) == ("finished", "optimizer.lr=3e-3 seed=2")


def test_a_setting_of_another_version_is_kept_and_named(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"model": config["model"] | {"experts": 8}}))
    runs = load_runs(run)
    assert runs.table["config.model.experts"].item() == 8
    assert "model.experts=8" in runs.problems[0]


def test_a_job_that_failed_before_it_began_is_a_run(tmp_path):
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "result.json").write_text(json.dumps({"status": "failed", "error": "no such file"}))
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "result.json").write_text(json.dumps({"accuracy": 1.0}))  # of something else
    (row,) = load_runs(tmp_path).table.to_dict("records")
    assert (row["status"], row["error"]) == ("failed", "no such file")


def test_a_run_that_a_search_gave_up_is_pruned(run):
    result = json.loads((run / "result.json").read_text()) | {"status": "interrupted", "pruned": True}
    (run / "result.json").write_text(json.dumps(result))
    assert load_runs(run).table["status"].item() == "pruned"


def test_tables_in_a_row_are_left_out(run):
    with open(run / "metrics.jsonl", "a") as file:
        file.write(
            json.dumps({"step": 13, "val/confusion": {"a": {"a": 1}}, "val/calibration": [{"low": 0}], "val/x": None}) + "\n"
        )
    assert {"val/confusion", "val/calibration", "val/x"}.isdisjoint(load_runs(run).metrics.columns)


def test_the_notebook_shows_what_differs(outputs):
    runs = load_runs(outputs / "sweeps")
    assert list(runs.overview().columns) == ["status", "metric", "best_step", "steps", "tokens", "seconds", "seed", "lr"]
    assert "<table" in runs._repr_html_()


def test_a_selection_has_its_own_rows_and_samples(outputs):
    runs = load_runs(outputs / "sweeps").select(["4", "1"])
    assert list(runs.table.index) == list(runs.metrics["run"].cat.categories) == ["4", "1"]
    assert set(runs.metrics["run"]) == set(runs.samples["run"]) == {"1", "4"}


@pytest.mark.parametrize(
    ("paths", "said"), [((), "no folder is given"), (("none",), "no such folder"), ((".",), "no run in it")]
)
def test_where_there_are_no_runs_it_is_said(tmp_path, monkeypatch, paths, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        load_runs(*paths)


def test_runs_are_told_in_a_line(outputs):
    runs = load_runs(outputs)
    assert repr(runs) == f"Runs(9 runs, {len(runs.metrics)} logged rows, from {runs.root})"
