"""Ollama's protocol in front of a llama.cpp server, as Ollama itself is: it runs that server and translates."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from llama import ask

MODEL = "llama3.2:latest"
_OPTIONS = {"num_predict": "max_tokens", "temperature": "temperature", "seed": "seed", "top_k": "top_k", "top_p": "top_p"}


@contextlib.contextmanager
def ollama_shim(llama: str, model: str = MODEL) -> Iterator[str]:
    """Ollama's address, with one `model`: the one that llama.cpp's server at the address `llama` has."""

    class Shim(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            about = {"name": model, "model": model, "digest": "0123456789ab", "size": 1}
            known = {"/api/tags": {"models": [about]}, "/api/version": {"version": "0.0.0"}}
            self.reply(200, known[self.path]) if self.path in known else self.reply(404, {"error": "not found"})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if body["model"] not in (model, model.removesuffix(":latest")):
                self.reply(404, {"error": f"model '{body['model']}' not found"})
            elif self.path == "/api/show":
                self.reply(200, {"details": {"family": "gpt2"}, "model_info": {}, "capabilities": ["completion"]})
            else:
                self.chat(body)

        def chat(self, body: dict) -> None:
            question = {"messages": body["messages"]}
            question |= {_OPTIONS[name]: v for name, v in (body.get("options") or {}).items() if name in _OPTIONS}
            if body.get("format"):
                question["response_format"] = {"type": "json_schema", "json_schema": {"name": "x", "schema": body["format"]}}
            try:
                choice = ask(llama, "/v1/chat/completions", question)["choices"][0]
            except OSError as error:
                said = json.loads(error.__notes__[0])["error"]
                return self.reply(said["code"], {"error": said["message"]})
            text, reason = choice["message"]["content"], choice["finish_reason"]
            last = {"model": model, "done": True, "done_reason": reason, "eval_count": len(text)}
            if not body.get("stream", True):
                return self.reply(200, last | {"message": {"role": "assistant", "content": text}})
            pieces = [{"role": "assistant", "content": text[i : i + 4]} for i in range(0, len(text), 4)]
            lines = [{"model": model, "done": False, "message": piece} for piece in pieces]
            lines.append(last | {"message": {"role": "assistant", "content": ""}})
            self.send_response(200)
            self.send_header("Content-Type", "application/x-ndjson")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for line in [*(json.dumps(line).encode() + b"\n" for line in lines), b""]:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))

        def reply(self, status: int, answer: dict) -> None:
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Shim)
    server.daemon_threads = True
    Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
