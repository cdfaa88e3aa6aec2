"""Contestants that measure in turns, each a process of its own: what all suites have in common.

A process of its own keeps a contestant's memory its own and lets no library's threads get in another's way. All load
first; then they measure one at a time, round after round, so that whatever else the machine does meets all of them.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from gpt2x.benchmark.process import FreshWorker, Worker, WorkerError
from gpt2x.errors import UserError


def enter(name: str, requires: tuple[str, ...], reason: str | None = None, **about: Any) -> dict[str, Any]:
    """What a report tells about a contestant: "status" is "ready", or "skipped" where a package it `requires` is missing
    or there is another `reason`."""
    entry = {"name": name, "status": "ready", "versions": {}} | about
    try:
        entry["versions"] = {package: metadata.version(package) for package in requires}
    except metadata.PackageNotFoundError:
        reason = f"not installed: pip install {' '.join(requires)}, or all peers: pip install -e '.[benchmark]'"
    if reason is not None:
        entry |= {"status": "skipped", "reason": reason}
        print(f"skipped  {name}: {reason}", flush=True)
    return entry


class Contest(contextlib.ExitStack):
    """Runs `command` once for each of `entries` that is ready; leaving the context ends the processes.

    A contestant that ends or does not answer within `timeout` seconds has "failed", with a "reason", and the others go on.
    With FreshWorker as `worker` it is a new process in each round.
    """

    def __init__(
        self,
        command: list[str],
        entries: list[dict[str, Any]],
        *,
        timeout: float,
        threads: int,
        worker: type[Worker] | type[FreshWorker] = Worker,
    ):
        super().__init__()
        self.command, self.entries, self.timeout, self.threads, self.worker = command, entries, timeout, threads, worker
        self._workers: dict[str, Worker | FreshWorker] = {}

    def load(self, job: Callable[[str], dict[str, Any]]) -> None:
        """Start them one after another; `job` says for a name what its process is told."""
        for entry in self._ready():
            with noting_failure(entry):
                question = job(entry["name"])
                worker = self.worker(self.command, timeout=self.timeout, env=_environment(self.threads))
                self.callback(worker.close)
                self._workers[entry["name"]] = worker
                entry |= worker.ask(question)

    def measure(
        self,
        rounds: int,
        question: dict[str, Any],
        *,
        among: Callable[[str], bool] = lambda name: True,
        check: Callable[[dict[str, Any]], None] = lambda answer: None,
        description: str,
    ) -> Iterator[dict[str, Any]]:
        """Ask the ones that `among` names in turns, and yield their answers with "contestant" and "round".

        Round 0 is not to be counted: memory is mapped in it, and threads start. `check` raises WorkerError for an answer
        that says that a contestant did not do what it should.
        """
        from tqdm import tqdm

        for round in tqdm(range(rounds + 1), desc=description, unit="round", disable=None):
            for entry in self._ready():
                if among(entry["name"]):
                    with noting_failure(entry):
                        answer = self._workers[entry["name"]].ask(question)
                        check(answer)
                        yield {"contestant": entry["name"], "round": round} | answer

    def _ready(self) -> Iterator[dict[str, Any]]:
        return (entry for entry in self.entries if entry["status"] == "ready")


@contextlib.contextmanager
def noting_failure(entry: dict[str, Any]) -> Iterator[None]:
    """Let the others go on where one contestant cannot."""
    try:
        yield
    except (WorkerError, UserError) as error:
        entry |= {"status": "failed", "reason": str(error)}
        print(f"failed   {entry['name']}: {error}", flush=True)


def by_contestant(entries: list[dict], measurements: list[dict]) -> dict[str, list[dict]]:
    """The measurements of each contestant that did not fail, in the entries' order."""
    ready = [entry["name"] for entry in entries if entry["status"] == "ready"]
    taken = {name: [m for m in measurements if m["contestant"] == name] for name in ready}
    return {name: mine for name, mine in taken.items() if mine}


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def module(name: str) -> list[str]:
    """The command that runs a module of this gpt2x."""
    return [sys.executable, "-m", name]


def _environment(threads: int) -> dict[str, str]:
    """A contestant's: it finds this gpt2x, and as many threads as the others have."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}
