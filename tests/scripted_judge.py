"""A judge's server that says what a test wants, in both protocols, on the loopback interface."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Raw:
    """An answer that is none: `status`, `headers` and `body` as they are; with `cut` the header promises more than there is,
    or the stream ends in the middle; `seconds` before it comes."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    seconds: float = 0.0


Script = Callable[[int, dict[str, Any]], "str | Raw"]


def verdict(score: Any = 80, reason: Any = "It is fine.", **more: Any) -> str:
    return json.dumps({"reason": reason, "score": score} | more)


def fitting(body: dict[str, Any]) -> str:
    """A verdict of the form that is asked for."""
    asked = body["messages"][-1]["content"]
    if "Respond with the integer number only." in asked:
        return "80"
    if '"winner"' in asked:
        return json.dumps({"reason": "It is fine.", "winner": "first"})
    scale = re.search(r"Score the answer from \d+ to (\d+)", asked)
    return verdict(min(80, int(scale[1]) if scale else 80))


@dataclass
class ScriptedJudge:
    """`script(number, body)` says what the number-th question (from 0, trials included) gets: a text, or a Raw.

    `asked` are the bodies of all questions, `headers` their headers; `models` what the server has.
    """

    script: Script = lambda number, body: fitting(body)
    models: dict[str, str] = field(default_factory=lambda: {"llama3.2:latest": "digest-1"})
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    most: int = 0  # questions under way at the same time
    url: str = ""

    @property
    def real(self) -> list[dict[str, Any]]:
        """The questions without the trials."""
        return [body for body in self.asked if "What is 2 + 2?" not in body["messages"][-1]["content"]]


@contextlib.contextmanager
def scripted_judge(script: Script | None = None, **settings: Any) -> Iterator[ScriptedJudge]:
    judge = ScriptedJudge(**settings) if script is None else ScriptedJudge(script, **settings)
    lock, now = threading.Lock(), [0]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            lists = {
                "/api/tags": {"models": [{"name": name, "digest": digest} for name, digest in judge.models.items()]},
                "/v1/models": {"data": [{"id": name, "digest": d, "created": time.time()} for name, d in judge.models.items()]},
            }
            judge.headers.append(dict(self.headers))
            self.send(Raw(200, json.dumps(lists[self.path]).encode()) if self.path in lists else Raw(404, b"{}"))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(judge.asked)
                judge.asked.append(body)
                judge.headers.append(dict(self.headers))
                now[0] += 1
                judge.most = max(judge.most, now[0])
            try:
                said = judge.script(number, body)
                if isinstance(said, str):
                    said = Raw(200, ollama_stream(said) if self.path == "/api/chat" else openai_reply(said))
                time.sleep(said.seconds)
            finally:
                with lock:
                    now[0] -= 1
            with contextlib.suppress(OSError):  # whoever asked has left
                self.send(said)

        def send(self, said: Raw) -> None:
            self.send_response(said.status)
            for name, value in said.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(said.body) + (100 if said.cut else 0)))
            self.end_headers()
            self.wfile.write(said.body)
            self.close_connection = self.close_connection or said.cut

    class Quiet(ThreadingHTTPServer):
        daemon_threads, request_queue_size = True, 64

        def handle_error(self, *args: object) -> None:  # a process that was killed breaks its connections
            pass

    server = Quiet(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    judge.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield judge
    finally:
        server.shutdown()
        server.server_close()


def ollama_stream(text: str, *, done: bool = True, reason: str = "stop") -> bytes:
    """The lines that Ollama sends for a text, in two pieces; without `done` the last one is missing."""
    pieces = [{"message": {"role": "assistant", "content": part}, "done": False} for part in (text[:9], text[9:])]
    lines = [*pieces, *([{"message": {"role": "assistant", "content": ""}, "done": True, "done_reason": reason}] * done)]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def openai_reply(text: str, *, reason: str = "stop") -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": reason}]}).encode()
