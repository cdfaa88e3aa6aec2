"""The servers that run a judge: chat messages and a schema go in, the text of the reply comes out.

What goes wrong is told apart by what can be done about it: `Transient` (ask again, later), `Unusable` (ask again, with
another seed), `Rejected` (this question cannot be answered, others can), and UserError (no question can be answered).
"""

from __future__ import annotations

import email.utils
import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

from gpt2x.errors import UserError
from gpt2x.evaluation.judge.questions import Unusable, whole

_CHUNK = 1 << 16
LONGEST_WAIT = 120.0
"""Seconds that a server may ask to be left alone for (Retry-After); a longer time is taken for this one."""


class Transient(Exception):
    """The server failed, and may not the next time; `wait` are the seconds it asks for, None where it does not."""

    def __init__(self, message: str, wait: float | None = None):
        super().__init__(message)
        self.wait = wait


class Rejected(Exception):
    """The server will not answer this question, such as one that is too long."""


class NotFound(UserError):
    """There is nothing at this address."""


class Ollama:
    """Ollama's own protocol. `options` are those of the model: temperature and seed are given with each question."""

    def __init__(self, model: str, url: str | None, timeout: float, options: dict[str, Any], **fields: Any):
        """`fields` are those of a request that decide nothing about a whole reply: keep_alive, truncate."""
        self.model, self.timeout, self.options, self.fields = model, timeout, options, fields
        self.url = ollama_address(url or os.environ.get("OLLAMA_HOST") or "")
        self.identity = {"server": "ollama", "model": model, "options": options}  # wherever it runs

    def version(self) -> str:
        """What tells this model from another one of its name: the digest that Ollama has of it.

        Raises UserError where the server is not up, or has no such model.
        """
        start = "start it with `ollama serve`, or say where it is: judge.url=..., or OLLAMA_HOST in the environment"
        reply = _checked(f"{self.url}/api/tags", self.timeout, start)
        models = {entry["name"]: entry.get("digest", "") for entry in _entries(reply, "models", "name")}
        name = self.model if ":" in self.model.rpartition("/")[2] else f"{self.model}:latest"
        if name not in models:
            have = f"it has {', '.join(sorted(models)[:10])}" if models else "it has none"
            raise UserError(f"judge.model={self.model}: Ollama has no such model; {have}\n  ollama pull {self.model}")
        return models[name]

    def ask(self, messages: list[dict], schema: dict | None, *, seed: int, temperature: float) -> str:
        """The reply's text. Raises what this module's first lines say."""
        options = self.options | {"seed": seed, "temperature": temperature}
        body = {"model": self.model, "messages": messages, "stream": True, "options": options} | self.fields
        if schema is not None:
            body["format"] = schema
        pieces, last = [], {}
        for line in _lines(f"{self.url}/api/chat", self.timeout, body):
            last = _object(line)
            if "error" in last:  # after it has begun well, with status 200
                raise Transient(f"the server broke off: {plain(last['error'])}")
            pieces.append(_text(last.get("message"), "content"))
            if last.get("done"):
                break
        if not last.get("done"):
            raise Transient("the reply was cut off")
        if last.get("done_reason") == "length":
            raise Unusable("the reply did not come to its end: it needs more judge.max_tokens, or a larger judge.num_ctx")
        return whole("".join(pieces))


# What servers tell of a model that stays the same while it does; others add times, states, and ids of the question itself.
_LASTING = ("id", "root", "parent", "owned_by", "digest", "meta", "max_model_len")


class OpenAICompatible:
    """OpenAI's chat protocol. `key` is the API key, None: none is sent; `body` changes fields of each request."""

    def __init__(self, model: str | None, url: str, timeout: float, max_tokens: int, body: dict[str, Any], key: str | None):
        self.model, self.url, self.timeout = model, url.rstrip("/"), timeout
        self.max_tokens, self.changes = max_tokens, body
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self.identity = {"server": self.url, "model": model, "max_tokens": max_tokens, "body": body}

    def version(self) -> str:
        """What the server says of its model, and tells it from another one of its name. A model that is not named is found.

        Raises UserError where the server is not up, or has no such model, or several to choose from.
        """
        start = "is it up, and is that its address? it is set by judge.url=..."
        try:
            reply = _checked(f"{self.url}/models", self.timeout, start, self._headers)
        except NotFound:
            if self.model is None:
                raise
            return ""  # not every server lists its models
        models = {entry["id"]: entry for entry in _entries(reply, "data", "id")}
        if self.model is None and len(models) != 1:
            have = ", ".join(sorted(models)[:10]) or "none"
            raise UserError(f"judge.model=null: the server {self.url} does not have one model but these: {have}\n  name one")
        self.model = self.model or next(iter(models))
        if self.model not in models:
            have = ", ".join(sorted(models)[:10]) or "none"
            raise UserError(f"judge.model={self.model}: the server {self.url} has no such model; it has {have}")
        return json.dumps({key: value for key, value in models[self.model].items() if key in _LASTING}, sort_keys=True)

    def ask(self, messages: list[dict], schema: dict | None, *, seed: int, temperature: float) -> str:
        """The reply's text. Raises what this module's first lines say."""
        body = {"model": self.model, "messages": messages, "seed": seed, "temperature": temperature}
        body["max_tokens"] = self.max_tokens
        if schema is not None:
            form = {"name": "verdict", "strict": True, "schema": schema}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        body = {name: value for name, value in (body | self.changes).items() if value is not None}
        reply = _object(b"".join(_lines(f"{self.url}/chat/completions", self.timeout, body, self._headers)))
        choices = reply.get("choices")
        if not (isinstance(choices, list) and choices and isinstance(choices[0], dict)):
            raise Transient(f"the server's answer is none of a chat: {plain(reply)}")
        if choices[0].get("finish_reason") == "length":
            raise Unusable("the reply did not come to its end: it needs more judge.max_tokens, or a longer context")
        return whole(_text(choices[0].get("message"), "content"))


def ollama_address(host: str) -> str:
    """The address that an OLLAMA_HOST stands for: "", "host", ":port", "host:port", with a scheme or without."""
    scheme, _, rest = host.strip().rpartition("://")
    parts = urllib.parse.urlsplit(f"//{rest}")
    try:
        port = parts.port or {"http": 80, "https": 443}.get(scheme, 11434)
    except ValueError:
        raise UserError(f"judge.url={host}: this is no address, such as http://127.0.0.1:11434") from None
    name = parts.hostname or "127.0.0.1"
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(name, name)  # where a server listens is not where it is
    name = f"[{name}]" if ":" in name else name
    return f"{scheme or 'http'}://{name}:{port}{parts.path.rstrip('/')}"


def plain(value: Any) -> str:
    """What a server said, as short text without line ends or control characters."""
    if isinstance(value, dict):  # {"error": {"message": ...}} or {"error": ...}
        value = value.get("error", value)
        value = value.get("message", value) if isinstance(value, dict) else value
    text = value if isinstance(value, str) else json.dumps(value)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= 300 else text[:297] + "..."


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A key, and what is judged, go to the address that was given and to no other."""

    def redirect_request(self, *args: Any) -> None:
        return None


def _lines(url: str, timeout: float, body: dict | None = None, headers: dict[str, str] | None = None) -> Iterator[bytes]:
    """The lines of the answer to a POST of `body`, or a GET without one, as they come; all within `timeout` seconds."""
    handlers: list[Any] = [_NoRedirect()]
    if urllib.parse.urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1"):
        handlers.append(urllib.request.ProxyHandler({}))  # a proxy's own 127.0.0.1 is another
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "User-Agent": "gpt2x"} | (headers or {})
    end = time.monotonic() + timeout
    try:
        request = urllib.request.Request(url, data, headers)
        with urllib.request.build_opener(*handlers).open(request, timeout=timeout) as answer:
            begun = b""
            while chunk := answer.read1(_CHUNK):
                *whole, begun = (begun + chunk).split(b"\n")
                yield from whole
                if time.monotonic() > end:
                    raise TimeoutError
            if answer.length:
                raise http.client.IncompleteRead(b"", answer.length)
            if begun:
                yield begun
    except urllib.error.HTTPError as error:
        with error:
            _refuse(error, url, headers.get("Authorization", "").removeprefix("Bearer "))
    except TimeoutError:
        raise Transient(f"no whole reply within {timeout:g} s (judge.timeout)") from None
    except http.client.IncompleteRead:
        raise Transient("the reply was cut off") from None
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: the url is none
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            raise Transient(f"no connection within {timeout:g} s (judge.timeout)") from None
        raise Transient(f"the connection failed: {plain(str(reason)) or type(reason).__name__}") from None


def _refuse(error: urllib.error.HTTPError, url: str, secret: str) -> None:
    """Raise what an HTTP error stands for, without the `secret` that its text may repeat."""
    try:
        said = error.read(10_000)
    except (OSError, http.client.HTTPException):
        said = b""
    said = said.replace(secret.encode(), b"...") if secret else said
    try:
        text = plain(json.loads(said))
    except (ValueError, RecursionError):
        text = plain(said.decode("utf-8", "replace"))
    what = f"HTTP status {error.code}" + (f": {text}" if text else "")
    if error.code in (408, 409, 425, 429) or error.code >= 500:
        raise Transient(what, _retry_after(error.headers.get("Retry-After")))
    if error.code in (400, 413, 422):
        raise Rejected(what)
    if error.code == 404:
        raise NotFound(f"{url}: {what}\n  are judge.url and judge.model right?")
    key = "\n  judge.api_key_env=NAME names the variable that holds the key; is it the right one?"
    raise UserError(f"{url}: {what}{key if error.code in (401, 403) else ''}")


def _retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, given in seconds or as a date."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(seconds, 0.0), LONGEST_WAIT) if seconds == seconds else None


def _checked(url: str, timeout: float, remedy: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
    """The object that a GET gives, or UserError with the remedy."""
    try:
        return _object(b"".join(_lines(url, min(timeout, 30.0), headers=headers)))
    except (Transient, Rejected) as error:
        raise UserError(f"the judge's server does not answer at {url}: {error}\n  {remedy}") from None


def _entries(reply: dict[str, Any], key: str, name: str) -> list[dict[str, Any]]:
    """The objects of a list of models, each with its name."""
    entries = reply.get(key)
    return [e for e in entries if isinstance(e, dict) and isinstance(e.get(name), str)] if isinstance(entries, list) else []


def _object(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise Transient(f"the server's answer is no JSON: {plain(text[:300].decode('utf-8', 'replace'))}") from None
    if not isinstance(found, dict):
        raise Transient(f"the server's answer is no object: {plain(found)}")
    return found


def _text(message: Any, name: str) -> str:
    """A message's text; none of it is "", in the first and the last of a stream."""
    text = message.get(name) if isinstance(message, dict) else None
    if text is not None and not isinstance(text, str):
        raise Transient(f"the server's answer holds no text but {plain(text)}")
    return text or ""
