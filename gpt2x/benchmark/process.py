"""A process that answers lines of JSON: each question is one line to its standard input, each answer one from its output.

Worker is the side that asks, serve the side that answers; FreshWorker asks a new process each time. Nothing heavy is imported
here, so that the memory of a process that serves is its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

from gpt2x.device import peak_memory
from gpt2x.errors import UserError

Answer = Callable[[dict[str, Any]], dict[str, Any]]  # from a question to its answer, both plain data


class WorkerError(Exception):
    """A worker ended or did not answer in time; the message says how, with the last it wrote to standard error."""


class Worker:
    """Starts `command`; `ask` it, one question at a time, and `close` it."""

    def __init__(self, command: list[str], *, timeout: float, env: dict[str, str] | None = None):
        self.timeout = timeout
        self._errors = tempfile.TemporaryFile()  # a pipe that nobody reads would fill up and stop the process  # noqa: SIM115
        self._process = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, encoding="utf-8"
        )

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """The answer to `question`. Raises WorkerError where none comes within `timeout` seconds; then the worker has ended."""
        late = threading.Event()
        timer = threading.Timer(self.timeout, lambda: (late.set(), self._kill()))
        timer.start()
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if line.endswith("\n"):
            return json.loads(line)
        code = self._process.wait()
        raise self._error(f"no answer within {self.timeout:g} s" if late.is_set() else _ending(code))

    def wait(self) -> None:
        """Let the process end by itself. Raises WorkerError where it does not within `timeout` seconds, or fails in it."""
        try:
            code = self._process.wait(self.timeout)
        except subprocess.TimeoutExpired:
            self._kill()
            raise self._error(f"no end within {self.timeout:g} s") from None
        if code:
            raise self._error(_ending(code))

    def close(self) -> None:
        """End the process, whatever it is doing, and those it has started."""
        self._kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            with contextlib.suppress(BrokenPipeError):  # of what had not been read when it ended
                stream.close()

    def _kill(self) -> None:
        import psutil

        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended already
            for child in psutil.Process(self._process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
        self._process.kill()

    def _error(self, how: str, lines: int = 8) -> WorkerError:
        self._errors.seek(0)
        return WorkerError("\n".join([how, *self._errors.read().decode("utf-8", errors="replace").splitlines()[-lines:]]))


class FreshWorker:
    """Asked like a Worker, it starts `command` anew for each question and lets it end; the first one is kept for the others.

    Each process is asked that first question, a job, with the new one's keys and "started", the time.perf_counter() before its
    start. Its answer is one line, too; with it goes "seconds", the time from that start to the process's end.
    """

    def __init__(self, command: list[str], *, timeout: float, env: dict[str, str] | None = None):
        self.command, self.timeout, self.env = command, timeout, env
        self._job: dict[str, Any] | None = None

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """The answer to `question`. Raises WorkerError as a Worker does."""
        if self._job is None:
            self._job = question
            return {}
        started = time.perf_counter()  # this clock is the same in all processes
        with contextlib.closing(Worker(self.command, timeout=self.timeout, env=self.env)) as worker:
            answer = worker.ask(self._job | question | {"started": started})
            worker.wait()
            return answer | {"seconds": time.perf_counter() - started}

    def close(self) -> None:
        """Nothing is left to end."""


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    return f"ended by {name}" + (", perhaps because memory ran out" if name == "SIGKILL" else "")


def serve(load: Callable[[dict[str, Any]], tuple[Answer, dict[str, Any]]]) -> None:
    """Be the process that a Worker asks, until the standard input ends.

    The first question is a job: `load` makes of it what answers the others, and what else is to be told of it. Told too are
    the seconds to load and, with each answer, the most memory that the process held until then.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not mix with the answers
    job = json.loads(sys.stdin.readline())
    started = time.perf_counter()
    try:
        answer, about = load(job)
    except UserError as error:
        sys.exit(str(error))
    print(json.dumps({"load_seconds": time.perf_counter() - started} | about), file=answers)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line)) | {"peak_memory_bytes": peak_memory()}), file=answers)
    os._exit(0)  # without waiting for a server's threads
