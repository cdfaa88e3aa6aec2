"""Stopping on request: the first Ctrl-C or SIGTERM asks, the second one insists."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType


class StopRequest:
    """Inside the `with` block, SIGINT and SIGTERM raise SystemExit with the code a shell expects (130 or 143).

    Inside `deferred()` the first one only sets `signal`, which the training loop looks at between steps, and a
    second one ends the process at once. A signal that the process was made to ignore stays ignored.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._deferred = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python delivers signals nowhere else
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Let the block decide for itself when to stop."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """130 after SIGINT, 143 after SIGTERM."""
        return 128 + int(self.signal or 0)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            os._exit(128 + number)
        self.signal = number
        if not self._deferred:
            raise SystemExit(self.exit_code)
        name = signal.Signals(number).name
        print(f"\n{name}: finishing this step and saving; once more stops at once.", file=sys.stderr, flush=True)
