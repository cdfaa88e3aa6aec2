"""Whole training runs with the unmodified wandb client: offline, online, and with a server that is not what it should be."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from gpt2x.tracking.tracker import read_metrics

ROOT = Path(__file__).parents[2]
SMALL = [
    "model.n_layer=1", "model.n_head=2", "model.n_embd=16", "model.context_length=16", "tokenizer.vocab_size=300",
    "sampling.max_new_tokens=5", "data.val_fraction=0.01", "trainer.max_steps=20", "trainer.eval_every=10",
    "trainer.log_every=1", "device.threads=1", "device.kernels=true", "logger.init_timeout=5", "optimizer.lr=0.002",
]  # fmt: skip


@pytest.fixture
def train(environment, tmp_path):
    """Runs gpt2x-train in tmp_path with further environment variables; returns its output and the runs' folders."""

    def run(*overrides: str, during=None, **variables: str) -> tuple[str, list[Path]]:
        command = [sys.executable, str(ROOT / "scripts" / "train.py"), *SMALL, *overrides]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        process = subprocess.Popen(command, cwd=tmp_path, env=environment | variables, **pipes)
        if during is not None:
            during(process)
        output = process.communicate(timeout=120)[0]
        assert process.returncode == 0, output
        return output, [path.parent for path in (tmp_path / "outputs").rglob("result.json")]

    return run


def numbers(rows: list[dict]) -> list[dict]:
    """Rows of metrics without what depends on the clock, and no texts or pictures; wandb's are brought into this form."""
    kept = []
    for row in rows:
        row = {k: v for k, v in row.items() if k[0] != "_" and "sample" not in k and not k.startswith("plots/")}
        row["step"] = row.pop("trainer/step", row.get("step"))
        kept.append({k: v for k, v in row.items() if k not in ("seconds", "tokens_per_s")})
    return [row for row in kept if len(row) > 1]


def inspect(folder: Path, environment: dict[str, str]) -> list[dict]:
    (file,) = folder.glob("*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in printed.splitlines()]


def test_an_offline_run_holds_every_row_and_the_resolved_configuration(train, environment, tmp_path):
    output, (run,) = train()
    assert "wandb: offline" in output
    (folder,) = (tmp_path / "outputs" / "wandb").glob("offline-run-*")
    records = inspect(folder, environment)
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    assert numbers(history) == numbers(read_metrics(run))
    (picture,) = (row["plots/loss.path"] for row in history if "plots/loss.path" in row)
    assert (folder / "files" / picture).read_bytes() == (run / "plots" / "loss.png").read_bytes()
    (about,) = (record["run"] for record in records if record["type"] == "run")
    assert "optimizer.lr=0.002" in about["notes"]
    assert about["job_type"] == "lm"
    summary = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(next(folder.glob("*.wandb")))],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    expected = yaml.safe_load((run / "config.yaml").read_text())
    for empty in (expected["sampling"].pop("logit_bias"), expected["sweep"].pop("params")):
        assert empty == {}  # wandb keeps no empty mapping
    result = json.loads((run / "result.json").read_text())
    expected["gpt2x"] = {"version": result["versions"]["gpt2x"]}
    if result["git_commit"] is not None:
        expected["gpt2x"]["git_commit"] = result["git_commit"]
    shown = json.loads(summary.stdout)["config"]
    assert {key: value for key, value in shown["gpt2x"].items() if value is not None} == expected["gpt2x"]
    assert shown == expected | {"gpt2x": shown["gpt2x"]}


def test_an_online_run_reaches_the_server_whole(train, wandb_server):
    output, (run,) = train(**wandb_server.env())
    assert "offline" not in output
    arrived = wandb_server.only_run()
    assert numbers(arrived["history"]) == numbers(read_metrics(run))
    (picture,) = (row["plots/loss"] for row in arrived["history"] if "plots/loss" in row)
    assert picture["size"] == (run / "plots" / "loss.png").stat().st_size
    config = wandb_server.config_of(arrived)
    assert config["optimizer"]["lr"] == 0.002
    assert config["trainer"]["max_steps"] == 20
    assert arrived["state"] == "finished"


def test_the_jobs_of_a_multirun_are_runs_of_one_group(train, wandb_server):
    _, folders = train("-m", "seed=1,2", **wandb_server.env())
    assert len(folders) == 2
    runs = list(wandb_server.runs.values())
    assert len(runs) == 2
    assert len({run["group"] for run in runs}) == 1
    assert {wandb_server.config_of(run)["seed"] for run in runs} == {1, 2}
    assert {run["state"] for run in runs} == {"finished"}
    for run in runs:
        assert any(name.endswith(f"seed={wandb_server.config_of(run)['seed']}") for name in (run["displayName"], run["notes"]))


def test_the_jobs_of_a_sweep_are_offline_runs_of_one_group(train, environment, tmp_path):
    train("seeds=3", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    folders = list((tmp_path / "outputs" / "wandb").glob("offline-run-*"))
    runs = [record["run"] for folder in folders for record in inspect(folder, environment) if record["type"] == "run"]
    assert len({run["run_id"] for run in runs}) == 3
    assert len({run["run_group"] for run in runs}) == 1


@pytest.mark.parametrize("fault", ["no server", "bad key", "dies"])
def test_training_finishes_whatever_the_server_does(train, wandb_server, fault):
    variables = wandb_server.env() | {"WANDB_FINISH_TIMEOUT": "2"}
    during, steps = None, []
    if fault == "no server":
        wandb_server.stop()
    elif fault == "bad key":
        variables["WANDB_API_KEY"] = "short"
    else:
        steps = ["trainer.max_steps=300"]

        def during(process: subprocess.Popen) -> None:
            while not wandb_server.runs and process.poll() is None:
                time.sleep(0.02)
            wandb_server.stop()

    output, (run,) = train(*steps, **variables, during=during)
    assert "Traceback" not in output
    assert json.loads((run / "result.json").read_text())["status"] == "finished"
    last = 300 if steps else 20
    assert [row["step"] for row in read_metrics(run)] == list(range(last + 1))
