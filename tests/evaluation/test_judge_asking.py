"""Asking a judge: what is asked again, what is kept, and what is never asked twice."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_judge import Raw, ScriptedJudge, ollama_stream, scripted_judge, verdict

from gpt2x.config.instantiate import instantiate
from gpt2x.errors import UserError
from gpt2x.evaluation.judge import judging
from gpt2x.evaluation.judge.answers import Answer
from gpt2x.evaluation.judge.config import BookConfig, OllamaConfig, OpenAICompatibleConfig
from gpt2x.evaluation.judge.judging import GIVE_UP, Judge, Outcome
from gpt2x.evaluation.judge.questions import TRIAL

ANSWERS = [Answer(i, f"Say {i}.", "", str(i), f"It is {i}.") for i in range(8)]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(judging, "FIRST_WAIT", 0.001)


def make(server: ScriptedJudge, cache: Path, config=None, **changes) -> Judge:
    config = config or OllamaConfig(**({"url": server.url, "timeout": 10} | changes))
    return instantiate(config, cache=cache)


def ask(judge: Judge, answers=ANSWERS) -> list[Outcome]:
    questions = [judge.asking.absolute(answer) for answer in answers]
    outcomes = dict(judge.judge(questions, judge.asking.absolute(TRIAL)))
    assert sorted(outcomes) == list(range(len(answers)))
    return [outcomes[i] for i in range(len(answers))]


def number(body: dict) -> int | None:
    """Which of ANSWERS a question is about; None of a trial."""
    return next((a.id for a in ANSWERS if f"<answer>\n{a.answer}\n" in body["messages"][-1]["content"]), None)


def scores(outcomes) -> list[int | None]:
    return [outcome.verdict and outcome.verdict["score"] for outcome in outcomes]


def honest(n: int, body: dict) -> str:
    return verdict(50 if number(body) is None else number(body))


# -- verdicts ----------------------------------------------------------------------------------------------------------


def test_every_answer_gets_its_own_verdict(tmp_path):
    with scripted_judge(honest) as server:
        outcomes = ask(make(server, tmp_path, concurrency=4))
    assert scores(outcomes) == list(range(8))
    for outcome in outcomes:
        assert (outcome.error, outcome.attempts, outcome.seed, outcome.cached) == (None, 1, 1, False)
        assert outcome.raw == verdict(outcome.verdict["score"])
        assert 0 < outcome.latency_s < 10
    assert len(server.asked) == 9  # with one trial
    assert number(server.asked[0]) is None


def test_as_many_are_under_way_as_is_said_and_no_more(tmp_path):
    barrier = threading.Barrier(3)

    def three_at_once(n: int, body: dict) -> str:
        if n:
            barrier.wait(timeout=20)  # only goes on when three are there
        return honest(n, body)

    with scripted_judge(three_at_once) as server:
        assert scores(ask(make(server, tmp_path, concurrency=3), ANSWERS[:6])) == list(range(6))
        assert server.most == 3


def test_empty_answers_are_not_asked_about(tmp_path):
    with scripted_judge(honest) as server:
        (outcome,) = ask(make(server, tmp_path), [Answer(1, "Say 1.", "", "1", " ")])
    assert (outcome.verdict["score"], outcome.raw, outcome.attempts, outcome.error) == (0, None, 0, None)
    assert server.asked == []


# -- what is asked again -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        "nonsense",
        verdict("high"),
        verdict(101),
        '{"score": 3}',
        Raw(200, ollama_stream(verdict(), reason="length")),
        Raw(200, ollama_stream(verdict(), done=False)),
        Raw(200, ollama_stream("x", done=False) + b'{"error": "out of memory"}\n'),
        Raw(200, ollama_stream(verdict())[:-5], cut=True),
        Raw(429, b"{}", {"Retry-After": "0"}),
        Raw(500, b'{"error": "broken"}'),
        Raw(200, b"<html>"),
        Raw(200, b"", seconds=1.5),
    ],
    ids=lambda bad: bad if isinstance(bad, str) else f"{bad.status} {bad.body[-20:]!r} {bad.seconds}",
)
def test_a_failure_is_asked_again_with_another_seed(tmp_path, bad):
    script = {1: bad, 2: bad}
    with scripted_judge(lambda n, body: script.get(n, verdict(n))) as server:
        (outcome,) = ask(make(server, tmp_path, timeout=0.5, seed=10), ANSWERS[:1])
    assert (outcome.verdict["score"], outcome.attempts, outcome.seed, outcome.error) == (3, 3, 12, None)
    asked = [body["options"] for body in server.asked[1:]]
    assert [options["seed"] for options in asked] == [10, 11, 12]
    useless = isinstance(bad, str) or b"length" in bad.body
    assert [options["temperature"] for options in asked] == [0, 0.5, 0.5] if useless else [0, 0, 0]


def test_the_temperature_of_another_try_is_never_lower(tmp_path):
    script = {1: "nonsense"}
    with scripted_judge(lambda n, body: script.get(n, verdict())) as server:
        ask(make(server, tmp_path, temperature=0.9, retry_temperature=0.2), ANSWERS[:1])
    assert [body["options"]["temperature"] for body in server.asked[1:]] == [0.9, 0.9]


@pytest.mark.parametrize(
    ("bad", "attempts", "raw", "message"),
    [
        ("nonsense", 3, "nonsense", "the reply is no JSON: 'nonsense'"),
        (verdict(101), 3, verdict(101), "the score is '101', not from 0 to 100"),
        (Raw(500, b'{"error": "broken"}'), 3, None, "HTTP status 500: broken"),
        (Raw(400, b'{"error": "it exceeds the available context size"}'), 1, None, "HTTP status 400: it exceeds"),
    ],
)
def test_what_fails_for_good_is_told_and_the_others_are_judged(tmp_path, bad, attempts, raw, message):
    with scripted_judge(lambda n, body: bad if number(body) == 1 else honest(n, body)) as server:
        judge = make(server, tmp_path, retries=2)
        outcomes = ask(judge, ANSWERS[:3])
        assert scores(outcomes) == [0, None, 2]
        assert (outcomes[1].attempts, outcomes[1].raw, outcomes[1].seed) == (attempts, raw, attempts)
        assert outcomes[1].error.startswith(message)
        server.script = lambda n, body: verdict(77)
        again = ask(judge, ANSWERS[:3])  # only what failed is asked again
    assert scores(again) == [0, 77, 2]
    assert [outcome.cached for outcome in again] == [True, False, True]


def test_waits_grow_and_are_never_the_same(monkeypatch):
    monkeypatch.setattr(judging, "FIRST_WAIT", 0.5)
    for attempt in range(12):
        longest = min(30, 0.5 * 2**attempt)
        waits = {judging._wait(attempt, None) for _ in range(20)}
        assert len(waits) == 20
        assert longest / 2 <= min(waits) <= max(waits) <= longest
    waits = {judging._wait(0, 10.0) for _ in range(20)}
    assert 10 <= min(waits) <= max(waits) <= 11


def test_a_wait_that_the_server_asks_for_is_kept(tmp_path):
    script = {1: Raw(429, b"{}", {"Retry-After": "0.4"})}
    with scripted_judge(lambda n, body: script.get(n, verdict())) as server:
        started = time.monotonic()
        ask(make(server, tmp_path), ANSWERS[:1])
    assert time.monotonic() - started >= 0.4


# -- what ends everything ----------------------------------------------------------------------------------------------


def test_nothing_is_asked_of_a_judge_that_gives_no_verdict_on_a_trial(tmp_path):
    with scripted_judge(lambda n, body: "Sure! I would say 8 of 10.") as server, pytest.raises(UserError) as error:
        ask(make(server, tmp_path, retries=1))
    assert "ollama/llama3.2 gives no verdict on a trial question: the reply is no JSON" in str(error.value)
    assert "It replied: 'Sure! I would say 8 of 10.'" in str(error.value)
    assert len(server.asked) == 2


@pytest.mark.parametrize("status", [401, 404])
def test_what_would_refuse_every_question_ends_it_at_once(tmp_path, status):
    script = {3: Raw(status, b'{"error": "model \'llama3.2\' not found"}')}
    with scripted_judge(lambda n, body: script.get(n, honest(n, body))) as server:
        with pytest.raises(UserError, match="not found"):
            ask(make(server, tmp_path, concurrency=1))
        assert len(server.asked) == 4
        server.script = honest
        assert [outcome.cached for outcome in ask(make(server, tmp_path))] == [True, True] + [False] * 6


def test_a_server_that_is_gone_is_not_asked_for_ever(tmp_path):
    gone = Raw(503, b"{}")
    with scripted_judge(lambda n, body: gone if n > 2 else honest(n, body)) as server:
        with pytest.raises(UserError, match="the judge's server has stopped answering: HTTP status 503"):
            ask(make(server, tmp_path, retries=0, concurrency=1))
        assert len(server.asked) == 3 + GIVE_UP
        assert len(list(tmp_path.rglob("*.json"))) == 2


def test_a_fault_of_ours_is_not_swallowed_in_a_thread(tmp_path, monkeypatch):
    with scripted_judge(honest) as server:
        judge = make(server, tmp_path)
        monkeypatch.setattr(judge.cache, "put", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ask(judge)


# -- the cache ---------------------------------------------------------------------------------------------------------


def test_nothing_is_asked_twice(tmp_path):
    with scripted_judge(honest) as server:
        first = ask(make(server, tmp_path))
        again = ask(make(server, tmp_path, timeout=99, retries=7, concurrency=1, keep_alive="1h"))
    assert len(server.asked) == 9
    assert scores(again) == scores(first)
    assert all(outcome.cached for outcome in again)
    assert [(o.raw, o.seed, o.attempts, o.latency_s) for o in again] == [
        (o.raw, o.seed, o.attempts, o.latency_s) for o in first
    ]


def test_what_is_kept_needs_no_server(tmp_path, caplog):
    with scripted_judge(honest) as server:
        ask(make(server, tmp_path), ANSWERS[:3])
    assert scores(ask(make(server, tmp_path), ANSWERS[:3])) == [0, 1, 2]
    assert "the judge's server does not answer; all verdicts are there from earlier" in caplog.text
    with pytest.raises(UserError, match="the judge's server does not answer"):
        ask(make(server, tmp_path), ANSWERS[:4])


CHANGES = {
    "rubric": "100: it rhymes",
    "scale": "1-5",
    "reference": False,
    "model": "other",
    "temperature": 0.1,
    "retry_temperature": 0.9,
    "seed": 2,
    "max_tokens": 99,
    "num_ctx": 999,
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_question_or_another_judge_is_asked_anew(tmp_path, name):
    with scripted_judge(lambda n, body: verdict(3), models={"llama3.2:latest": "1", "other:latest": "1"}) as server:
        ask(make(server, tmp_path), ANSWERS[:1])
        before = len(server.real)
        ask(make(server, tmp_path, **{name: CHANGES[name]}), ANSWERS[:1])
        assert len(server.real) == before + 1
        ask(make(server, tmp_path), ANSWERS[:1])  # and the first one is still there
        assert len(server.real) == before + 1


def test_another_kind_of_judge_of_the_same_model_is_asked_anew(tmp_path):
    with scripted_judge(lambda n, body: "80" if body["messages"][0]["role"] == "user" else verdict()) as server:
        configs = [
            OllamaConfig(url=server.url),
            BookConfig(url=server.url),
            OpenAICompatibleConfig(url=f"{server.url}/v1", model="llama3.2:latest"),
            OpenAICompatibleConfig(url=f"{server.url}/v1", model="llama3.2:latest", body={"top_k": 1}),
        ]
        for n, config in enumerate(configs, start=1):
            (outcome,) = ask(make(server, tmp_path, config), ANSWERS[:1])
            assert (outcome.verdict["score"], outcome.cached, len(server.real)) == (80, False, n)


def test_a_model_that_was_replaced_under_its_name_judges_anew(tmp_path):
    with scripted_judge(honest) as server:
        ask(make(server, tmp_path), ANSWERS[:2])
        server.models["llama3.2:latest"] = "digest-2"
        server.script = lambda n, body: verdict(99)
        assert scores(ask(make(server, tmp_path), ANSWERS[:2])) == [99, 99]
        server.script = honest
        ask(make(server, tmp_path), ANSWERS[2:3])
        server.models["llama3.2:latest"] = "digest-3"
        ask(make(server, tmp_path), ANSWERS[:1])
    with pytest.raises(UserError, match="does not answer"):  # kept ones are of two models, and nobody can say which is there
        ask(make(server, tmp_path), ANSWERS[:3])


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}", '{"raw": 3}', "\x00" * 9])
def test_a_damaged_file_is_asked_anew(tmp_path, damage):
    with scripted_judge(honest) as server:
        ask(make(server, tmp_path), ANSWERS[:1])
        (kept,) = tmp_path.rglob("*.json")
        whole = kept.read_text()
        kept.write_text(damage)
        assert scores(ask(make(server, tmp_path), ANSWERS[:1])) == [0]
        assert len(server.real) == 2
        assert json.loads(kept.read_text())["raw"] == json.loads(whole)["raw"]


def test_a_kept_reply_that_is_no_verdict_is_asked_anew(tmp_path):
    with scripted_judge(honest) as server:
        ask(make(server, tmp_path), ANSWERS[:1])
        (kept,) = tmp_path.rglob("*.json")
        kept.write_text(json.dumps(json.loads(kept.read_text()) | {"raw": verdict(500)}))
        assert scores(ask(make(server, tmp_path), ANSWERS[:1])) == [0]


def test_two_at_once_share_what_is_kept(tmp_path):
    results = {}

    def work(name: int) -> None:
        results[name] = scores(ask(make(server, tmp_path, concurrency=3)))

    with scripted_judge(honest) as server:
        threads = [threading.Thread(target=work, args=(name,)) for name in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert list(results.values()) == [list(range(8))] * 3
    assert len(list(tmp_path.rglob("*.json"))) == 8
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".json"]


@settings(max_examples=15)
@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), min_size=2, max_size=4, unique=True))
def test_no_two_questions_share_a_file(texts):
    with scripted_judge() as server:
        judge = make(server, Path("nowhere"))
        questions = [judge.asking.absolute(Answer(1, a, b, "r", "x")) for a, b in texts]
        assert len({judge.cache.path(q.messages, q.schema) for q in questions}) == len({str(q.messages) for q in questions})


def test_what_is_kept_of_a_model_without_a_name_needs_the_server_that_names_it(tmp_path):
    with scripted_judge() as server:
        config = OpenAICompatibleConfig(url=f"{server.url}/v1", timeout=10)
        judge = make(server, tmp_path, config)
        ask(judge, ANSWERS[:1])
        assert judge.name == "openai_compatible/llama3.2:latest"
        server.models = {"phi": "1"}  # another one is served there now
        (outcome,) = ask(make(server, tmp_path, config), ANSWERS[:1])
        assert not outcome.cached
    with pytest.raises(UserError, match="does not answer"):
        ask(make(server, tmp_path, config), ANSWERS[:1])


@pytest.mark.parametrize("key", ["", " ", "sk-secret…", "sk-secret\nsecond line"])
def test_a_key_that_cannot_be_sent_is_refused_without_being_shown(tmp_path, monkeypatch, key):
    monkeypatch.setenv("MY_KEY", key)
    with pytest.raises(UserError, match=r"judge.api_key_env=MY_KEY: that variable holds no key") as error:
        instantiate(OpenAICompatibleConfig(api_key_env="MY_KEY"), cache=tmp_path)
    assert "secret" not in str(error.value)


# -- the book's judge --------------------------------------------------------------------------------------------------


def test_the_books_judge_asks_once_and_keeps_what_is_no_number(tmp_path):
    said = {0: "85", 1: "Score: 20", 2: "20"}
    with scripted_judge(
        lambda n, body: "100" if n == 0 else said["012".index(body["messages"][0]["content"].split("Say ")[1][0])]
    ) as server:
        judge = make(server, tmp_path, BookConfig(url=server.url))
        outcomes = ask(judge, ANSWERS[:3])
        again = ask(make(server, tmp_path, BookConfig(url=server.url)), ANSWERS[:3])
    assert scores(outcomes) == scores(again) == [85, None, 20]
    assert outcomes[1].error == again[1].error == "the reply is no whole number: 'Score: 20'"
    assert (outcomes[1].attempts, again[1].cached, again[1].raw) == (1, True, "Score: 20")
    assert len(server.asked) == 4
    for body in server.asked:
        assert body["options"] == {"num_ctx": 2048, "seed": 123, "temperature": 0.0}
        assert body.keys() == {"model", "messages", "stream", "options"}


def test_the_books_judge_asks_again_where_the_server_fails(tmp_path):
    script = {1: Raw(500, b"{}")}
    with scripted_judge(lambda n, body: script.get(n, "85")) as server:
        (outcome,) = ask(make(server, tmp_path, BookConfig(url=server.url)), ANSWERS[:1])
    assert (outcome.verdict["score"], outcome.attempts) == (85, 2)
