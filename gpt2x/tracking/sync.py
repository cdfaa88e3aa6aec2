"""Send runs to wandb from their folders: what the server has not got, and nothing twice.

A run's own files (config.yaml, overrides.txt, metrics.jsonl, samples.jsonl, result.json) hold all that was or would have
been told to wandb, so any run can be sent: one made offline, one whose server died, one whose wandb files are lost, one
made with logger=none. The server is asked which rows it has; the others are logged to the run of the id in wandb.json,
which is made, and noted there, if there is none. wandb.json also notes what was sent, so that a run that is there is not
asked for again.

`wandb sync` is not used: it knows nothing of what is there. It sends the rows of a run that went online, and then lost
its server, a second time, and the rows between a checkpoint and a kill once for each time they were made. What it would
add are the measurements of the machine and the console's text, which run.log has.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gpt2x.errors import UserError
from gpt2x.files import shown
from gpt2x.tracking import wandb as tracking
from gpt2x.tracking.description import code_version, description, summary, sweep_of
from gpt2x.tracking.result import read_result
from gpt2x.tracking.server import Server
from gpt2x.tracking.tracker import one_line, read_metrics, read_samples

SYNC_TIMEOUT = 120.0
"""Seconds that the server may take for the last rows of a run; WANDB_FINISH_TIMEOUT overrides it."""


@dataclass(frozen=True)
class Synced:
    """What became of one run: `outcome` is "sent", "up to date", "running" (it is left alone) or "failed"."""

    folder: Path
    outcome: str
    rows: int = 0  # sent now
    url: str | None = None
    reason: str | None = None  # why it failed

    def __str__(self) -> str:
        told = {"sent": f"{self.rows:,} rows, {self.url}", "running": "left alone until it ends", "failed": self.reason}
        return f"{shown(self.folder)}: {self.outcome}" + (f" ({told[self.outcome]})" if self.outcome in told else "")


def sync_runs(
    folders: list[Path], *, project: str | None = None, entity: str | None = None, say: Callable[[str], None] = print
) -> list[Synced]:
    """Send each run what the wandb server has not got of it; `say` is told a line a run.

    Args:
        folders: the runs' folders.
        project: the wandb project; None: the one the run was or would have been logged to.
        entity: the wandb user or team; None: the run's own, else the key's.

    Raises UserError, before anything is sent, if there is no key or no server. A run that cannot be sent is in the
    result with its reason, and the others are sent.
    """
    report = []
    with Server() as server:
        for folder in map(Path, folders):
            try:
                if not (folder / "config.yaml").is_file():
                    raise UserError("there is no config.yaml in it, so it is no run's folder")
                with _locked(folder) as free:
                    synced = _sync(_Run(folder, project, entity), server) if free else Synced(folder, "running")
            except Exception as error:
                synced = Synced(folder, "failed", reason=one_line(error))
                with contextlib.suppress(UserError):  # then the other runs say so themselves
                    server.connect()
            say(str(synced))
            report.append(synced)
    return report


class _Run:
    """What a run's folder holds of it."""

    def __init__(self, folder: Path, project: str | None, entity: str | None):
        self.folder, record = folder, folder / "wandb.json"
        self.record = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}  # damaged: not sent again
        self.config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        self.result = read_result(folder)
        logger = self.config["logger"]
        self.project = project or self.record.get("project") or logger.get("project") or "gpt2x"
        self.entity = entity or self.record.get("entity") or logger.get("entity")
        self.metrics = read_metrics(folder) if (folder / "metrics.jsonl").is_file() else []
        samples = read_samples(folder) if (folder / "samples.jsonl").is_file() else []
        # In the order they were made in: a step's texts are sampled before its row is complete.
        rows = [(row["step"], 0, "sample", row) for row in samples] + [(row["step"], 1, "row", row) for row in self.metrics]
        self.rows = [(kind, row) for _, _, kind, row in sorted(rows, key=lambda row: row[:2])]
        # A row was made `seconds` of work after the run began: so long before the last one, which was made when it was written.
        self.seconds = {row["step"]: row.get("seconds", 0.0) for row in self.metrics}
        written = (folder / "metrics.jsonl").stat().st_mtime if self.metrics else time.time()
        self.began = written - max(self.seconds.values(), default=0.0)
        pictures = [*sorted((folder / "plots").glob("*.png")), *sorted((folder / "judged").glob("*.png"))]
        self.extras = {f"plots/{path.stem}": (tracking.picture_shown, path) for path in pictures}
        self.extras |= {f"judged/{p.stem}": (tracking.lines_shown, p) for p in sorted((folder / "judged").glob("items*.jsonl"))}
        self.status = self.result.get("status", "killed")

    @property
    def state(self) -> str:
        """The state that the wandb run should be in."""
        return "finished" if self.status == "finished" else "failed"

    def about(self) -> dict[str, Any]:
        """What wandb.init is told, as WandbTracker would have told it."""
        overrides = self.folder / "overrides.txt"
        overrides = overrides.read_text(encoding="utf-8").splitlines() if overrides.is_file() else []
        told = description(self.config, overrides, sweep_of(self.folder), code_version(self.result))
        return tracking.arguments(self.config["logger"] | {"project": self.project, "entity": self.entity}, **told)

    def summary(self) -> dict[str, Any]:
        """What the run's end would have told; of a killed one, how far it came."""
        if self.result:
            return summary(self.result)
        last = self.metrics[-1] if self.metrics else {}
        return {"steps" if key == "step" else key: last[key] for key in ("step", "tokens", "seconds", "flops") if key in last}

    def logged(self, kind: str, row: dict[str, Any]) -> dict[str, Any]:
        """A row as WandbTracker logs it, at the time it was made."""
        if kind == "sample":
            made = tracking.sample_shown(row)
        else:  # a number that was not finite is null in the file, and NaN for wandb
            made = tracking.row_shown({key: float("nan") if value is None else value for key, value in row.items()})
        return made | {"_timestamp": self.began + self.seconds.get(row["step"], 0.0)}

    def note(self, **news: Any) -> None:
        """Note in wandb.json."""
        self.record |= news
        tracking.note(self.folder / "wandb.json", self.record)

    def mark_synced(self) -> None:
        """Have `wandb sync`, which would send them again, leave the run's wandb files out."""
        for name in self.record.get("folders", []):
            for parent in self.folder.absolute().parents:  # the names are relative to paths.outputs, wherever that is now
                for log in (parent / name).glob("*.wandb"):
                    log.with_name(f"{log.name}.synced").touch()


def _find(run: _Run, server: Server) -> Any:
    """The server's run; None: it has none."""
    from wandb.apis.public.runs import RunNotFoundError
    from wandb.errors import CommError

    server.api.flush()  # or what it knew before is given again
    try:
        return server.api.run(f"{run.entity}/{run.project}/{run.record['id']}")
    except CommError as error:
        if isinstance(error.exc, RunNotFoundError):
            return None
        raise


def _open(run: _Run, server: Server) -> Any:
    """The wandb run, begun or gone on with. Nothing of this machine or this moment is noted in it."""
    import wandb

    settings = wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
        init_timeout=30,
        finish_timeout=server.finish_timeout or SYNC_TIMEOUT,
        finish_timeout_raises=True,
    )
    about = run.about() | {"id": run.record["id"], "resume": "allow", "reinit": "finish_previous"}
    return wandb.init(mode="online", dir=str(server.folder), settings=settings, **about)


def _sync(run: _Run, server: Server) -> Synced:
    run.entity = run.entity or server.entity
    where = {"server": server.url, "project": run.project, "entity": run.entity}
    asked = {"rows": len(run.rows), "status": run.status}
    sent = run.record.get("sent", {})
    if sent | where | asked == sent:
        return Synced(run.folder, "up to date")
    if "id" not in run.record:  # noted before anything is sent: whatever happens now, there will be one run
        run.note(id=tracking.new_id(), mode="replayed", folders=[])

    known = _find(run, server)
    unsent = missing(run.rows, known)
    extras = [extra for name, extra in run.extras.items() if unsent or not known or name not in known.summary]
    outcome = Synced(run.folder, "up to date")
    if unsent or extras or not known or known.state != run.state:
        online = _open(run, server)
        url = online.url
        tracking.define_metrics(online)
        for kind, row in unsent:
            online.log(run.logged(kind, row))
        for shown, path in extras:
            online.log(shown(path))
        tracking.close(online, run.status, run.summary())
        taken = _find(run, server)
        expected = (known.historyLineCount if known else 0) + len(unsent) + len(extras)
        if taken is None or taken.historyLineCount != expected:
            raise UserError("the server did not take every row; do it again and the rest is sent")
        outcome = Synced(run.folder, "sent", len(unsent), url)
    last = run.metrics[-1]["step"] if run.metrics else None
    run.note(project=run.project, entity=run.entity)
    run.note(sent=where | asked | {"step": last, "at": time.strftime("%Y-%m-%dT%H:%M:%S%z")})
    run.mark_synced()
    return outcome


def missing(rows: list[tuple[str, dict[str, Any]]], known: Any) -> list[tuple[str, dict[str, Any]]]:
    """Those of a run's `rows`, each with its kind, "row" or "sample", that the server's run `known` (or None) has not got.

    A row is known by its kind and its step: what a resumed run makes again is the same.
    """
    there: Counter = Counter()
    if known is not None and known.historyLineCount:
        with_step, rows_of_metrics = (
            Counter(row["trainer/step"] for row in known.scan_history(["trainer/step", *more], use_cache=False))
            for more in ([], ["tokens"])  # which every row of metrics has, and no sample
        )
        there.update({("row", step): n for step, n in rows_of_metrics.items()})
        there.update({("sample", step): n for step, n in (with_step - rows_of_metrics).items()})
    unsent = []
    for kind, row in rows:
        key = (kind, row["step"])
        if there[key]:
            there[key] -= 1
        else:
            unsent.append((kind, row))
    return unsent


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Keep others out of a run's folder; gives False if a process is at work in it."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
