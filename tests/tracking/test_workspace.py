"""The wandb workspace: built without a server, and saved to one on 127.0.0.1 by the unmodified client."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_wandb import ENTITY

from gpt2x.errors import UserError
from gpt2x.tracking.workspace import save_workspace, workspace, workspace_of

pytest.importorskip("wandb_workspaces")
TASKS = {"lm": "LanguageModeling", "classifier": "Classification", "instruct": "InstructionTuning"}


def a_run(folder: Path, task: str = "lm", logger: dict[str, Any] | None = None, **settings: Any) -> Path:
    folder.mkdir(parents=True)
    config = {"name": folder.name, "task": {"_target_": f"gpt2x.task.{task}.{TASKS[task]}"}, "paths": {"cache": str(folder)}}
    config |= {"logger": logger or {"_target_": "gpt2x.tracking.tracker.NullTracker"}} | settings
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def panels(view: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The panels of each section, by their titles or kinds."""
    sections = view["section"]["panelBankConfig"]["sections"]
    return {s["name"]: {p["config"].get("chartTitle", p["viewType"]): p["config"] for p in s["panels"]} for s in sections}


def built(**changes: Any) -> dict[str, Any]:
    about = {"name": "view", "tasks": ["lm"], "settings": {"optimizer.lr": [1e-4, 1e-2], "model.n_layer": [2, 4]}}
    made = workspace("gpt2x", "me", **about | changes)
    view = json.loads(made._to_model().model_dump_json(by_alias=True, exclude_none=True))
    assert (view["entity"], view["project"]) == ("me", "gpt2x")
    return view["spec"]


def test_its_sections_show_what_runs_log():
    shown = panels(built(tasks=["lm", "classifier", "instruct"]))
    assert list(shown) == [
        "Language model", "Classifier", "Instruction tuning", "Optimization", "Settings", "Runs side by side",
    ]  # fmt: skip
    for task in ("Language model", "Classifier", "Instruction tuning"):
        training = shown[task]["Training loss"]
        assert (training["xAxis"], training["metrics"]) == ("tokens", ["train/loss"])
        assert (training["smoothingType"], training["smoothingWeight"]) == ("exponentialTimeWeighted", 0.6)
        assert (shown[task]["Validation loss"]["xAxis"], shown[task]["Validation loss"]["metrics"]) == ("tokens", ["val/loss"])
    assert shown["Language model"]["Validation: bits per byte"]["metrics"] == ["val/bpb"]
    assert shown["Instruction tuning"]["Texts"]["mediaKeys"] == ["sample"]
    assert "Texts" not in shown["Classifier"]
    drawn = {metric for panel in shown["Optimization"].values() for metric in panel["metrics"]}
    assert drawn == {"lr", "grad_norm", "tokens_per_s", "val/loss"}
    axes = shown["Settings"]["Settings that differ"]["columns"]
    assert [(axis["accessor"], axis.get("log")) for axis in axes] == [
        ("config:optimizer.value.lr", True), ("config:model.value.n_layer", False), ("summary:metric.value", None),
    ]  # fmt: skip
    assert shown["Settings"]["Parameter Importance"]["targetKey"] == "metric.value"
    assert shown["Runs side by side"]["Run Comparer"]["diffOnly"] == "split"


def test_every_metric_of_it_is_one_that_a_run_of_the_task_logs(fine_tuning, small_run, tmp_path):
    from gpt2x.tracking.tracker import read_metrics
    from gpt2x.training.run import train

    few = {"trainer.max_steps": 2, "trainer.eval_every": 2, "sampling.max_new_tokens": 1}
    configs = {
        "lm": small_run(**few),
        "classifier": fine_tuning("classifier", **few),
        "instruct": fine_tuning("instruct", **few),
    }
    for task, config in configs.items():
        train(config, tmp_path / task)
        logged = {key for row in read_metrics(tmp_path / task) for key in row}
        for section in panels(built(tasks=[task], settings={})).values():
            for panel in section.values():
                assert {panel.get("xAxis", "tokens"), *panel.get("metrics", [])} <= logged
        result = json.loads((tmp_path / task / "result.json").read_text())
        assert result["metric"]["value"] is not None  # the summary's metric.value


def test_runs_are_grouped_by_their_sweeps():
    (runs,) = built(sweeps=["2026-01-02/03-04-05"])["section"]["runSets"]
    assert runs["grouping"] == [{"section": "run", "name": "group"}]
    (shown,) = runs["filters"]["filters"]
    assert (shown["key"], shown["op"], shown["value"]) == ({"section": "run", "name": "group"}, "IN", ["2026-01-02/03-04-05"])
    assert runs["sort"]["keys"] == [{"key": {"section": "summary", "name": "metric.value"}, "ascending": True}]
    (runs,) = built()["section"]["runSets"]
    assert (runs["grouping"], runs["filters"]["filters"]) == ([], [])
    assert "Settings" not in panels(built(settings={}))


def test_what_differs_between_runs_becomes_an_axis(tmp_path):
    sweep = tmp_path / "sweeps" / "day" / "hour"
    jobs = [
        a_run(sweep / str(n), seed=n, optimizer={"lr": lr, "betas": [0.9, n / 10]}, model={"n_layer": 2})
        for n, lr in enumerate([1e-3, 1e-2, 1e-2])
    ]
    (sweep / "sweep.yaml").touch()
    about = workspace_of(jobs)
    assert about["settings"] == {"seed": [0, 1, 2], "optimizer.lr": [1e-3, 1e-2, 1e-2]}  # not name, paths, lists, n_layer
    assert (about["sweeps"], about["tasks"], about["name"]) == (["day/hour"], ["lm"], "gpt2x day/hour")
    assert (about["project"], about["entity"]) == ("gpt2x", None)
    own = a_run(tmp_path / "own", "classifier", {"project": "spam", "entity": "team"}, seed=1, extra=True)
    about = workspace_of([*jobs, own])
    assert (about["sweeps"], about["tasks"], about["project"]) == ([], ["lm", "classifier"], "spam")
    assert about["settings"]["extra"] == [None, None, None, True]
    assert workspace_of(jobs, "mine", "me")["project"] == "mine"


def test_it_is_saved_to_the_server(python, wandb_server, tmp_path):
    a_run(tmp_path / "a", seed=1, optimizer={"lr": 0.1})
    a_run(tmp_path / "b", seed=2, optimizer={"lr": 0.1})
    script = "from gpt2x.tracking.workspace import save_workspace; print(save_workspace(['a', 'b'], project='stories'))"
    out, err = python(script, **wandb_server.env()).communicate(timeout=60)
    assert out.startswith(f"{wandb_server.url}/{ENTITY}/stories?nw="), err
    (view,) = wandb_server.views
    assert (view["entityName"], view["projectName"], view["type"]) == (ENTITY, "stories", "project-view")
    columns = panels(json.loads(view["spec"]))["Settings"]["Settings that differ"]["columns"]
    assert [column["accessor"] for column in columns] == ["config:seed.value", "summary:metric.value"]
    assert wandb_server.runs == {}


def test_without_a_key_it_says_how_to_get_one(python, wandb_server, tmp_path):
    a_run(tmp_path / "a")
    script = """
from gpt2x.errors import UserError
from gpt2x.tracking.workspace import save_workspace
try:
    save_workspace(["a"])
except UserError as error:
    print(error)
"""
    out, err = python(script, WANDB_BASE_URL=wandb_server.url).communicate(timeout=60)
    assert "wandb login" in out, err
    assert wandb_server.views == []


def test_what_is_missing_is_said(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no config.yaml"):
        save_workspace([tmp_path])
    monkeypatch.setitem(__import__("sys").modules, "wandb_workspaces", None)
    monkeypatch.setitem(__import__("sys").modules, "wandb_workspaces.reports.v2", None)
    with pytest.raises(UserError, match=r"pip install 'gpt2x\[reports\]'"):
        save_workspace([a_run(tmp_path / "a")])
