"""Runs sent to wandb from their folders: the unmodified client against a server on 127.0.0.1, in a process of its own."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_wandb import ENTITY, FakeWandb
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from gpt2x.tracking import sync
from gpt2x.tracking.description import sweep_of

ROOT = Path(__file__).parents[2]
SMALL = [
    "model.n_layer=1", "model.n_head=2", "model.n_embd=16", "model.context_length=16", "tokenizer.vocab_size=300",
    "sampling.max_new_tokens=5", "data.val_fraction=0.01", "trainer.max_steps=20", "trainer.eval_every=10",
    "trainer.log_every=1", "device.threads=1", "device.kernels=true", "logger.init_timeout=5", "logger.tags=[a,b]",
]  # fmt: skip
CONFIG = {
    "name": "story",
    "task": {"_target_": "gpt2x.task.lm.LanguageModeling"},
    "optimizer": {"lr": 0.1},
    "logger": {"_target_": "gpt2x.tracking.tracker.NullTracker"},
}


@pytest.fixture
def train(environment, tmp_path):
    """Runs gpt2x-train in tmp_path; returns the runs' folders."""

    def run(*overrides: str, **variables: str) -> list[Path]:
        command = [sys.executable, str(ROOT / "scripts" / "train.py"), *SMALL, *overrides]
        done = subprocess.run(command, cwd=tmp_path, env=environment | variables, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return sorted(path.parent for path in (tmp_path / "outputs").rglob("result.json"))

    return run


@pytest.fixture
def send(python, wandb_server):
    """Syncs folders in a new process as often as is asked; returns what became of each, time after time, and what was said.

    An error that the user can mend is returned as its text.
    """

    def run(*folders: Path, times: int = 1, settings: str = "", **variables: str) -> Any:
        process = python(
            f"""
import json
from gpt2x.errors import UserError
from gpt2x.tracking.sync import sync_runs
said = []
try:
    reports = [sync_runs({[str(f) for f in folders]}, say=said.append{settings}) for _ in range({times})]
    print(json.dumps([[[[r.outcome, r.rows, r.reason] for r in report] for report in reports], said]))
except UserError as error:
    print(json.dumps(str(error)))
""",
            **wandb_server.env() | variables,
        )
        out, err = process.communicate(timeout=100)
        assert process.returncode == 0, err
        assert "Traceback" not in err
        return json.loads(out)

    return run


def outcomes(report: list) -> list[list[tuple[str, int]]]:
    return [[(outcome, rows) for outcome, rows, _ in once] for once in report[0]]


def a_run(folder: Path, steps: range, status: str | None = "finished", **about: Any) -> Path:
    """The folder of a run that logged these steps, and a text at every tenth; without a status it was killed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG | about))
    (folder / "overrides.txt").write_text("optimizer.lr=0.1\n")
    with open(folder / "metrics.jsonl", "a") as metrics, open(folder / "samples.jsonl", "a") as samples:
        for step in steps:
            if step % 10 == 0:
                samples.write(json.dumps({"step": step, "prompt": "Once", "text": f" upon {step}"}) + "\n")
            row = {"step": step, "tokens": step * 100, "seconds": step / 10, "train/loss": 1 / (step + 1)}
            metrics.write(json.dumps(row) + "\n")
    if status is not None:
        versions = {"gpt2x": "0.0", "torch": "2.0"}
        (folder / "result.json").write_text(json.dumps({"status": status, "steps": steps[-1], "versions": versions}))
    return folder


def steps_of(run: dict[str, Any]) -> list[int]:
    return [row["trainer/step"] for row in run["history"] if "tokens" in row]


def texts_of(run: dict[str, Any]) -> list[int]:
    return [row["trainer/step"] for row in run["history"] if "sample" in row]


def shown(value: Any) -> Any:
    """What a dashboard shows of rows and summaries: without wandb's own keys, and files by their content."""
    if isinstance(value, dict):
        hidden = {"path"} if "sha256" in value else set()
        return {key: shown(item) for key, item in value.items() if key[0] != "_" and key not in hidden}
    return [shown(item) for item in value] if isinstance(value, list) else value


def test_a_replayed_run_is_what_it_would_have_been_online(train, send, python, environment, tmp_path, wandb_server):
    with FakeWandb() as online:
        folders = train("-m", "seed=1,2", **online.env())
        expected = {FakeWandb.config_of(run)["seed"]: run for run in online.runs.values()}
    assert len(folders) == len(expected) == 2
    shutil.rmtree(tmp_path / "outputs" / "wandb")
    for folder in folders:
        (folder / "wandb.json").unlink()

    first, again, third = outcomes(send(*folders, times=3))
    assert first == [("sent", 24)] * 2  # 21 rows and 3 texts
    assert again == third == [("up to date", 0)] * 2
    for folder in folders:  # that it was sent is forgotten: the server knows
        record = json.loads((folder / "wandb.json").read_text())
        assert (record["sent"]["step"], record["sent"]["rows"], record["sent"]["project"]) == (20, 24, "gpt2x")
        del record["sent"]
        (folder / "wandb.json").write_text(json.dumps(record))
    assert outcomes(send(*folders)) == [[("up to date", 0)] * 2]

    assert len(wandb_server.runs) == 2
    for run in wandb_server.runs.values():
        twin = expected[FakeWandb.config_of(run)["seed"]]
        assert shown(run["history"]) == shown(twin["history"])
        assert shown(run["summary"]) == shown(twin["summary"])
        assert FakeWandb.config_of(run) == FakeWandb.config_of(twin)
        about = ("displayName", "group", "jobType", "tags", "notes", "project", "state", "exitcode")
        assert [run[key] for key in about] == [twin[key] for key in about]
        assert run["group"] and run["tags"] == ["a", "b"] and f"seed={FakeWandb.config_of(run)['seed']}" in run["notes"]
        media = {name.rpartition("_")[2]: data for name, data in run["files"].items() if name.startswith("media")}
        assert media == {n.rpartition("_")[2]: data for n, data in twin["files"].items() if n.startswith("media")}
        code = FakeWandb.config_of(run)["gpt2x"]
        assert code["version"] and set(code) == {"version", "git_commit"}
        made = [row["_timestamp"] for row in run["history"] if "tokens" in row]
        seconds = [row["seconds"] for row in run["history"] if "tokens" in row]
        assert [t - made[0] for t in made] == pytest.approx([s - seconds[0] for s in seconds], abs=1e-3)
        assert abs(made[-1] - twin["history"][-1]["_timestamp"]) < 5
    assert len(list((tmp_path / "outputs").rglob("*.wandb"))) == 0  # nothing is left behind


def test_offline_runs_of_a_joblib_sweep_arrive_once_and_wandb_sync_sends_them_no_more(
    train, send, environment, tmp_path, wandb_server
):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    folders = train("-m", "seed=1,2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    logs = list((tmp_path / "outputs" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(folders) == len(logs) == 2
    asked = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", str(logs[0])]
    read = subprocess.run(asked, env=environment, capture_output=True, text=True, check=True)
    assert "finished" in read.stdout
    ids = {json.loads((folder / "wandb.json").read_text())["id"] for folder in folders}
    assert outcomes(send(*folders, times=2)) == [[("sent", 24)] * 2, [("up to date", 0)] * 2]
    command = [sys.executable, "-m", "wandb", "sync", *(str(log.parent) for log in logs)]
    subprocess.run(command, env=environment | wandb_server.env(), cwd=tmp_path, capture_output=True, check=True, timeout=30)
    assert {run["name"] for run in wandb_server.runs.values()} == ids
    assert len({run["group"] for run in wandb_server.runs.values()}) == 1
    assert [steps_of(run) for run in wandb_server.runs.values()] == [list(range(21))] * 2


def test_a_run_that_went_on_after_a_sync_sends_the_rest(send, tmp_path, wandb_server):
    folder = a_run(tmp_path / "runs/story", range(15), status=None)
    assert outcomes(send(folder)) == [[("sent", 17)]]
    run = wandb_server.only_run()
    assert (run["state"], run["summary"]["status"], run["summary"]["steps"]) == ("failed", "killed", 14)
    assert (run["displayName"], run["notes"], run["group"]) == ("story optimizer.lr=0.1", "optimizer.lr=0.1", None)
    # It goes on from the checkpoint of step 10: the rows of 11 to 14 are made again, as they were.
    for name in ("metrics.jsonl", "samples.jsonl"):
        rows = [line for line in (folder / name).read_text().splitlines(keepends=True) if json.loads(line)["step"] <= 10]
        (folder / name).write_text("".join(rows))
    a_run(folder, range(11, 31))
    assert outcomes(send(folder, times=2)) == [[("sent", 18)], [("up to date", 0)]]
    run = wandb_server.only_run()
    assert steps_of(run) == list(range(31))
    assert texts_of(run) == [0, 10, 20, 30]
    assert (run["state"], run["summary"]["status"], run["summary"]["steps"]) == ("finished", "finished", 30)


def test_a_server_that_fails_half_way_has_every_row_in_the_end(send, tmp_path, wandb_server):
    first, second = a_run(tmp_path / "a", range(25)), a_run(tmp_path / "b", range(5))
    streams = []

    def fault(method: str, path: str) -> int | None:
        if not path.endswith("file_stream"):
            return None
        streams.append(path)
        return 500 if len(streams) > 1 else None

    wandb_server.fault = fault
    report, _ = send(first, second, WANDB_FINISH_TIMEOUT="1")
    assert [outcome for outcome, _, _ in report[0]] == ["failed", "failed"]
    assert all(reason for _, _, reason in report[0])
    assert not any("sent" in json.loads((folder / "wandb.json").read_text()) for folder in (first, second))
    wandb_server.fault = None
    assert [outcome for outcome, _ in outcomes(send(first, second))[0]] == ["sent", "sent"]
    assert outcomes(send(first, second)) == [[("up to date", 0)] * 2]
    assert len(wandb_server.runs) == 2
    assert sorted(map(steps_of, wandb_server.runs.values()), key=len) == [list(range(5)), list(range(25))]
    assert sorted(map(texts_of, wandb_server.runs.values()), key=len) == [[0], [0, 10, 20]]


def test_a_server_that_stumbles_gets_every_row_at_once(send, tmp_path, wandb_server):
    refused = []

    def fault(method: str, path: str) -> int | None:
        if path.endswith("file_stream") and len(refused) < 2:
            refused.append(path)
            return 500
        return None

    wandb_server.fault = fault
    assert outcomes(send(a_run(tmp_path / "a", range(25)))) == [[("sent", 28)]]
    assert len(refused) == 2
    assert steps_of(wandb_server.only_run()) == list(range(25))


def test_what_the_server_refuses_is_said(send, tmp_path, wandb_server):
    wandb_server.fault = lambda method, path: 404 if path.endswith("file_stream") else None  # the client gives up at once
    report, (line,) = send(a_run(tmp_path / "a", range(5)), WANDB_FINISH_TIMEOUT="5")
    ((outcome, _, reason),) = report[0]
    assert (outcome, line) == ("failed", f"a: failed ({reason})")
    assert "did not take every row" in reason


ONLINE = """
import time
from pathlib import Path
from gpt2x.tracking.tracker import RunFiles, Trackers
from gpt2x.tracking.wandb import WandbTracker
settings = dict(mode="auto", project="gpt2x", entity=None, group=None, tags=[], notes=None, init_timeout=20)
about = dict(run_dir=Path("outputs/a"), outputs=Path("outputs"), config={}, name="a", job_type="lm", sweep=None, overrides=[])
tracker = Trackers([RunFiles("outputs/a"), WandbTracker(**settings, **about)])
for step in range(20):
    tracker.log({"step": step, "tokens": step * 100, "seconds": step / 10, "train/loss": 1 / (step + 1)})
print("logged", flush=True)
time.sleep(60)
"""


def test_an_online_run_that_was_killed_is_sent_to_its_end_and_closed(send, python, tmp_path, wandb_server):
    process = python(ONLINE, **wandb_server.env())
    assert process.stdout.readline() == "logged\n"
    process.kill()
    process.wait()
    time.sleep(2)  # wandb's own process, which outlives it, may send something yet
    run, folder = wandb_server.only_run(), tmp_path / "outputs/a"
    before = len(run["history"])
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    assert outcomes(send(folder, times=2)) == [[("sent", 20 - before)], [("up to date", 0)]]
    run = wandb_server.only_run()
    assert steps_of(run) == list(range(20))
    assert (run["state"], run["summary"]["status"], run["summary"]["tokens"]) == ("failed", "killed", 1900)
    assert list((tmp_path / "outputs/wandb").glob("run-*/*.wandb.synced"))

    run["state"] = "running"  # every row is there, and nobody has said that it ended
    record = json.loads((folder / "wandb.json").read_text())
    (folder / "wandb.json").write_text(json.dumps({key: value for key, value in record.items() if key != "sent"}))
    assert outcomes(send(folder)) == [[("sent", 0)]]
    assert run["state"] == "failed"
    assert steps_of(run) == list(range(20))


def test_one_that_cannot_be_sent_is_named_and_the_others_are_sent(send, tmp_path, wandb_server):
    good, running, torn = (a_run(tmp_path / name, range(3)) for name in ("good", "running", "torn"))
    (torn / "metrics.jsonl").write_text('{"step": 1, "los\n{"step": 2}\n')
    (tmp_path / "empty").mkdir()
    with FileLock(running / ".lock"):
        report, said = send(tmp_path / "empty", tmp_path / "missing", torn, running, good)
    assert [outcome for outcome, _, _ in report[0]] == ["failed", "failed", "failed", "running", "sent"]
    for line, reason in zip(
        said, ("no config.yaml", "no config.yaml", "metrics.jsonl, line 1", "left alone", "4 rows"), strict=True
    ):
        assert reason in line
    assert not (tmp_path / "missing").exists()
    assert list((tmp_path / "empty").iterdir()) == []
    assert steps_of(wandb_server.only_run()) == [0, 1, 2]
    assert outcomes(send(running)) == [[("sent", 4)]]


@pytest.mark.parametrize("how", ["no key", "bad key", "refused", "no server"])
def test_nothing_is_sent_without_a_server_that_knows_the_key(send, tmp_path, wandb_server, how):
    folder = a_run(tmp_path / "a", range(3))
    variables = {"no key": {"WANDB_API_KEY": ""}, "bad key": {"WANDB_API_KEY": "short"}}.get(how, {})
    if how == "refused":
        wandb_server.fault = lambda method, path: 401
    elif how == "no server":
        wandb_server.stop()
    message = send(folder, **variables)
    assert message.startswith(f"nothing is sent: {wandb_server.url} cannot be used (")
    assert "wandb login" in message
    assert wandb_server.runs == {}
    assert not (folder / "wandb.json").exists()


def test_another_project_is_sent_to_when_it_is_asked_for(send, tmp_path, wandb_server):
    folder = a_run(tmp_path / "a", range(3), logger={"project": "stories", "group": "mine", "notes": "why", "tags": ["x"]})
    assert outcomes(send(folder, WANDB_MODE="offline")) == [[("sent", 4)]]  # it is asked for: the mode is for training
    assert outcomes(send(folder, times=2, settings=', project="other"')) == [[("sent", 4)], [("up to date", 0)]]
    assert [run["project"] for run in wandb_server.runs.values()] == ["stories", "other"]
    assert len({run["name"] for run in wandb_server.runs.values()}) == 1
    assert [(run["group"], run["notes"], run["tags"]) for run in wandb_server.runs.values()] == [("mine", "why", ["x"])] * 2
    assert json.loads((folder / "wandb.json").read_text())["sent"]["entity"] == ENTITY


def test_numbers_that_were_not_finite_tables_and_a_run_that_failed_before_its_first_row(send, tmp_path, wandb_server):
    folder = a_run(tmp_path / "a", range(2))
    with open(folder / "metrics.jsonl", "a") as file:
        row = {"step": 2, "tokens": 200, "seconds": 0.2, "train/loss": None}
        tables = {"val/confusion": {"ham": {"ham": 3, "spam": 1}}, "val/calibration": [{"low": 0.0, "accuracy": None}]}
        file.write(json.dumps(row | tables) + "\n")
    early = a_run(tmp_path / "b", range(1), status="failed")
    (early / "metrics.jsonl").write_text("")
    (early / "samples.jsonl").unlink()
    assert outcomes(send(folder, early, times=2)) == [[("sent", 4), ("sent", 0)], [("up to date", 0)] * 2]
    whole, failed = wandb_server.runs.values()
    last = whole["history"][-1]
    assert math.isnan(last["train/loss"])
    assert last["val/confusion"]["_type"] == last["val/calibration"]["_type"] == "table-file"
    confusion = json.loads(whole["files"][last["val/confusion"]["path"]])
    assert (confusion["columns"], confusion["data"]) == (["", "ham", "spam"], [["ham", 3, 1]])
    assert (failed["state"], failed["history"]) == ("failed", [])


class Known:
    """A server's run, as wandb.Api gives it."""

    def __init__(self, history: list[dict[str, Any]]):
        self.history, self.historyLineCount = history, len(history)

    def scan_history(self, keys: list[str], use_cache: bool) -> list[dict[str, Any]]:
        return [{key: row[key] for key in keys} for row in self.history if all(key in row for key in keys)]


row_lists = st.lists(st.tuples(st.sampled_from(["row", "sample"]), st.integers(0, 5)), max_size=12)


@given(rows=row_lists, there=row_lists)
def test_what_is_missing_is_the_difference_of_both_sides(rows, there):
    history = [{"trainer/step": step} | ({"tokens": 1} if kind == "row" else {"sample": {}}) for kind, step in there]
    missing = sync.missing([(kind, {"step": step}) for kind, step in rows], Known([*history, {"plots/loss": {}}]))
    assert Counter((kind, row["step"]) for kind, row in missing) == Counter(rows) - Counter(there)


def test_the_name_of_a_sweep(tmp_path):
    job = tmp_path / "sweeps" / "2026-01-02" / "03-04-05" / "7"
    job.mkdir(parents=True)
    assert sweep_of(job) is None
    (job.parent / "sweep.yaml").touch()
    assert sweep_of(job) == "2026-01-02/03-04-05"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "multirun.yaml").touch()
    assert sweep_of(tmp_path / "mine" / "0") == "mine"
