"""Asking a judge: questions go in, an outcome of each comes out, whatever the server does.

Several are asked at the same time; what fails is asked again; every verdict is kept as soon as it is there, and is not asked
for twice (cache.py). The functions at the end are what the judge group's settings are handed to.
"""

from __future__ import annotations

import logging
import os
import queue
import random
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2x.errors import UserError
from gpt2x.evaluation.judge.cache import Cache
from gpt2x.evaluation.judge.questions import Book, Question, Rubric, Unusable, Verdict
from gpt2x.evaluation.judge.servers import Ollama, OpenAICompatible, Rejected, Transient

log = logging.getLogger(__name__)

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds before the first retry, which double with each, where the server asks for no others."""
GIVE_UP = 5
"""Questions in a row that the server fails to answer, after which it is taken for gone."""


@dataclass(frozen=True)
class Outcome:
    """What came of a question.

    verdict    None: there is none, and `error` says why
    raw        the reply's text; None where there was none
    latency_s  seconds that the last request took
    attempts   requests that were made; 0 where none was needed
    seed       that of the last one
    cached     it is of an earlier run, and so are the latency and the attempts
    gone       the server did not answer
    """

    verdict: Verdict | None
    raw: str | None
    error: str | None
    latency_s: float
    attempts: int
    seed: int
    cached: bool = False
    gone: bool = False

    @property
    def row(self) -> dict[str, Any]:
        """What a record tells of it beside the verdict."""
        names = ("raw", "error", "latency_s", "attempts", "seed", "cached")
        return {name: getattr(self, name) for name in names}


class Judge:
    """A judge: a `server` (servers.py), and `asking`, which makes questions for it (questions.py).

    `kind` is the choice of the judge group, `cache` the folder of kept replies.
    """

    def __init__(
        self,
        server: Ollama | OpenAICompatible,
        asking: Rubric | Book,
        *,
        kind: str,
        seed: int,
        temperature: float,
        retry_temperature: float,
        retries: int,
        concurrency: int,
        cache: Path,
        final: bool = False,
    ):
        """With `final`, a reply that is no verdict is a result like any other: it is kept, and not asked for again."""
        self.server, self.asking, self.kind, self.seed, self.final = server, asking, kind, seed, final
        self.temperature, self.retry_temperature = temperature, retry_temperature
        self.retries, self.concurrency = retries, concurrency
        decisive = {"seed": seed, "temperature": temperature, "retry_temperature": retry_temperature, "final": final}
        self.cache = Cache(cache, server.identity | decisive)
        self.version = ""

    @property
    def name(self) -> str:
        """The judge, as records name it: "ollama/llama3.2"; of a model that is called by the path of its file, the file."""
        model = self.server.model or ""
        return f"{self.kind}/{Path(model).name if os.path.isabs(model) else model}"

    def judge(self, questions: Sequence[Question], trial: Question) -> Iterator[tuple[int, Outcome]]:
        """The number of each question with its outcome, as they come.

        Before any is asked the judge is tried with the question `trial`; nothing is asked where all verdicts are kept.
        Raises UserError where no question can be answered, at once or any more.
        """
        kept = {i: found for i, question in enumerate(questions) if (found := self._kept(question)) is not None}
        versions = {version for version, _ in kept.values() if version is not None}
        missing = len(kept) < len(questions)
        try:
            self.version = self.server.version()
        except UserError:
            if missing or len(versions) > 1 or self.server.model is None:
                raise
            if versions:
                log.warning("the judge's server does not answer; all verdicts are there from earlier")
        else:  # a model that has changed since judges anew
            kept = {i: found for i, found in kept.items() if found[0] in (None, self.version)}
        yield from ((i, outcome) for i, (_, outcome) in kept.items())
        todo = [i for i in range(len(questions)) if i not in kept]
        if todo:
            self._try(trial)
            yield from self._ask_all(questions, todo)

    def _try(self, trial: Question) -> None:
        """Ask a question of which any verdict will do. Raises UserError where there is none."""
        outcome = self._ask(trial, threading.Event())
        if outcome.verdict is None:
            said = f"\n  It replied: {outcome.raw[:300]!r}" if outcome.raw else ""
            raise UserError(f"the judge {self.name} gives no verdict on a trial question: {outcome.error}{said}")

    def _ask_all(self, questions: Sequence[Question], todo: Sequence[int]) -> Iterator[tuple[int, Outcome]]:
        """Threads that nobody waits for at the end: a request may take minutes, and whoever presses Ctrl-C means now."""
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[int, Outcome | BaseException]] = queue.SimpleQueue()
        stop, unanswered = threading.Event(), 0
        for i in todo:
            waiting.put(i)

        def work() -> None:
            while not stop.is_set():
                try:
                    i = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    done.put((i, self._ask(questions[i], stop, keep=True)))
                except BaseException as error:
                    done.put((i, error))

        try:
            for _ in range(min(self.concurrency, len(todo))):
                threading.Thread(target=work, daemon=True, name="judge").start()
            for _ in todo:
                i, outcome = done.get()
                if isinstance(outcome, BaseException):
                    raise outcome
                unanswered = unanswered + 1 if outcome.gone else 0
                if unanswered == GIVE_UP:
                    raise UserError(f"the judge's server has stopped answering: {outcome.error}")
                yield i, outcome
        finally:
            stop.set()

    def _ask(self, question: Question, stop: threading.Event, keep: bool = False) -> Outcome:
        """Ask until there is a verdict, a reason to give up, or no try is left; with `keep`, remember it for other runs."""
        temperature = self.temperature
        for attempt in range(self.retries + 1):
            seed, started = self.seed + attempt, time.perf_counter()
            raw, again, gone, wait = None, True, False, 0.0
            try:
                raw = self.server.ask(question.messages, question.schema, seed=seed, temperature=temperature)
                verdict, error = question.read(raw), None
            except Unusable as problem:
                verdict, error, again = None, str(problem), not self.final
                temperature = max(self.temperature, self.retry_temperature)
            except Rejected as problem:
                verdict, error, again = None, str(problem), False
            except Transient as problem:
                verdict, error, gone, wait = None, str(problem), True, _wait(attempt, problem.wait)
            latency = round(time.perf_counter() - started, 3)
            outcome = Outcome(verdict, raw, error, latency, attempt + 1, seed, gone=gone)
            if verdict is not None or not again or attempt == self.retries or stop.wait(wait):
                break
        if keep and (verdict is not None or (self.final and raw is not None)):
            self._keep(question, outcome)
        return outcome

    def _keep(self, question: Question, outcome: Outcome) -> None:
        kept = {"raw": outcome.raw, "latency_s": outcome.latency_s, "attempts": outcome.attempts, "seed": outcome.seed}
        self.cache.put(question.messages, question.schema, kept | {"version": self.version})

    def _kept(self, question: Question) -> tuple[str | None, Outcome] | None:
        """An outcome that needs no judge, with the version of the model that it is of; None where one must be asked."""
        if question.known is not None:
            return None, Outcome(question.known, None, None, 0.0, 0, self.seed)
        kept = self.cache.get(question.messages, question.schema)
        try:
            raw, version = str(kept["raw"]), str(kept["version"])
            made = (float(kept["latency_s"]), int(kept["attempts"]), int(kept["seed"]))
        except (KeyError, TypeError, ValueError):  # nothing was kept, or by somebody else
            return None
        try:
            return version, Outcome(question.read(raw), raw, None, *made, cached=True)
        except Unusable as problem:
            return (version, Outcome(None, raw, str(problem), *made, cached=True)) if self.final else None


def _wait(attempt: int, asked: float | None) -> float:
    """Seconds before the next try, never the same for two that failed together."""
    if asked is not None:
        return asked * random.uniform(1.0, 1.1)
    return min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * random.uniform(0.5, 1.0)


def ollama(
    *,
    model: str,
    url: str | None,
    num_ctx: int,
    keep_alive: str,
    scale: str,
    rubric: str | None,
    reference: bool,
    max_tokens: int,
    timeout: float,
    cache: Path,
    **asking: Any,
) -> Judge:
    """The judge of OllamaConfig."""
    options = {"num_ctx": num_ctx, "num_predict": max_tokens}
    server = Ollama(model, url, timeout, options, keep_alive=keep_alive, truncate=False)
    asked = Rubric(scale=scale, rubric=rubric, reference=reference)
    return Judge(server, asked, kind="ollama", cache=cache, **asking)


def openai_compatible(
    *,
    model: str | None,
    url: str,
    api_key_env: str | None,
    body: dict[str, Any],
    scale: str,
    rubric: str | None,
    reference: bool,
    max_tokens: int,
    timeout: float,
    cache: Path,
    **asking: Any,
) -> Judge:
    """The judge of OpenAICompatibleConfig."""
    key = None if api_key_env is None else os.environ.get(api_key_env, "").strip()
    if key is not None and not (key.isascii() and key.isprintable() and key):  # told here, without it
        raise UserError(
            f"judge.api_key_env={api_key_env}: that variable holds no key, which is of ASCII characters on one line"
        )
    server = OpenAICompatible(model, url, timeout, max_tokens, body, key)
    asked = Rubric(scale=scale, rubric=rubric, reference=reference)
    return Judge(server, asked, kind="openai_compatible", cache=cache, **asking)


def book(*, model: str, url: str | None, timeout: float, retries: int, concurrency: int, cache: Path) -> Judge:
    """The judge of BookConfig."""
    server = Ollama(model, url, timeout, {"num_ctx": 2048})
    settings = {"seed": 123, "temperature": 0.0, "retry_temperature": 0.0}
    return Judge(server, Book(), kind="book", **settings, retries=retries, concurrency=concurrency, cache=cache, final=True)
