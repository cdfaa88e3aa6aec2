"""A stand-in for wandb's server on 127.0.0.1: what the unmodified client sends is there for a test to look at.

It answers as much of the protocol as wandb 0.31 needs to log a run online, to resume it, to upload its media, to
`wandb sync` an offline run, to ask for a run and its rows, and to save a workspace.

    with FakeWandb() as server:
        subprocess.run(..., env={**os.environ, **server.env()})
        run = server.only_run()
        assert [row["train/loss"] for row in run["history"]] == [...]
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import re
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

ENTITY = "tester"
API_KEY = "0123456789abcdef0123456789abcdef01234567"  # any 40 such characters do


class FakeWandb:
    """The server, running inside the `with`.

    `runs` holds what it was told: "project/id" -> a dict with `state`, `group`, `jobType`, `displayName`, `tags`,
    `notes`, `config`, `summary`, `exitcode`, `history` (a dict a row) and `files` (name -> bytes).
    `views` are the saved workspaces, as they were sent.
    `fault(method, path)` may be set to give a status with which to refuse a request, None to let it pass.
    """

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.views: list[dict[str, Any]] = []
        self.requests: list[str] = []
        self.fault: Callable[[str, str], int | None] | None = None
        self.lock = threading.RLock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.fake = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FakeWandb:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Die as a process does: nothing listens any more and open connections break. May be called twice."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            for connection in list(self._server.connections):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def env(self) -> dict[str, str]:
        """Environment variables with which a client logs in here."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": API_KEY}

    def only_run(self) -> dict[str, Any]:
        (run,) = self.runs.values()
        return run

    @staticmethod
    def config_of(run: dict[str, Any]) -> dict[str, Any]:
        """The run's config as it was given to wandb.init."""
        return {key: item["value"] for key, item in run["config"].items() if key != "_wandb"}

    # What follows answers GraphQL operations, each by a method of the operation's name.

    def _find(self, project: str | None, name: str, *, make: bool = False) -> dict[str, Any] | None:
        key = f"{project or 'uncategorized'}/{name}"
        if make and key not in self.runs:
            texts = dict.fromkeys(("group", "jobType", "notes", "exitcode"))
            lists = {"tags": [], "history": [], "events": [], "output": []}
            self.runs[key] = texts | lists | {"config": {}, "summary": {}, "files": {}, "state": "running"}
            self.runs[key] |= {"name": name, "displayName": name, "project": project or "uncategorized", "requests": 0}
        return self.runs.get(key)

    def _bucket(self, run: dict[str, Any]) -> dict[str, Any]:
        project = {"id": _id("Project", run["project"]), "name": run["project"]}
        return {
            **{key: run[key] for key in ("name", "displayName", "state", "tags", "notes", "group", "jobType")},
            "id": _id("Run:v1", run["name"]),
            "config": json.dumps(run["config"]),
            "summaryMetrics": json.dumps(run["summary"]),
            "wandbConfig": '{"t": {}}',
            "historyLineCount": len(run["history"]),
            "eventsLineCount": len(run["events"]),
            "logLineCount": len(run["output"]),
            "historyTail": json.dumps([json.dumps(row) for row in run["history"][-1:]]),
            "eventsTail": json.dumps([json.dumps(row) for row in run["events"][-1:]]),
            "project": project | {"entity": {"id": _id("Entity", ENTITY), "name": ENTITY}},
        }

    def Viewer(self, v: dict) -> dict:
        return {"viewer": {"id": _id("User", ENTITY), "entity": ENTITY, "username": ENTITY, "flags": "{}"}}

    GetDefaultEntity = Viewer

    def ServerFeaturesQuery(self, v: dict) -> dict:
        return {"serverInfo": {"features": []}}

    def UpsertBucket(self, v: dict) -> dict:
        name = v["name"] if v.get("name") else base64.b64decode(v["id"]).decode().split(":")[-1]
        known = self._find(v.get("project"), name)
        run = known or self._find(v.get("project"), name, make=True)
        run["config"].update(json.loads(v.get("config") or "{}"))
        run["summary"].update(json.loads(v.get("summaryMetrics") or "{}"))
        for key in ("displayName", "jobType", "notes", "tags", "state"):
            if v.get(key) is not None:
                run[key] = v[key]
        run["group"] = v.get("groupName") or run["group"]
        return {"upsertBucket": {"bucket": self._bucket(run), "inserted": known is None}}

    def RunResumeStatus(self, v: dict) -> dict:
        run = self._find(v.get("project"), v["name"])
        model = {"id": _id("Project", v["project"]), "name": v["project"]}
        model["entity"] = {"id": _id("Entity", ENTITY), "name": ENTITY}
        return {"model": model | {"bucket": self._bucket(run) if run else None}}

    def Run(self, v: dict) -> dict:
        run = self._find(v["project"], v.get("name") or v.get("runName") or v["run"])
        if run is None:
            return {"project": {"run": None}}
        last = max((row["_step"] for row in run["history"]), default=-1)
        node = self._bucket(run) | {"historyKeys": {"sets": [], "keys": {}, "lastStep": last}}
        # wandb.Api's scan_history asks whether there is a file of older rows, then for the rows with some keys.
        live = [{key: row.get(key) for key in v.get("liveKeys", [])} for row in run["history"]]
        node["parquetHistory"] = {"liveData": live, "parquetUrls": []}
        if spec := json.loads(v.get("spec") or "null"):
            within = (row for row in run["history"] if spec["minStep"] <= row["_step"] <= spec["maxStep"])
            rows = [{key: row[key] for key in spec["keys"]} for row in within if set(spec["keys"]) <= row.keys()]
            node["sampledHistory"] = [rows[: spec["samples"]]]
        return {"project": {"run": node}}

    RunHistoryKeys = RunParquetHistory = SampledHistoryPage = Run

    def RunStoppedStatus(self, v: dict) -> dict:
        return {"project": {"run": {"stopped": False}}}

    def UpsertView2(self, v: dict) -> dict:
        self.views.append(v)
        return {"upsertView": {"view": {"id": _id("View", v["name"]), "name": v["name"]}, "inserted": True}}

    def ArtifactType(self, v: dict) -> dict:
        return {"project": {"artifact": None}}

    def CreateArtifact(self, v: dict) -> dict:  # a logged table is one, too: its bytes are said to be there already
        artifact = {"id": _id("Artifact", v["input"]["digest"]), "state": "COMMITTED"}
        return {"createArtifact": {"artifact": artifact | {"artifactSequence": {"latestArtifact": None}}}}

    def CreateRunFiles(self, v: dict) -> dict:  # the client crashes on an answer without these
        key = f"{v.get('project')}/{v['run']}"
        files = [{"name": name, "uploadUrl": f"{self.url}/storage/{key}/{name}"} for name in v["files"]]
        return {"createRunFiles": {"runID": _id("Run:v1", v["run"]), "uploadHeaders": [], "files": files}}


def _id(kind: str, name: str) -> str:
    return base64.b64encode(f"{kind}:{name}".encode()).decode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # the client opens many connections at once
    fake: FakeWandb

    def __init__(self, *args: Any) -> None:
        self.connections: set[socket.socket] = set()
        super().__init__(*args)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # a client that hangs up is not news
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        self.server.connections.add(self.request)
        super().setup()

    def finish(self) -> None:
        self.server.connections.discard(self.request)
        super().finish()

    def log_message(self, *args: Any) -> None:
        pass

    def _body(self) -> bytes:
        if "chunked" in (self.headers.get("transfer-encoding") or ""):
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            data = b"".join(parts)
        else:
            data = self.rfile.read(int(self.headers.get("content-length") or 0))
        return gzip.decompress(data) if self.headers.get("content-encoding") == "gzip" else data

    def _reply(self, answer: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _any(self) -> None:
        data, path, fake = self._body(), unquote(urlsplit(self.path).path), self.server.fake
        with fake.lock:
            fake.requests.append(f"{self.command} {path}")
            status = fake.fault(self.command, path) if fake.fault else None
            if status:
                self._reply({"error": "injected"}, status)
            elif path == "/graphql":
                self._reply(self._graphql(json.loads(data)))
            elif stream := re.fullmatch(r"/files/(?:[^/]+/)?([^/]+)/([^/]+)/file_stream", path):
                self._reply(self._file_stream(fake._find(stream[1], stream[2], make=True), json.loads(data)))
            elif self.command == "PUT" and path.startswith("/storage/"):
                project, name, file = path.split("/", 4)[2:]
                fake._find(project, name, make=True)["files"][file] = data
                self._reply({})
            else:
                self._reply({}, 404 if self.command == "GET" else 200)

    do_GET = do_POST = do_PUT = do_HEAD = _any

    def _graphql(self, request: dict[str, Any]) -> dict[str, Any]:
        named = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
        operation = request.get("operationName") or (named[1] if named else "")
        answer = getattr(self.server.fake, operation, None)
        try:
            return {"data": answer(request.get("variables") or {}) if answer else {}}
        except Exception as error:  # the client retries anything but this
            traceback.print_exc()
            return {"data": None, "errors": [{"message": f"fake_wandb: {operation}: {error!r}"}]}

    def _file_stream(self, run: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
        run["requests"] += 1
        for name, chunk in (request.get("files") or {}).items():
            lines, at = chunk["content"], chunk.get("offset", 0)
            if name == "wandb-summary.json":
                run["summary"] = json.loads(lines[-1])
            elif name == "output.log":
                run["output"][at : at + len(lines)] = lines
            elif name in ("wandb-history.jsonl", "wandb-events.jsonl"):
                rows = run["history" if "history" in name else "events"]
                rows[at : at + len(lines)] = [json.loads(line) for line in lines]
        if request.get("complete"):
            run["exitcode"] = request.get("exitcode")
            run["state"] = "finished" if run["exitcode"] == 0 else "failed"
        return {"limits": {}}
