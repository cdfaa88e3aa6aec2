"""A file server on the loopback, as good or as bad as a test needs it."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import threading
import time
from collections.abc import Iterator

CONTENT = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` for every path; notes each request's Range header (None without one)."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.requests = CONTENT, []
        self.files: dict[str, bytes] | None = None  # by the last part of their path, in place of `content`; no others are there
        self.ranges = True  # answer Range headers
        self.cut_at: int | None = None  # break the connection after this many bytes of the answer
        self.chunked = False  # do not say how long the answer is
        self.status: int | None = None
        self.seconds = 0.0

    def url(self, name: str = "file.txt") -> str:
        return f"http://127.0.0.1:{self.server_port}/some/folder/{name}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.requests.append(wanted)
        time.sleep(server.seconds)
        if server.status is not None:
            return self.send_error(server.status)
        content = server.content if server.files is None else server.files.get(self.path.rpartition("/")[2])
        if content is None:
            return self.send_error(404)
        body, status = content, 200
        if wanted and server.ranges:
            first = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if first >= len(body):
                return self.send_error(416)
            body, status = body[first:], 206
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{len(server.content) - 1}/{len(content)}")
        self.send_header(*(("Transfer-Encoding", "chunked") if server.chunked else ("Content-Length", str(len(body)))))
        self.send_header("Connection", "close")
        self.end_headers()
        if server.chunked:
            self.wfile.write(b"%x\r\n" % len(body))
        self.wfile.write(body[: server.cut_at])
        if server.chunked and server.cut_at is None:
            self.wfile.write(b"\r\n0\r\n\r\n")

    def log_message(self, *args: object) -> None:
        pass


@contextlib.contextmanager
def served() -> Iterator[Server]:
    """A server that runs as long as the block does."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
