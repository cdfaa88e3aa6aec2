"""A process that answers lines of JSON: each question is one line to its standard input, each answer one from its output."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import tempfile
import threading
from typing import Any


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
        timer = threading.Timer(self.timeout, lambda: (late.set(), self._process.kill()))
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
        how = f"no answer within {self.timeout:g} s" if late.is_set() else _ending(code)
        raise WorkerError("\n".join([how, *self._last_errors()]))

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            with contextlib.suppress(BrokenPipeError):  # of what had not been read when it ended
                stream.close()

    def _last_errors(self, lines: int = 8) -> list[str]:
        self._errors.seek(0)
        return self._errors.read().decode("utf-8", errors="replace").splitlines()[-lines:]


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    return f"ended by {name}" + (", perhaps because memory ran out" if name == "SIGKILL" else "")
