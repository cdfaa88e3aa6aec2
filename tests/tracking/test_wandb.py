"""WandbTracker with the unmodified wandb client: offline, against a server on 127.0.0.1, and when things go wrong.

Every run is made in a process of its own, as wandb keeps state for the life of a process. Offline runs are read back
with `wandb leet inspect`.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fake_wandb import API_KEY, ENTITY

from gpt2x.tracking.tracker import read_metrics

get_core_path = pytest.importorskip("wandb.util").get_core_path

PRELUDE = """
import json, logging, signal, sys, time
from pathlib import Path
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
from gpt2x.tracking.tracker import RunFiles, Trackers
from gpt2x.tracking.wandb import WandbTracker

CONFIG = {"seed": 1, "model": {"n_layer": 2, "dropout": None}, "optimizer": {"betas": [0.9, 0.95]}}

def start(run="run", **changes):
    settings = dict(mode="auto", project="gpt2x", entity=None, group=None, tags=["a", "b"], notes=None, init_timeout=20)
    about = dict(run_dir=Path("outputs", run), outputs=Path("outputs"), config=CONFIG, name="nano lr=0.1", job_type="lm")
    Path("outputs", run).mkdir(parents=True, exist_ok=True)
    return WandbTracker(**settings | about | dict(sweep="lr-sweep", overrides=["model=nano", "lr=0.1"]) | changes)

def log(tracker, steps):
    for step in steps:
        tracker.log({"step": step, "tokens": step * 100, "train/loss": 1 / (step + 1), "lr": 0.001})
"""


def rows_of(steps: range) -> list[dict[str, Any]]:
    return [{"trainer/step": s, "tokens": s * 100, "train/loss": 1 / (s + 1), "lr": 0.001} for s in steps]


def plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without what wandb adds to them."""
    return [{key: value for key, value in row.items() if not key.startswith("_")} for row in rows]


def finish(process: subprocess.Popen, expect: int = 0, timeout: float = 40, stdin: str | None = None) -> tuple[str, str]:
    out, err = process.communicate(stdin, timeout=timeout)
    assert process.returncode == expect, err
    assert "Traceback" not in err
    return out, err


def warnings_in(log: str) -> list[str]:
    return [line for line in log.splitlines() if line.startswith("WARNING")]


class LocalRun:
    """A run's local log, as wandb itself reads it."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        (file,) = folder.glob("*.wandb")
        # What `wandb leet inspect --json FILE` runs, without half a second of imports each time.
        command = [get_core_path(), "leet", "inspect", "--json", "--no-observability", "--run-file", str(file)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        records = [json.loads(line) for line in done.stdout.splitlines()]

        def of(kind: str) -> list[dict[str, Any]]:
            return [record[kind] for record in records if record["type"] == kind]

        (self.run,) = of("run")
        self.rows = [history["item"] for history in of("history")]
        self.exit_code = next((exit["exit_code"] for exit in of("exit")), None)
        self.summary: dict[str, Any] = {}
        for summary in of("summary"):
            self.summary |= summary.get("update", {})


@pytest.fixture
def local(tmp_path, environment):
    """The newest local log of the run in a run folder, found by its wandb.json."""

    def read(run: str = "run") -> LocalRun:
        record = json.loads((tmp_path / "outputs" / run / "wandb.json").read_text())
        return LocalRun(tmp_path / "outputs" / record["folders"][-1], environment)

    return read


def test_offline_run_reads_back(python, tmp_path, local):
    process = python(
        PRELUDE
        + """
tracker = start()
log(tracker, range(50))
tracker.log({"step": 49, "val/loss": 0.5, "val/bpb": float("nan")})
tracker.sample({"step": 49, "prompt": "a < b", "text": " & so\\non"})
tracker.finish("finished", {"steps": 50, "best": {"step": 49, "val/loss": 0.5}})
"""
    )
    _, err = finish(process)
    run = local()
    assert plain(run.rows[:50]) == rows_of(range(50))
    assert run.rows[50]["val/loss"] == 0.5
    assert run.rows[51]["sample._type"] == "html-file"
    assert run.exit_code == 0
    assert run.summary["val/loss"] == {"min": 0.5, "last": 0.5}
    assert (run.summary["steps"], run.summary["best"], run.summary["status"]) == (50, {"step": 49, "val/loss": 0.5}, "finished")
    assert (run.run["project"], run.run["run_group"], run.run["job_type"]) == ("gpt2x", "lr-sweep", "lm")
    assert (run.run["display_name"], run.run["notes"], run.run["tags"]) == ("nano lr=0.1", "model=nano lr=0.1", ["a", "b"])
    (page,) = (tmp_path / "outputs/wandb/latest-run/files").rglob("*.html")
    assert "<b>a &lt; b</b> &amp; so\non" in page.read_text()

    (line,) = err.splitlines()  # one hint, and no more
    assert line.startswith("INFO wandb: offline (No API key")
    assert "wandb login" in line
    assert "send: gpt2x-compare outputs/run sync=true" in line
    assert "wandb leet outputs/wandb" in line
    assert os.listdir(tmp_path / "home") == []  # nothing is left outside outputs
    assert sorted(os.listdir(tmp_path)) == ["home", "outputs"]


def test_tables_of_numbers_and_pictures_become_wandbs_own(python, tmp_path, local):
    from matplotlib.figure import Figure

    Figure(figsize=(1, 1)).savefig(tmp_path / "classes.png")
    process = python(
        PRELUDE
        + """
tracker = start()
tracker.log({"step": 1, "val/accuracy": 0.75, "val/confusion": {"ham": {"ham": 3, "spam": 1}, "spam": {"ham": 0, "spam": 4}}})
tracker.log({"step": 1, "val/calibration": [{"low": 0.0, "accuracy": None}, {"low": 0.5, "accuracy": 0.75}]})
tracker.picture(Path("classes.png"))
tracker.finish("finished", {})
"""
    )
    _, err = finish(process)
    assert warnings_in(err) == []
    rows = local().rows
    assert rows[0]["val/accuracy"] == 0.75
    assert [rows[0]["val/confusion._type"], rows[1]["val/calibration._type"]] == ["table-file", "table-file"]
    assert rows[2]["plots/classes._type"] == "image-file"
    files = tmp_path / "outputs/wandb/latest-run/files/media"
    confusion, calibration = (
        json.loads(next(files.rglob(f"{name}_*.json")).read_text()) for name in ("confusion", "calibration")
    )
    assert (confusion["columns"], confusion["data"]) == (["", "ham", "spam"], [["ham", 3, 1], ["spam", 0, 4]])
    assert (calibration["columns"], calibration["data"]) == (["low", "accuracy"], [[0.0, None], [0.5, 0.75]])
    assert len(list(files.rglob("*.png"))) == 1


def test_jobs_of_one_process_are_runs_of_their_own(python, local):
    process = python(
        PRELUDE
        + """
for job, status in enumerate(["finished", "failed", "interrupted"]):
    tracker = start(f"job{job}", config={"seed": job}, group="mine" if job else None, notes="why" if job else None)
    log(tracker, range(job * 10, job * 10 + 5))
    tracker.finish(status, {"steps": job})
"""
    )
    finish(process)
    runs = [local(f"job{job}") for job in range(3)]
    assert len({run.run["run_id"] for run in runs}) == 3
    assert [plain(run.rows) for run in runs] == [rows_of(range(n, n + 5)) for n in (0, 10, 20)]
    assert [run.exit_code for run in runs] == [0, 1, 1]
    assert [run.run["run_group"] for run in runs] == ["lr-sweep", "mine", "mine"]
    assert [run.run["notes"] for run in runs] == ["model=nano lr=0.1", "why", "why"]
    assert [run.summary["status"] for run in runs] == ["finished", "failed", "interrupted"]
    assert [run.summary["steps"] for run in runs] == [0, 1, 2]


def test_online_run_arrives_whole(python, wandb_server, tmp_path):
    process = python(
        PRELUDE
        + """
tracker = start()
log(tracker, range(40))
for step, loss in [(10, 3.0), (20, 1.0), (30, 2.0)]:
    tracker.log({"step": step, "val/loss": loss})
tracker.log({"step": 40, "train/loss": float("nan")})
tracker.sample({"step": 40, "prompt": "Once", "text": " upon"})
tracker.finish("finished", {"steps": 40})
""",
        **wandb_server.env(),
    )
    _, err = finish(process)
    run = wandb_server.only_run()
    history = plain(run["history"])
    assert history[:40] == rows_of(range(40))
    assert history[40:43] == [{"trainer/step": s, "val/loss": loss} for s, loss in [(10, 3.0), (20, 1.0), (30, 2.0)]]
    assert math.isnan(history[43]["train/loss"])
    assert b"<b>Once</b> upon" in run["files"][history[44]["sample"]["path"]]
    assert wandb_server.config_of(run) == {
        "seed": 1, "model": {"n_layer": 2, "dropout": None}, "optimizer": {"betas": [0.9, 0.95]},
    }  # fmt: skip
    assert (run["project"], run["group"], run["jobType"]) == ("gpt2x", "lr-sweep", "lm")
    assert (run["displayName"], run["notes"], run["tags"]) == ("nano lr=0.1", "model=nano lr=0.1", ["a", "b"])
    assert (run["state"], run["exitcode"]) == ("finished", 0)
    assert run["summary"]["val/loss"] == {"min": 1.0, "last": 2.0}
    assert run["summary"]["status"] == "finished"
    assert run["summary"]["steps"] == 40
    record = json.loads((tmp_path / "outputs/run/wandb.json").read_text())
    assert (record["id"], record["mode"], record["project"]) == (run["name"], "online", "gpt2x")
    assert warnings_in(err) == []
    assert f"INFO wandb: {wandb_server.url}/{ENTITY}/gpt2x/runs/{run['name']}" in err


def test_the_key_of_a_netrc_is_found(python, wandb_server, tmp_path):
    netrc = tmp_path / "home/.netrc"
    netrc.write_text(f"machine {wandb_server.url.removeprefix('http://')} login user password {API_KEY}\n")
    netrc.chmod(0o600)
    process = python(PRELUDE + 'tracker = start(); log(tracker, range(3)); tracker.finish("finished", {})',
                     WANDB_BASE_URL=wandb_server.url)  # fmt: skip
    finish(process)
    assert plain(wandb_server.only_run()["history"]) == rows_of(range(3))


def test_wandb_mode_offline_asks_no_server(python, wandb_server, local):
    script = 'tracker = start(); log(tracker, range(3)); tracker.finish("finished", {})'
    _, err = finish(python(PRELUDE + script, **wandb_server.env(), WANDB_MODE="offline"))
    assert plain(local().rows) == rows_of(range(3))
    assert wandb_server.requests == []
    assert len(err.splitlines()) == 1
    assert err.startswith("INFO wandb: offline; send: ")


@pytest.mark.parametrize("how", [{"mode": "disabled"}, {"WANDB_MODE": "disabled"}])
def test_disabled_does_not_even_import_wandb(python, tmp_path, how):
    variables = {key: value for key, value in how.items() if key != "mode"}
    script = f"""
tracker = start(mode="{how.get("mode", "auto")}")
log(tracker, range(3))
tracker.sample({{"step": 3, "prompt": "a", "text": "b"}})
tracker.finish("finished", {{}})
assert "wandb" not in sys.modules
"""
    assert finish(python(PRELUDE + script, **variables)) == ("", "")
    assert os.listdir(tmp_path / "outputs") == ["run"]
    assert os.listdir(tmp_path / "outputs/run") == []


@pytest.mark.parametrize(
    ("variables", "reason"),
    [({"WANDB_MODE": "onlin"}, "Input should be 'online', 'offline'"), ({}, "No module named 'wandb'")],
    ids=["bad WANDB_MODE", "not installed"],
)
def test_what_cannot_be_mended_switches_wandb_off(python, variables, reason):
    hide = "" if variables else "sys.modules['wandb'] = None\n"
    script = 'tracker = start(); log(tracker, range(3)); tracker.finish("finished", {})'
    _, err = finish(python(PRELUDE + hide + script, **variables))
    (line,) = err.splitlines()
    assert line.startswith("WARNING wandb is off for this run: ")
    assert reason in line or "halted" in line


def closed_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.parametrize(
    ("key", "fault", "reason"),
    [
        ("short", None, "API key must have 40+ characters"),
        (API_KEY, "no server", "connection refused"),
        (API_KEY, 500, "HTTP 500"),
        (API_KEY, 401, "401"),
    ],
    ids=["bad key", "no server", "500s", "key refused"],
)
def test_a_run_that_cannot_be_online_goes_on_offline(python, wandb_server, tmp_path, local, key, fault, reason):
    url = f"http://127.0.0.1:{closed_port()}" if fault == "no server" else wandb_server.url
    wandb_server.fault = lambda method, path: fault
    started = time.monotonic()
    script = 'tracker = start(mode="online", init_timeout=1); log(tracker, range(20)); tracker.finish("finished", {})'
    _, err = finish(python(PRELUDE + script, WANDB_API_KEY=key, WANDB_BASE_URL=url))
    assert time.monotonic() - started < 20
    assert plain(local().rows) == rows_of(range(20))
    (line,) = warnings_in(err)
    assert line.startswith("WARNING wandb: offline (")
    assert reason in line
    assert "send: gpt2x-compare outputs/run sync=true" in line
    folders = [path.name for path in (tmp_path / "outputs/wandb").glob("*run-*")]
    assert len(folders) == 1, "the failed attempt left an empty run"


def test_no_terminal_is_ever_asked_for_a_key(environment, tmp_path):
    pty = pytest.importorskip("pty")
    master, terminal = pty.openpty()
    script = PRELUDE + 'tracker = start(mode="online"); log(tracker, range(3)); tracker.finish("finished", {})'
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        cwd=tmp_path,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        timeout=30,
    )
    assert done.returncode == 0
    assert b"wandb: offline (No API key" in os.read(master, 10_000)


HALF_AND_HALF = (
    PRELUDE
    + """
trackers = Trackers([RunFiles("outputs/run"), start()])
log(trackers, range(50))
print("half", flush=True)
sys.stdin.readline()
log(trackers, range(50, 100))
started = time.monotonic()
trackers.finish("finished", {})
print(time.monotonic() - started)
"""
)


@pytest.mark.parametrize("how", ["dies", "hangs", "500s"])
def test_a_server_that_fails_mid_run_costs_no_row(python, wandb_server, tmp_path, local, how):
    process = python(HALF_AND_HALF, WANDB_FINISH_TIMEOUT="1", **wandb_server.env())
    assert process.stdout.readline() == "half\n"
    if how == "dies":
        wandb_server.stop()
    elif how == "hangs":
        wandb_server.lock.acquire()
    else:
        wandb_server.fault = lambda method, path: 500
    started = time.monotonic()
    try:
        out, err = finish(process, stdin="\n")
    finally:
        if how == "hangs":
            wandb_server.lock.release()
    assert 1 <= float(out) < 6
    assert time.monotonic() - started < 20
    run = local()
    assert plain(run.rows) == rows_of(range(100))
    assert run.exit_code == 0
    assert [row["step"] for row in read_metrics(tmp_path / "outputs/run")] == list(range(100))
    assert "send the rest with: gpt2x-compare outputs/run sync=true" in warnings_in(err)[-1]


def test_a_server_that_stumbles_still_gets_every_row(python, wandb_server):
    refused = []

    def fault(method: str, path: str) -> int | None:
        if path.endswith("file_stream") and not refused:
            refused.append(path)
            return 500
        return None

    wandb_server.fault = fault
    script = 'tracker = start(); log(tracker, range(50)); tracker.finish("finished", {})'
    _, err = finish(python(PRELUDE + script, **wandb_server.env()))
    assert len(refused) == 1
    assert plain(wandb_server.only_run()["history"]) == rows_of(range(50))
    assert warnings_in(err) == []


def test_a_dead_background_process_costs_one_warning_and_no_row(python, tmp_path, local):
    process = python(HALF_AND_HALF + 'again = start("next"); log(again, range(5)); again.finish("finished", {})')
    assert process.stdout.readline() == "half\n"
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        pytest.skip("only Linux tells a process's children so simply")
    for child in children.read_text().split():
        os.kill(int(child), signal.SIGKILL)
    _, err = finish(process, stdin="\n")
    assert [row["step"] for row in read_metrics(tmp_path / "outputs/run")] == list(range(100))
    *off, unclosed = warnings_in(err)
    assert len(off) <= 1, "more than one warning for many rows"  # none, if the death is only noticed at the end
    assert all("WandbTracker is off from now on, the run is not" in line for line in off)
    assert "the run is not closed" in unclosed
    assert plain(local("next").rows) == rows_of(range(5))  # the next job has a new one


PART = (
    PRELUDE
    + """
first, last = map(int, sys.stdin.readline().split())
tracker = start()
log(tracker, range(first, last))
tracker.finish("interrupted" if last < 20 else "finished", {})
"""
)


def test_a_resumed_run_goes_on_in_the_same_wandb_run(python, wandb_server, tmp_path):
    for steps in ("0 10", "10 20"):
        finish(python(PART, **wandb_server.env()), stdin=steps)
    run = wandb_server.only_run()
    assert plain(run["history"]) == rows_of(range(20))
    assert (run["state"], run["summary"]["status"]) == ("finished", "finished")
    assert len(json.loads((tmp_path / "outputs/run/wandb.json").read_text())["folders"]) == 2


def test_a_run_resumed_offline_syncs_into_one(python, wandb_server, tmp_path, environment):
    for steps in ("0 10", "10 20"):
        finish(python(PART), stdin=steps)
    folders = json.loads((tmp_path / "outputs/run/wandb.json").read_text())["folders"]
    command = [sys.executable, "-m", "wandb", "sync", *(str(tmp_path / "outputs" / folder) for folder in folders)]
    subprocess.run(command, env=environment | wandb_server.env(), cwd=tmp_path, capture_output=True, check=True, timeout=30)
    assert plain(wandb_server.only_run()["history"]) == rows_of(range(20))


def test_sigterm_keeps_everything(python, local):
    process = python(
        PRELUDE
        + """
def stop(*_):
    raise SystemExit(143)
signal.signal(signal.SIGTERM, stop)
tracker = start()
try:
    log(tracker, range(30))
    print("ready", flush=True)
    time.sleep(60)
finally:
    tracker.finish("interrupted", {"steps": 30})
"""
    )
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    finish(process, expect=143)
    run = local()
    assert plain(run.rows) == rows_of(range(30))
    assert run.exit_code == 1
    assert run.summary["status"] == "interrupted"


def test_kill_9_loses_about_a_second(python, local):
    process = python(PRELUDE + 'tracker = start(); log(tracker, range(30)); print("ready", flush=True); time.sleep(60)')
    assert process.stdout.readline() == "ready\n"
    time.sleep(2)
    process.kill()
    process.wait()
    run = local()
    assert plain(run.rows) == rows_of(range(30))
    assert run.exit_code is None


def test_logging_takes_well_under_a_millisecond(python, wandb_server):
    process = python(
        PRELUDE
        + """
tracker = start(mode="offline")
times = []
for step in range(1000):
    began = time.perf_counter()
    log(tracker, [step])
    times.append(time.perf_counter() - began)
print(sorted(times)[500])
tracker.finish("finished", {})
""",
        **wandb_server.env(),
    )
    out, _ = finish(process)
    assert float(out) < 1e-3
    assert wandb_server.requests == []
