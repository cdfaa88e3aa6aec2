"""Both protocols against a server that misbehaves in every way we know of: what is said, and what is asked again."""

from __future__ import annotations

import http.server
import json
import socket
import threading
import time
from email.utils import formatdate

import pytest
from scripted_judge import Raw, ollama_stream, openai_reply, scripted_judge, verdict

from gpt2x.errors import UserError
from gpt2x.evaluation.judge.questions import Unusable
from gpt2x.evaluation.judge.servers import Ollama, OpenAICompatible, Rejected, Transient, ollama_address

MESSAGES = [{"role": "user", "content": "How good is this?"}]
KINDS = ["ollama", "openai_compatible"]


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    monkeypatch.delenv("OLLAMA_HOST", raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # which a server on this machine is not behind


def client(kind: str, url: str, *, timeout: float = 10.0, **changes):
    if kind == "ollama":
        return Ollama(changes.get("model", "llama3.2"), url, timeout, {"num_ctx": 512}, keep_alive="1m", truncate=False)
    settings = {"model": "llama3.2:latest", "max_tokens": 50, "body": {}, "key": None} | changes
    return OpenAICompatible(url=f"{url}/v1", timeout=timeout, **settings)


def ask(kind: str, url: str, schema=None, **changes) -> str:
    return client(kind, url, **changes).ask(MESSAGES, schema, seed=7, temperature=0.25)


def reply(kind: str, text: str, **changes) -> bytes:
    return ollama_stream(text, **changes) if kind == "ollama" else openai_reply(text, **changes)


# -- what is sent ------------------------------------------------------------------------------------------------------


def test_ollama_is_told_the_schema_and_all_settings():
    with scripted_judge() as judge:
        assert ask("ollama", judge.url, {"type": "object"}) == verdict()
    assert judge.asked == [
        {
            "model": "llama3.2",
            "messages": MESSAGES,
            "stream": True,
            "options": {"num_ctx": 512, "seed": 7, "temperature": 0.25},
            "keep_alive": "1m",
            "truncate": False,
            "format": {"type": "object"},
        }
    ]


def test_an_openai_compatible_server_is_told_the_schema_and_all_settings():
    with scripted_judge() as judge:
        assert ask("openai_compatible", judge.url, {"type": "object"}) == verdict()
        ask("openai_compatible", judge.url, body={"max_tokens": None, "max_completion_tokens": 9, "top_k": 1})
    form = {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": {"type": "object"}}}
    common = {"model": "llama3.2:latest", "messages": MESSAGES, "seed": 7, "temperature": 0.25}
    assert judge.asked[0] == common | {"max_tokens": 50, "response_format": form}
    assert judge.asked[1] == common | {"max_completion_tokens": 9, "top_k": 1}
    assert not any("Authorization" in headers for headers in judge.headers)


def test_a_key_is_sent_and_goes_nowhere_else():
    """Neither into what identifies the judge, which is hashed for the cache, nor after a redirection."""
    with (
        scripted_judge() as elsewhere,
        scripted_judge(lambda n, body: Raw(302, headers={"Location": f"{elsewhere.url}/"})) as judge,
    ):
        hosted = client("openai_compatible", judge.url, key="sk-secret")
        hosted.version()
        with pytest.raises(UserError, match="HTTP status 302"):
            hosted.ask(MESSAGES, None, seed=1, temperature=0)
    assert [headers["Authorization"] for headers in judge.headers] == ["Bearer sk-secret"] * 2
    assert (elsewhere.asked, elsewhere.headers) == ([], [])
    assert "secret" not in str(hosted.identity)


def test_a_server_that_repeats_the_key_is_not_repeated():
    said = b'{"error": {"message": "Incorrect API key provided: sk-secret"}}'
    with scripted_judge(lambda n, body: Raw(401, said)) as judge, pytest.raises(UserError) as error:
        ask("openai_compatible", judge.url, key="sk-secret")
    assert "HTTP status 401: Incorrect API key provided: ...\n" in str(error.value)


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("", "http://127.0.0.1:11434"),
        ("box", "http://box:11434"),
        ("box:8000", "http://box:8000"),
        (":8000", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:1", "http://127.0.0.1:1"),
        ("http://box", "http://box:80"),
        ("https://box/", "https://box:443"),
        ("https://box:1/ollama/", "https://box:1/ollama"),
        ("[::1]:5", "http://[::1]:5"),
        ("[::]", "http://[::1]:11434"),
    ],
)
def test_where_ollama_is(host, address):
    assert ollama_address(host) == address


def test_ollama_is_where_the_environment_says_unless_a_setting_does(monkeypatch):
    monkeypatch.setenv("OLLAMA_HOST", "box:1")
    assert client("ollama", "").url == "http://box:1"
    assert client("ollama", "other").url == "http://other:11434"
    with pytest.raises(UserError, match="judge.url=box:port: this is no address"):
        ollama_address("box:port")


# -- which model -------------------------------------------------------------------------------------------------------


def test_a_model_is_known_by_what_its_server_says_of_it():
    with scripted_judge() as judge:
        assert client("ollama", judge.url).version() == "digest-1"
        hosted = client("openai_compatible", judge.url, model=None)
        version = hosted.version()
        assert hosted.model == "llama3.2:latest"
        assert hosted.version() == version
        judge.models["llama3.2:latest"] = "digest-2"
        assert client("ollama", judge.url).version() == "digest-2"
        assert hosted.version() != version


def test_what_a_server_says_of_the_moment_tells_no_models_apart(monkeypatch):
    """vLLM gives each list of models a permission with a random id; llama.cpp's router tells what is loaded."""
    moment = iter(range(100))

    def models(*args) -> dict:
        now = next(moment)
        told = {"created": now, "permission": [{"id": f"modelperm-{now}", "created": now}], "status": {"value": str(now)}}
        return {"object": "list", "data": [{"id": "m", "root": root, "owned_by": "vllm"} | told]}

    monkeypatch.setattr("gpt2x.evaluation.judge.servers._checked", models)
    hosted, root = client("openai_compatible", "http://h/v1", model="m"), "m-7b"
    version = hosted.version()
    assert hosted.version() == version
    root = "m-8b"
    assert hosted.version() != version


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("ollama", {"model": "phi"}, "judge.model=phi: Ollama has no such model; it has a:latest, b/c:1\n  ollama pull phi"),
        ("ollama", {"model": "b/c"}, "judge.model=b/c: Ollama has no such model"),
        ("openai_compatible", {"model": "phi"}, "has no such model; it has a:latest, b/c:1"),
        ("openai_compatible", {"model": None}, "does not have one model but these: a:latest, b/c:1\n  name one"),
    ],
)
def test_a_model_that_is_not_there_is_named_with_what_is(kind, changes, message):
    with scripted_judge(models={"a:latest": "1", "b/c:1": "2"}) as judge, pytest.raises(UserError) as error:
        client(kind, judge.url, **changes).version()
    assert message in str(error.value)


def test_not_every_server_lists_its_models():
    with scripted_judge() as judge:
        bare = OpenAICompatible("phi", f"{judge.url}/other", 5, 50, {}, None)
        assert bare.version() == ""
        with pytest.raises(UserError, match="HTTP status 404"):
            OpenAICompatible(None, f"{judge.url}/other", 5, 50, {}, None).version()


@pytest.mark.parametrize("kind", KINDS)
def test_no_server(kind):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    remedy = {"ollama": "start it with `ollama serve`", "openai_compatible": "is it up, and is that its address?"}[kind]
    with pytest.raises(UserError) as error:
        client(kind, url).version()
    assert f"the judge's server does not answer at {url}" in str(error.value)
    assert "refused" in str(error.value)
    assert remedy in str(error.value)
    with pytest.raises(Transient, match="the connection failed: .*refused"):
        ask(kind, url)


def test_what_is_no_address_is_said():
    with pytest.raises(UserError, match="does not answer at http://no such host"):
        OpenAICompatible(None, "http://no such host", 5, 50, {}, None).version()


# -- what goes wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (400, Rejected, "HTTP status 400: it is too long"),
        (422, Rejected, "HTTP status 422"),
        (429, Transient, "HTTP status 429"),
        (500, Transient, "HTTP status 500: it is too long"),
        (503, Transient, "HTTP status 503"),
        (401, UserError, "HTTP status 401: it is too long\n  judge.api_key_env=NAME names the variable"),
        (404, UserError, "HTTP status 404: it is too long\n  are judge.url and judge.model right?"),
    ],
)
@pytest.mark.parametrize("form", [lambda text: {"error": text}, lambda text: {"error": {"message": text, "code": 1}}])
def test_what_a_status_means(kind, status, error, message, form):
    said = Raw(status, json.dumps(form("it is\x1b[31m\n too long")).encode())
    with scripted_judge(lambda n, body: said) as judge, pytest.raises(error) as raised:
        ask(kind, judge.url)
    assert message in str(raised.value).replace("it is [31m too", "it is too")
    assert "\x1b" not in str(raised.value)


@pytest.mark.parametrize("body", [b"", b"<html>busy</html>", b"\xff\xfe", b"[" * 10_000, b'{"other": 1}'])
def test_an_error_without_a_message_of_a_known_form_is_told_as_it_is(body):
    with scripted_judge(lambda n, b: Raw(500, body)) as judge, pytest.raises(Transient, match="HTTP status 500") as raised:
        ask("ollama", judge.url)
    assert len(str(raised.value)) < 400


def test_how_long_the_server_asks_to_be_left_alone():
    def wait(value: str | None) -> float | None:
        headers = {} if value is None else {"Retry-After": value}
        with scripted_judge(lambda n, body: Raw(429, b"{}", headers)) as judge, pytest.raises(Transient) as raised:
            ask("ollama", judge.url)
        return raised.value.wait

    assert [wait(value) for value in (None, "3", "0.5", "-1", "soon", "nan", "1e9")] == [None, 3, 0.5, 0, None, None, 120]
    assert 28 < wait(formatdate(time.time() + 30, usegmt=True)) <= 30


@pytest.mark.parametrize("kind", KINDS)
def test_a_reply_that_is_cut_off(kind):
    whole = reply(kind, verdict())
    with scripted_judge(lambda n, body: Raw(200, whole[:-20], cut=True)) as judge, pytest.raises(Transient, match="cut off"):
        ask(kind, judge.url)


def test_a_stream_that_ends_in_order_but_too_early():
    with (
        scripted_judge(lambda n, body: Raw(200, ollama_stream(verdict(), done=False))) as judge,
        pytest.raises(Transient, match="the reply was cut off"),
    ):
        ask("ollama", judge.url)


def test_an_error_in_the_middle_of_a_stream_that_began_well():
    lines = ollama_stream(verdict(), done=False) + b'{"error": "llama runner process has terminated"}\n'
    with (
        scripted_judge(lambda n, body: Raw(200, lines)) as judge,
        pytest.raises(Transient, match="the server broke off: llama runner process has terminated"),
    ):
        ask("ollama", judge.url)


@pytest.mark.parametrize("kind", KINDS)
def test_a_reply_that_ran_out_of_tokens(kind):
    with (
        scripted_judge(lambda n, body: Raw(200, reply(kind, verdict(), reason="length"))) as judge,
        pytest.raises(Unusable, match="did not come to its end: it needs more judge.max_tokens"),
    ):
        ask(kind, judge.url)


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_hangs_is_left_after_the_timeout(kind):
    started = time.monotonic()
    with scripted_judge(lambda n, body: Raw(200, b"", seconds=5)) as judge, pytest.raises(Transient, match=r"within 0.3 s"):
        ask(kind, judge.url, timeout=0.3)
    assert time.monotonic() - started < 4


def test_a_server_that_trickles_is_left_after_the_timeout():
    """Each byte comes in time, the whole never."""

    class Trickle(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            for _ in range(100):
                try:
                    self.wfile.write(b" ")
                    time.sleep(0.05)
                except OSError:
                    return

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Trickle)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        with pytest.raises(Transient, match=r"no whole reply within 0.3 s"):
            ask("ollama", f"http://127.0.0.1:{server.server_address[1]}", timeout=0.3)
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "body", [b"", b"nonsense", b"[1]", b"\xff", b'{"message": 3}', b'{"choices": []}', b'{"choices": [3]}']
)
def test_what_is_no_answer_of_the_protocol(kind, body):
    with scripted_judge(lambda n, b: Raw(200, body)) as judge, pytest.raises(Transient):
        ask(kind, judge.url)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_of_another_type(kind):
    line = {"message": {"content": ["x"]}, "done": True}
    body = json.dumps(line if kind == "ollama" else {"choices": [line]}).encode()
    with scripted_judge(lambda n, b: Raw(200, body)) as judge, pytest.raises(Transient, match="holds no text but"):
        ask(kind, judge.url)


@pytest.mark.parametrize("kind", KINDS)
def test_half_characters_are_replaced(kind):
    with scripted_judge(lambda n, body: "a\ud83db") as judge:
        assert ask(kind, judge.url) == "a?b"
