"""Settings of evaluation=judge, and of the judge group: each class of it is one way to ask a judge."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any, ClassVar

from gpt2x.config.option import ConfigError, option

SCALES = {"0-100": (0, 100), "1-5": (1, 5)}  # the lowest and the highest score


@dataclass(kw_only=True)
class JudgementConfig:
    """How good a model's answers are in the eyes of another language model, the judge."""

    choice: ClassVar[str] = "judge"
    data_kind: ClassVar[str] = "instructions"
    _target_: str = "gpt2x.evaluation.judge.evaluation.Judgement"
    mode: str | None = option(
        None,
        "absolute: each answer gets a score; pairwise: of two answers the better one is named, asked in both orders; null: "
        "pairwise with against=, else absolute",
        choices=(None, "absolute", "pairwise"),
    )
    max_examples: int | None = option(None, "judge only the first so many answers; null: all", minimum=1)
    max_new_tokens: int = option(256, "tokens of a run's answer at most", minimum=1)
    temperature: float = option(0.0, "of a run's answers: 0 takes the likeliest token (greedy), else they are drawn", minimum=0)
    seed: int = option(1, "the same seed draws the same answers", minimum=0, maximum=2**32 - 1)
    batch_size: int = option(8, "answers that a run makes at the same time; they do not depend on it", minimum=1)
    answer_field: str | None = option(
        None, "key of the answer in each object of answers=; null: model_response, answer or text", verbatim=True
    )
    against_field: str | None = option(
        None, "the same in against=, which may be the same file; null: model_response, answer or text", verbatim=True
    )
    on_failure: str = option(
        "exclude",
        "an answer without a verdict is left out, has the lowest score (of a pair: is lost), or is an error; it is told anyhow",
        choices=("exclude", "lowest", "raise"),
    )
    bootstrap: int = option(10_000, "times that the answers are drawn anew for the intervals; 0: no intervals", minimum=0)
    folder: str | None = option(
        None,
        "folder for the answers (answers.jsonl), what was said of each (items.jsonl) and a plot (judged.png); null: a new one "
        "in paths.outputs/judged",
        verbatim=True,
    )

    def check_available(self) -> None:
        if self.folder is not None and os.path.isfile(self.folder):
            raise ConfigError("folder", self.folder, "is a file, and a folder is wanted")


@dataclass(kw_only=True)
class JudgedConfig:
    """What answers that are judged already show: those of one run or file, or of two beside each other."""

    choice: ClassVar[str] = "judged"
    data_kind: ClassVar[str] = "instructions"
    _target_: str = "gpt2x.evaluation.judge.comparison.Judged"
    on_failure: str = option(
        "exclude",
        "an answer without a verdict is left out, has the lowest score (of a pair: is lost), or is an error; it is told anyhow",
        choices=("exclude", "lowest", "raise"),
    )
    bootstrap: int = option(10_000, "times that the answers are drawn anew for the intervals; 0: no intervals", minimum=0)
    plot: str | None = option(None, "a PNG file for the distribution of scores, or of verdicts; null: none", verbatim=True)

    def check_available(self) -> None:
        if self.plot is not None and os.path.isdir(self.plot):
            raise ConfigError("plot", self.plot, "is a folder", "name a file in it")


@dataclass(kw_only=True)
class AskingConfig:
    """What every judge needs."""

    timeout: float = option(120.0, "seconds to wait for one reply, the loading of the judge's model included", above=0)
    retries: int = option(
        3,
        "times that a request is sent again, after growing waits, when the server fails or the reply is no verdict",
        minimum=0,
    )
    concurrency: int = option(2, "requests under way at the same time", minimum=1, maximum=256)


@dataclass(kw_only=True)
class RubricConfig(AskingConfig):
    """What every judge needs that gives its reason and its verdict as JSON."""

    scale: str = option("0-100", "of the scores", choices=tuple(SCALES))
    rubric: str | None = option(
        None, "what the scores stand for, or what makes the better answer, in words; null: a general one", verbatim=True
    )
    reference: bool = option(True, "the judge is shown the reference, where there is one")
    temperature: float = option(0.0, "of the judge", minimum=0, maximum=2)
    retry_temperature: float = option(
        0.5, "at least this one is used after a reply that was no verdict, as a new seed alone changes nothing at 0", minimum=0
    )
    seed: int = option(1, "of the judge; each further try has the next one", minimum=0, maximum=2**31 - 1)
    max_tokens: int = option(512, "tokens of a reply at most", minimum=16)

    def check(self) -> None:
        if self.rubric is not None and not self.rubric.strip():
            raise ConfigError("rubric", self.rubric, "expected words; null takes a general one")


@dataclass(kw_only=True)
class OllamaConfig(RubricConfig):
    """A model that Ollama serves; the reply is held to a JSON schema."""

    choice: ClassVar[str] = "ollama"
    _target_: str = "gpt2x.evaluation.judge.judging.ollama"
    model: str = option("llama3.2", "the model, as `ollama list` names it")
    url: str | None = option(None, "of the server; null: OLLAMA_HOST in the environment, else http://127.0.0.1:11434")
    num_ctx: int = option(4096, "the judge's context in tokens; what does not fit is an error, never cut silently", minimum=256)
    keep_alive: str = option("5m", "how long Ollama keeps the model in memory afterwards")

    def check(self) -> None:
        super().check()
        _check_url(self.url)


@dataclass(kw_only=True)
class OpenAICompatibleConfig(RubricConfig):
    """A model behind OpenAI's chat protocol: llama.cpp's server, vLLM, LM Studio, or a hosted one."""

    choice: ClassVar[str] = "openai_compatible"
    _target_: str = "gpt2x.evaluation.judge.judging.openai_compatible"
    url: str = option("http://127.0.0.1:8080/v1", "of the server, to the part that /chat/completions follows")
    model: str | None = option(None, "the model's name; null: the only one that the server has")
    api_key_env: str | None = option(
        None, "the environment variable that holds the key, which is written nowhere; null: no key is sent"
    )
    body: dict[str, Any] = option(
        {}, "more fields of each request, or others in place of those sent; null leaves one out: {max_tokens: null}"
    )

    def check(self) -> None:
        super().check()
        _check_url(self.url)
        if self.api_key_env is not None and not re.fullmatch(r"[A-Za-z_]\w*", self.api_key_env):
            problem = "this is no name of an environment variable"  # it may be the key itself: not shown again
            raise ConfigError("api_key_env", "...", problem, "export OPENAI_API_KEY=..., and judge.api_key_env=OPENAI_API_KEY")
        if fixed := {"messages", "stream"} & set(self.body):
            raise ConfigError("body", self.body, f"{min(fixed)} is gpt2x's own", "leave it out")

    def check_available(self) -> None:
        if self.api_key_env is not None and not os.environ.get(self.api_key_env):
            problem = "there is no such variable in the environment, or it is empty"
            raise ConfigError("api_key_env", self.api_key_env, problem, f"export {self.api_key_env}=...")


@dataclass(kw_only=True)
class BookConfig(AskingConfig):
    """The book's judge, to compare with its numbers: its prompt, its settings, and a reply that must be a bare number."""

    choice: ClassVar[str] = "book"
    _target_: str = "gpt2x.evaluation.judge.judging.book"
    model: str = option("llama3.2", "the model, as `ollama list` names it; the book's own scores are of llama3")
    url: str | None = option(None, "of the server; null: OLLAMA_HOST in the environment, else http://127.0.0.1:11434")

    def check(self) -> None:
        _check_url(self.url)


def _check_url(url: str | None) -> None:
    if url is not None and re.search(r"//[^/]*@", url):
        problem = "holds a name or a password, and settings are written down"
        raise ConfigError("url", re.sub(r"//[^/]*@", "//...@", url), problem, "use judge.api_key_env for a key")
    if url is not None and ("://" in url) and not re.match(r"https?://[^/]", url):
        raise ConfigError("url", url, "expected http://HOST:PORT or https://HOST")
