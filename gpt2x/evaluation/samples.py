"""How good generated texts are: the same figures of texts that a model makes and of the real text in their place.

Pieces of a held-out split come in: the beginning of each is a prompt, and the rest is how the real text goes on. The model
goes on from the same beginnings, with any settings of sampling, for as many tokens. Plain numbers go out, each with the one
of the real text beside it, for none of them is better the higher, or the lower, it is: greedy text is likelier and says
less than people do, and text drawn at a high temperature the reverse (Holtzman et al., "The Curious Case of Neural Text
Degeneration", 2020). Intervals come from drawing the texts anew, or leaving out each in turn (intervals.py).

There is no single figure of the distance from real text. Those that are well founded, such as MAUVE (Pillutla et al., 2021),
compare texts as a large model that has read very much sees them, which this project does not have; one of words alone
would call texts the same that differ in everything else.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from gpt2x.config.option import ConfigError, show
from gpt2x.data.text import TextCorpus
from gpt2x.errors import UserError
from gpt2x.evaluation.intervals import jackknife, measured, ratio
from gpt2x.evaluation.output import table, writing
from gpt2x.evaluation.perplexity import token_losses
from gpt2x.files import write_atomic
from gpt2x.generation.beam import beam_search
from gpt2x.generation.config import SamplingConfig
from gpt2x.generation.controls import Controls
from gpt2x.generation.decoding import decode
from gpt2x.model.gpt import GPT
from gpt2x.tokenizer.base import Tokenizer, TokenizerError

MEASURES = {  # each figure, and its name in a table
    "known": "known words",
    "repeated": "repeated",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "copied": "copied",
    "perplexity": "perplexity",
    "judge_bpb": "judge's bpb",
    "words": "words",
}
_LABEL, _CELL = 27, 11  # characters, so that what runs print one after the other stands in the same columns
_REPEATED = 4  # words in a row: rep-4
_PIECE = 1 << 20  # tokens of the training text searched at once
_UNIT = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*|\d+|[^\w\s]|_")  # a word, a number, or a sign


class Samples:
    """The quality of the texts of `model`; see SamplesConfig for the settings.

    The model is ready to generate, `autocast()` is the context to compute in, and `load_judge(path)` gives the model and
    the tokenizer of another run.
    Raises ConfigError if a token that `sampling` names does not exist.
    """

    compact = True  # few lines are printed: those of several settings are to be compared

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        *,
        autocast: Callable[[], contextlib.AbstractContextManager],
        sampling: SamplingConfig,
        load_judge: Callable[[str], tuple[GPT, Tokenizer]],
        texts: int,
        prompt_tokens: int,
        seed: int,
        span: int,
        judge: str | None,
        batch_size: int,
        bootstrap: int,
        predictions: str | None,
    ):
        self.model, self.tokenizer, self.autocast = model, tokenizer, autocast
        self.sampling, self.controls = sampling, Controls.from_config(sampling, tokenizer)
        self.texts, self.prompt_tokens, self.seed, self.span = texts, prompt_tokens, seed, span
        self.batch_size, self.bootstrap, self.predictions = batch_size, bootstrap, predictions
        self.judge, self.judging = judge, None if judge is None else load_judge(judge)

    def evaluate(self, corpus: TextCorpus, split: str) -> dict[str, Any]:
        """The figures of the model's texts and of the real ones, with 95 % intervals; writes the texts where wanted.

        texts, prompt_tokens, seed, sampling, span, judge, bootstrap   the settings
        generated, real   of each of these a {"value", "low", "high"}, with None for what is not defined:

        known         share of the words that occur in the training text: spelling
        repeated      share of runs of four words that the same text has had before: rep-4 (Welleck et al., "Neural Text
                      Generation with Unlikelihood Training", 2020)
        distinct_1    different words of all texts by their number, and
        distinct_2    the same of pairs of words: variety (Li et al., "A Diversity-Promoting Objective Function for Neural
                      Conversation Models", 2016)
        copied        share of runs of `span` tokens that occur in the training text
        perplexity    of the text under the model itself, before any control of sampling
        judge_bpb     bits per byte of the text under the judge; only with one
        words         mean number of words in a text

        Words are runs of letters in any case, numbers and signs (known: those of letters alone), without the first and the
        last of a text where they are cut. Repetition and variety depend on how much text there is, so they are measured on
        equally many words of a text and its real counterpart.
        Raises ConfigError if the split has no room for so many texts, and UserError if the judge cannot read a text.
        """
        tokens = corpus.tokens(self.tokenizer)
        starts = self._starts(corpus.name, split, len(tokens[split]))
        length = self.prompt_tokens + self.sampling.max_new_tokens
        real_NT = np.stack([tokens[split][start : start + length] for start in starts]).astype(np.int64)
        made_NT = self._make(real_NT[:, : self.prompt_tokens])
        words = [self._words(rows_NT) for rows_NT in (made_NT, real_NT)]
        known = _known(corpus, {word for texts in words for text in texts for word in text})
        result = {}
        for name, rows_NT, texts, others in zip(("generated", "real"), (made_NT, real_NT), words, reversed(words)):
            sums = self._sums(rows_NT, texts, known, tokens["train"])
            fair = [text[: len(other)] for text, other in zip(texts, others)]
            result[name] = report(sums, fair, bootstrap=self.bootstrap)
        if self.predictions is not None:
            self._write(made_NT, real_NT)
        settings = ("texts", "prompt_tokens", "seed", "span", "judge", "bootstrap")
        about = {name: getattr(self, name) for name in settings} | {"sampling": asdict(self.sampling)}
        return {"evaluation": "samples"} | about | result

    def describe(self, result: dict[str, Any]) -> str:
        """What `evaluate` gave, as text to print: a line of the generated texts and one of the real ones."""
        shown = {"temperature", "top_k"}
        unset = asdict(SamplingConfig()) | {"max_new_tokens": result["sampling"]["max_new_tokens"]}
        given = [f"{k}={show(v)}" for k, v in result["sampling"].items() if k in shown or v != unset[k]]
        measures = [name for name in MEASURES if name in result["generated"]]
        head = f"{result['texts']} texts of {unset['max_new_tokens']} tokens"
        rows = [[head.ljust(_LABEL), *(MEASURES[name].rjust(_CELL) for name in measures)]]
        for label, system in ((" ".join(given), "generated"), ("real text", "real")):
            rows.append([label, *(_short(result[system][name]) for name in measures)])
        return table(rows)

    def _starts(self, name: str, split: str, n_tokens: int) -> np.ndarray:
        """Where each piece begins: as far apart as the split allows, at least so far that no two go on over the same text."""
        new = self.sampling.max_new_tokens
        spare = n_tokens - self.prompt_tokens - new
        room = 1 + spare // new if spare >= 0 else 0
        if self.texts > room:
            problem = f"the {n_tokens:,} tokens of split={split}, data={name}, have room for {room} that do not overlap"
            more = "fewer sampling.max_new_tokens, or split=train"
            raise ConfigError(
                "evaluation.texts", self.texts, problem, f"use at most {room}, {more}" if room > 1 else f"use {more}"
            )
        return np.arange(self.texts) * spare // (self.texts - 1)

    def _make(self, prompts_NP: np.ndarray) -> np.ndarray:
        """The prompts with what the model makes of them, (N, T): tokens as they are, for text might be cut into others."""
        from tqdm import tqdm

        prompts, new = prompts_NP.tolist(), self.sampling.max_new_tokens
        seeds = [int(np.random.SeedSequence([self.seed, i]).generate_state(1)[0]) for i in range(len(prompts))]
        options = {"controls": self.controls, "max_new_tokens": new}
        rows: list[list[int]] = []
        with tqdm(total=len(prompts), unit="text", desc="generating", disable=None) as bar:
            step = 1 if self.sampling.beams > 1 else self.batch_size
            for i in range(0, len(prompts), step):
                batch = prompts[i : i + step]
                with self.autocast():
                    if self.sampling.beams > 1:
                        beam = {"beams": self.sampling.beams, "length_penalty": self.sampling.length_penalty}
                        rows.append(batch[0] + beam_search(self.model, batch[0], **beam, **options)[0].tokens)
                    else:
                        *_, made = decode(self.model, batch, seed=seeds[i : i + step], **options)
                        rows += [row.tokens for row in made]  # they all end in the same step
                bar.update(len(batch))
        return np.array(rows)

    def _text(self, tokens: np.ndarray) -> str:
        return "\n\n".join(map(self.tokenizer.decode, _documents(tokens, self.tokenizer.end_of_text)))

    def _words(self, rows_NT: np.ndarray) -> list[list[str]]:
        """The words of each text after its prompt."""
        halves = [(self._text(row[: self.prompt_tokens]), self._text(row[self.prompt_tokens :])) for row in rows_NT]
        return [words(prompt + text, len(prompt)) for prompt, text in halves]

    def _sums(
        self, rows_NT: np.ndarray, texts: list[list[str]], known: set[str], train: np.ndarray
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Of each measure that is a ratio of two sums over texts, the parts (N,) and (N,) of each text."""
        N, new = len(rows_NT), self.sampling.max_new_tokens
        spelled = [[word for word in text if word[0].isalpha()] for text in texts]
        losses = token_losses(self.model, list(rows_NT), batch_size=self.batch_size, autocast=self.autocast)
        sums = {
            "known": (_each(spelled, lambda text: sum(map(known.__contains__, text))), _each(spelled, len)),
            "copied": (copied(rows_NT[:, self.prompt_tokens :], train, self.span), np.full(N, max(0, new - self.span + 1))),
            "perplexity": (_each(losses, lambda nats: nats[-new:].sum()), np.full(N, new)),
            "words": (_each(texts, len), np.ones(N)),
        }
        if self.judging is not None:
            sums["judge_bpb"] = self._judged(rows_NT)
        return sums

    def _judged(self, rows_NT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The bits (N,) that the judge needs for each text after its prompt, and the text's bytes (N,)."""
        judge, tokenizer = self.judging
        rows, begins = [], []
        for row in rows_NT:
            halves = []
            for half in (row[: self.prompt_tokens], row[self.prompt_tokens :]):
                try:
                    pieces = [tokenizer.encode(self.tokenizer.decode(p)) for p in _documents(half, self.tokenizer.end_of_text)]
                except TokenizerError as error:
                    raise UserError(f"evaluation.judge={self.judge}: cannot read what is generated: {error}") from None
                halves.append([token for piece in pieces for token in (*piece.tolist(), tokenizer.end_of_text)][:-1])
            prompt = halves[0] or [tokenizer.end_of_text]
            rows.append(np.array(prompt + halves[1]))
            begins.append(len(prompt))
        losses = token_losses(judge, rows, batch_size=self.batch_size)
        lengths = tokenizer.token_lengths()
        bits = [nats[begin - 1 :].sum() / math.log(2) for nats, begin in zip(losses, begins)]
        return np.array(bits), np.array([lengths[row[begin:]].sum() for row, begin in zip(rows, begins)])

    def _write(self, made_NT: np.ndarray, real_NT: np.ndarray) -> None:
        P = self.prompt_tokens
        lines = []
        for made, real in zip(made_NT, real_NT):
            texts = {"prompt": made[:P], "text": made[P:], "real": real[P:]}
            lines.append(json.dumps({name: self._text(tokens) for name, tokens in texts.items()}, ensure_ascii=False) + "\n")
        with writing("evaluation.predictions", self.predictions):
            write_atomic(self.predictions, "".join(lines))


def report(
    sums: dict[str, tuple[np.ndarray, np.ndarray]], texts: Sequence[Sequence[str]], *, bootstrap: int = 1000, seed: int = 1
) -> dict[str, dict[str, float | None]]:
    """The figures of N texts: {"value", "low", "high"} of each of MEASURES that there is, with intervals from `bootstrap`
    resamples of the texts, but for variety.

    `sums` holds the parts (N,) and (N,) of each figure that is a ratio of sums ("perplexity": nats and tokens, of whose
    ratio it is the exponential); `texts` are the words of each text, for the others.
    """
    found = {}
    for name, (parts, wholes) in (sums | {"repeated": repeats(texts)}).items():
        upper = math.inf if name in ("perplexity", "judge_bpb", "words") else 1.0
        found[name] = ratio(parts, wholes, samples=bootstrap, seed=seed, upper=upper)
    found["perplexity"] = exponential(found["perplexity"])
    for n in (1, 2):
        value, ends = variety([_ngrams(text, n) for text in texts])
        found[f"distinct_{n}"] = measured(value, *ends)
    return {name: found[name] for name in MEASURES if name in found}


def repeats(texts: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
    """The runs of four words in each text that it has had before, and all of its runs: (N,) and (N,)."""
    runs = [_ngrams(text, _REPEATED) for text in texts]
    return _each(runs, lambda text: len(text) - len(set(text))), _each(runs, len)


def exponential(nats: dict[str, float | None]) -> dict[str, float | None]:
    """The perplexity of a loss in nats, at most e ** 700: {"value", "low", "high"} of both."""
    return {end: None if value is None else math.exp(min(value, 700.0)) for end, value in nats.items()}


def variety(texts: Sequence[Sequence[Any]]) -> tuple[float, tuple[float, float] | tuple[None, None]]:
    """The number of different things in all texts by the number of things, NaN without any, and its 95 % interval.

    The jackknife's, not the bootstrap's: that draws some texts twice, which bring nothing new, and others not at all, which
    made the intervals of a simulation more than twice too wide.
    """
    owners = Counter(thing for text in texts for thing in set(text))
    own = _each(texts, lambda text: sum(owners[thing] == 1 for thing in set(text)))  # what no other text has
    lengths = _each(texts, len)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(np.float64(len(owners)) / lengths.sum())
        without = (len(owners) - own) / (lengths.sum() - lengths)
    return value, jackknife(value, without)


def words(text: str, start: int = 0) -> list[str]:
    """The words, numbers and signs of text[start:] in lower case, but for one that begins before it, and for the very last
    where nothing follows that would end it."""
    return [m[0].casefold() for m in _UNIT.finditer(text) if start <= m.start() and m.end() < len(text)]


def copied(texts_NT: np.ndarray, train: np.ndarray, span: int) -> np.ndarray:
    """How many of the runs of `span` tokens in each text (N, T) occur in the row of tokens `train`: (N,)."""
    if texts_NT.shape[1] < span:
        return np.zeros(len(texts_NT), dtype=int)
    factors = np.random.default_rng(0).integers(1 << 62, size=span, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    runs_NSn = _runs(texts_NT, span)
    wanted = np.unique(_hash(runs_NSn, factors))
    found = set()
    for start in range(0, len(train) - span + 1, _PIECE):
        runs_Sn = _runs(train[start : start + _PIECE + span - 1], span)
        hits = runs_Sn[np.isin(_hash(runs_Sn, factors), wanted)]
        found |= {run.tobytes() for run in hits.astype(np.int64)}  # whole runs, for a hash may be that of another
    return np.array([sum(run.tobytes() in found for run in runs) for runs in runs_NSn.astype(np.int64)])


def _runs(tokens: np.ndarray, span: int) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(tokens, span, axis=-1)


def _hash(runs: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """A number for each run of tokens (..., n), by which equal ones are found: (...), modulo 2 ** 64."""
    hashes = np.zeros(runs.shape[:-1], dtype=np.uint64)
    for i, factor in enumerate(factors):
        hashes += runs[..., i].astype(np.uint64) * factor
    return hashes


def _known(corpus: TextCorpus, candidates: set[str]) -> set[str]:
    """Those of the words that occur in the training text."""
    found: set[str] = set()
    for text in corpus.texts("train"):
        found |= candidates & {word.casefold() for word in _UNIT.findall(text)}
    return found


def _documents(tokens: np.ndarray, end_of_text: int) -> list[np.ndarray]:
    """A row of tokens cut at each end-of-text, without it."""
    first, *others = np.split(tokens, np.flatnonzero(tokens == end_of_text))
    return [first, *(piece[1:] for piece in others)]


def _ngrams(text: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(text[i:] for i in range(n))))


def _each(rows: Sequence, value: Callable[[Any], float]) -> np.ndarray:
    return np.array([value(row) for row in rows], dtype=float)


def _short(score: dict[str, float | None]) -> str:
    """A value with half the width of its interval: "0.912±0.019", "45.2±3.1"."""
    if score["value"] is None:
        return "-"
    places = 3 if score["value"] < 10 else 1
    half = "" if score["low"] is None else f"±{(score['high'] - score['low']) / 2:.{places}f}"
    return f"{score['value']:.{places}f}{half}"
