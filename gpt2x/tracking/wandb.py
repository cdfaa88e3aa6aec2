"""Weights & Biases beside the run's own files: it shows a run, it never stops one.

Whatever goes wrong (no key, a bad key, no server, a server that dies) costs the dashboard, not the run: wandb
keeps every row in a folder under `outputs/wandb`, which `wandb leet` shows, and `gpt2x-compare RUN sync=true` sends what
the server has not got (sync.py). The functions at the end are what both use.
"""

from __future__ import annotations

import contextlib
import html
import json
import logging
import os
import shlex
import shutil
import uuid
from pathlib import Path
from typing import Any

from gpt2x.files import shown, write_atomic
from gpt2x.tracking.tracker import Tracker, one_line

_log = logging.getLogger(__name__)

FINISH_TIMEOUT = 10.0
"""Seconds for which the end of a run waits for the server to take the last rows; WANDB_FINISH_TIMEOUT overrides it."""


class WandbTracker(Tracker):
    """One wandb run. `WandbConfig` describes the first seven settings.

    Mode "auto" is what WANDB_MODE or wandb's own settings say, else online if wandb finds an API key (WANDB_API_KEY,
    netrc), else offline. Nothing ever prompts. Constructing it never raises: if wandb cannot even log offline, and
    with mode "disabled", which does not import wandb, it ignores what it is told.

    Args:
        run_dir: the run's folder. wandb.json in it holds the wandb id, with which a resumed run goes on.
        outputs: the folder whose `wandb/` all runs share, so that `wandb leet` compares them.
        config: the resolved config, plain dicts, lists, strings and numbers.
        name: the run's name, `job_type` its kind.
        sweep: the name of the sweep it is a job of; the group, where none is given.
        overrides: the command's overrides; the notes, where none are given.
    """

    def __init__(
        self,
        *,
        mode: str,
        project: str,
        entity: str | None,
        group: str | None,
        tags: list[str],
        notes: str | None,
        init_timeout: float,
        run_dir: Path,
        outputs: Path,
        config: dict[str, Any],
        name: str,
        job_type: str,
        sweep: str | None,
        overrides: list[str],
    ):
        self._run: Any = None
        if "disabled" in (mode, os.environ.get("WANDB_MODE") if mode == "auto" else None):
            return
        self._outputs, self._record = Path(outputs).resolve(), Path(run_dir) / "wandb.json"
        self._sync = f"gpt2x-compare {_shown(Path(run_dir))} sync=true"  # not wandb sync, which sends some rows twice
        try:
            known = json.loads(self._record.read_text()) if self._record.is_file() else {}
            settings = {"project": project, "entity": entity, "group": group, "tags": tags, "notes": notes}
            about = arguments(settings, config=config, name=name, job_type=job_type, sweep=sweep, overrides=overrides)
            self._run = self._open(mode, init_timeout, id=known.get("id") or new_id(), **about)
            if self._run is not None:
                define_metrics(self._run)
                self._note(known.get("folders", []))
        except Exception as error:
            self._run = None
            _log.warning("wandb is off for this run: %s", one_line(error))

    def log(self, row: dict[str, Any]) -> None:
        if self._run is not None:
            self._run.log(row_shown(row))

    def sample(self, row: dict[str, Any]) -> None:
        if self._run is not None:
            self._run.log(sample_shown(row))

    def picture(self, path: Path) -> None:
        if self._run is not None:
            self._run.log(picture_shown(path))

    def lines(self, path: Path) -> None:
        if self._run is not None:
            self._run.log(lines_shown(path))

    def finish(self, status: str, summary: dict[str, Any]) -> None:
        run, self._run = self._run, None
        if run is None:
            return
        try:
            close(run, status, summary)
        except TimeoutError:
            _log.warning("wandb: the server did not take everything in time; send the rest with: %s", self._sync)
        except Exception as error:
            _log.warning("wandb: the run is not closed (%s); send it with: %s", one_line(error), self._sync)
            restart()

    def _open(self, mode: str, init_timeout: float, **about: Any) -> Any:
        """Start a wandb run: online if it may and can be, else offline. None: wandb is disabled."""
        shared = self._outputs / "wandb"
        found = setup(shared)
        import wandb

        if mode == "auto":
            mode = {"run": "online", "dryrun": "offline"}.get(found.mode, found.mode)
        if mode == "disabled":
            return None

        about["settings"] = wandb.Settings(
            silent=True,
            init_timeout=init_timeout,
            finish_timeout=found.finish_timeout or FINISH_TIMEOUT,
            finish_timeout_raises=True,
            x_transaction_log_flush_interval=1,  # seconds that a killed run loses; wandb's own 15 are many steps
        )
        # Without finish_previous, the next job of a multirun in this process would log into this one's run.
        about |= {"dir": str(self._outputs), "resume": "allow", "reinit": "finish_previous"}
        problem = None
        if mode != "offline":
            earlier = set(shared.iterdir())
            try:
                run = wandb.init(mode=mode, **about)
                _log.info("wandb: %s (and %s)", run.url, _shown(_folder(run)))
                return run
            except Exception as error:
                problem = error
                restart()  # the failed attempt holds the id, and leaves a folder with an empty log
                setup(shared)
                for folder in set(shared.glob(f"run-*-{about['id']}*")) - earlier:
                    shutil.rmtree(folder, ignore_errors=True)
        run = wandb.init(mode="offline", **about)
        keyless = problem is None or isinstance(problem, wandb.UsageError)
        because = f" ({one_line(problem).rstrip('.')})" if problem else ""
        hint = f"wandb: offline{because}; send: {self._sync}; look: wandb leet {_shown(shared)}"
        _log.log(logging.INFO if keyless else logging.WARNING, "%s", hint)
        return run

    def _note(self, folders: list[str]) -> None:
        """Note in the run's folder where its wandb run is."""
        run = self._run
        folders = [*folders, os.path.relpath(_folder(run), self._outputs)]
        mode = "offline" if run.offline else "online"
        note(self._record, {"id": run.id, "project": run.project, "entity": run.entity, "mode": mode, "folders": folders})


def _folder(run: Any) -> Path:
    return Path(run.dir).parent


def _shown(path: Path) -> str:
    """A path as one would type it here."""
    return shlex.quote(shown(path))


def new_id() -> str:
    """A name for a wandb run that no other has."""
    return uuid.uuid4().hex[:8]


def arguments(
    settings: dict[str, Any], *, config: dict[str, Any], name: str, job_type: str, sweep: str | None, overrides: list[str]
) -> dict[str, Any]:
    """What wandb.init is told of a run; `settings` are WandbConfig's, the others those of WandbTracker."""
    return {
        "project": settings["project"],
        "entity": settings["entity"],
        "group": settings.get("group") or sweep,
        "tags": list(settings.get("tags") or []),
        "notes": settings.get("notes") or " ".join(overrides),
        "name": name,
        "job_type": job_type,
        "config": config,
    }


def note(file: Path, record: dict[str, Any]) -> None:
    """Write a run's wandb.json."""
    write_atomic(file, json.dumps(record, indent=2) + "\n")


def define_metrics(run: Any) -> None:
    """Tell wandb how to draw a run."""
    run.define_metric("trainer/step")
    run.define_metric("*", step_metric="trainer/step")
    run.define_metric("val/loss", step_metric="trainer/step", summary="min,last")


def row_shown(row: dict[str, Any]) -> dict[str, Any]:
    """A row of metrics as it is logged to wandb."""
    return {"trainer/step" if key == "step" else key: _table_shown(value) for key, value in row.items()}


def sample_shown(row: dict[str, Any]) -> dict[str, Any]:
    """A generated text as it is logged to wandb: a small page, as a table would be sent anew, and longer, each time."""
    import wandb

    page = f"<pre style='white-space: pre-wrap'><b>{html.escape(row['prompt'])}</b>{html.escape(row['text'])}</pre>"
    return {"trainer/step": row["step"], "sample": wandb.Html(page, inject=False)}


def picture_shown(path: Path) -> dict[str, Any]:
    """A picture of a run as it is logged to wandb."""
    import wandb

    return {f"plots/{path.stem}": wandb.Image(str(path))}


def lines_shown(path: Path) -> dict[str, Any]:
    """A file of JSON lines as it is logged to wandb: a table, in which what is nested stands as JSON."""
    import wandb

    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[row.get(name) for name in columns] for row in rows]
    data = [[json.dumps(cell) if isinstance(cell, (dict, list)) else cell for cell in row] for row in cells]
    return {f"{path.parent.name}/{path.stem}": wandb.Table(columns=columns, data=data, allow_mixed_types=True)}


def _table_shown(value: Any) -> Any:
    """A table of numbers ({row: {column: number}}, or a list of {column: number}) as wandb's own table."""
    if not isinstance(value, (dict, list)):
        return value
    import wandb

    if isinstance(value, dict):
        columns = [str(name) for name in next(iter(value.values()))]
        return wandb.Table(columns=["", *columns], data=[[str(name), *row.values()] for name, row in value.items()])
    return wandb.Table(columns=list(value[0]), data=[list(row.values()) for row in value])


def close(run: Any, status: str, summary: dict[str, Any]) -> None:
    """End a wandb run. Raises TimeoutError if the server does not take everything in time."""
    run.summary.update({**summary, "status": status})
    run.finish(exit_code=0 if status == "finished" else 1)


def setup(shared: Path, **settings: Any) -> Any:
    """Set up wandb for this process, with its files in `shared`; gives wandb's settings. It never prompts."""
    shared.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    # Artifacts wait in the data folder for the upload, which does not miss a lost one: so not in the home folder, where
    # caches get cleaned. WANDB_CONFIG_DIR stays as it is: there `wandb login --host` noted which server is the user's.
    os.environ.setdefault("WANDB_DATA_DIR", str(shared / ".data"))
    os.environ.setdefault("WANDB_CACHE_DIR", str(shared / ".cache"))
    import wandb

    silent = wandb.Settings(silent=True)  # also: never prompt
    found = wandb.setup(wandb.Settings(silent=True, **settings)).settings
    wandb.termsetup(silent, _log)  # its messages go to our log
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of each row that a dead background process misses
    return found


def restart() -> None:
    """Have wandb's background process started anew for the next run; it may be dead, or hold a failed one."""
    import wandb

    with contextlib.suppress(Exception, SystemExit):
        wandb.teardown()
