"""The loop that generates: token ids of prompts go in, tokens come out step by step, for all prompts at once.

One step feeds the model what it has not seen of each text (after the prompt: one token), reads the logits that follow
the last token, and lets `Controls` choose. Keys and values are kept in a KVCache, so no token is computed twice.
What a row of the batch gets does not depend on the other rows: it has its own positions, its own random numbers
(from the seed and the number of the sample) and its own end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from gpt2x.generation.controls import Controls, History
from gpt2x.model.cache import KVCache
from gpt2x.model.gpt import GPT


@dataclass(frozen=True)
class TokenLogprob:
    """The model's own log-probability (natural, before any control) of a chosen token, and of the likeliest ones."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


@dataclass(eq=False)
class Row:
    """One text being made: sample number `sample` of prompt number `prompt_index`.

    finish is None while it goes on, then "end_of_text" (which is not among the tokens), "length" (max_new_tokens are
    made), "context" (the model's context is full, with past_context="stop"), or what a consumer of `decode` sets it to.
    """

    prompt_index: int
    sample: int
    history: History
    random: np.random.Generator | None = None
    finish: str | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    start: int = 0  # of the tokens that the model looks at: the window begins here

    @property
    def tokens(self) -> list[int]:
        return self.history.prompt + self.history.new

    @property
    def last(self) -> int:
        return (self.history.new or self.history.prompt)[-1]

    @property
    def length(self) -> int:
        """Number of tokens in the window."""
        return len(self.history.prompt) + len(self.history.new) - self.start


@torch.inference_mode()
def decode(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    *,
    controls: Controls,
    max_new_tokens: int,
    seed: int | Sequence[int] = 0,
    samples: range = range(1),
    end_of_text: int | None = None,
    top_logprobs: int | None = None,
    cache: bool = True,
    past_context: str = "slide",
    prefill_chunk: int | None = None,
    lookup: int = 0,
) -> Iterator[list[Row]]:
    """Continue `prompts`, each of at least one token; yields after every step the rows that grew or ended. Whoever
    receives a row may set its `finish`, which ends it.

    seed            one for all prompts, or one for each
    samples         the numbers of the texts to make of each prompt, each with random numbers of its own
    end_of_text     ends a row; None: nothing does
    top_logprobs    record log-probabilities: of each chosen token, and of so many likeliest ones; None: none
    cache           keep keys and values; False computes every text anew for every token, with the same result
    past_context    when the model's context is full: "stop", or "slide": go on with the last half of it, computed anew
    prefill_chunk   tokens of the prompts that are computed at a time, which bounds memory; None: all
    lookup          guess up to so many next tokens from what followed the same two tokens earlier in the text, and keep
                    the guesses that come true (Saxena 2023, "prompt lookup decoding"). The text stays the same: each
                    token is chosen as it would be without, from the same logits and the same random number.
    """
    seeds = [seed] * len(prompts) if isinstance(seed, int) else seed
    rows = [
        Row(index, sample, History(list(prompt), []), np.random.default_rng([row_seed, sample]))
        for index, (prompt, row_seed) in enumerate(zip(prompts, seeds, strict=True))
        for sample in samples
    ]
    reader = Reader(model, cache=cache, past_context=past_context, prefill_chunk=prefill_chunk)
    logits_BTV = reader.start(rows, len(samples), max_new_tokens)
    guesses: list[list[int]] = [[] for _ in rows]
    while True:
        agreeing = list(range(len(rows)))  # those whose guesses have all come true so far
        for t in range(logits_BTV.shape[1]):
            logits_RV = logits_BTV[:, t] if len(agreeing) == len(rows) else logits_BTV[agreeing, t]
            _choose(logits_RV, [rows[b] for b in agreeing], controls, end_of_text, max_new_tokens, top_logprobs)
            agreeing = [b for b in agreeing if not rows[b].finish and guesses[b][t : t + 1] == rows[b].history.new[-1:]]
            if not agreeing:
                break
        for row in rows:
            if not row.finish and reader.stops(row):
                row.finish = "context"
        yield rows
        unfinished = [b for b, row in enumerate(rows) if not row.finish]
        if not unfinished:
            return
        if len(unfinished) < len(rows):
            rows = [rows[b] for b in unfinished]
            reader.keep(unfinished)
        if lookup:
            guesses = [_look_up(row.tokens, min(lookup, max_new_tokens - len(row.history.new) - 1)) for row in rows]
        else:
            guesses = [[] for _ in rows]
        logits_BTV = reader.read(rows, guesses)


def _choose(
    logits_BV: Tensor, rows: list[Row], controls: Controls, end_of_text: int | None, max_new_tokens: int, top: int | None
) -> None:
    """Give each row its next token."""
    tokens = controls.choose(logits_BV, [row.history for row in rows], [row.random.random() for row in rows])
    logprobs = _logprobs(logits_BV, tokens, top) if top is not None else None
    for b, (row, token) in enumerate(zip(rows, tokens, strict=True)):
        if token == end_of_text:
            row.finish = "end_of_text"
            continue
        row.history.new.append(token)
        if logprobs is not None:
            row.logprobs.append(logprobs[b])
        if len(row.history.new) == max_new_tokens:
            row.finish = "length"


def _logprobs(logits_BV: Tensor, tokens: list[int], top: int) -> list[TokenLogprob]:
    logprobs_BV = torch.log_softmax(logits_BV.double(), dim=-1)
    chosen = logprobs_BV[torch.arange(len(tokens)), tokens].tolist()
    values, ids = (x.tolist() for x in logprobs_BV.topk(min(top, logits_BV.shape[-1])))
    return [TokenLogprob(token, chosen[b], list(zip(ids[b], values[b]))) for b, token in enumerate(tokens)]


def _look_up(tokens: list[int], n: int) -> list[int]:
    """The up to `n` tokens that followed the last two tokens where they stood before, most recently."""
    if n < 1 or len(tokens) < 3:
        return []
    first, second = tokens[-2:]
    for i in range(len(tokens) - 3, -1, -1):
        if tokens[i] == first and tokens[i + 1] == second:
            return tokens[i + 2 : i + 2 + n]
    return []


class Reader:
    """The model and what it has seen of each row: feeds it the rest, returns the logits that are asked for."""

    def __init__(self, model: GPT, *, cache: bool, past_context: str, prefill_chunk: int | None):
        self.model, self.cached, self.past_context, self.chunk = model, cache, past_context, prefill_chunk
        self.cache: KVCache | None = None

    def stops(self, row: Row) -> bool:
        """Whether the context holds no more of the row, and the row is to end there."""
        return self.past_context == "stop" and row.length > self.model.context_length

    def start(self, rows: list[Row], samples: int, max_new_tokens: int) -> Tensor:
        """Logits (B, 1, V) that follow the prompts; the `samples` rows of each prompt are computed once.

        Raises ValueError for a prompt that is longer than the context, if past_context is "stop".
        """
        context = self.model.context_length
        if full := [row for row in rows if self.stops(row)]:
            raise ValueError(f"a prompt of {full[0].length} tokens does not fit the context of {context}")
        self.capacity = min(context, max(row.length for row in rows) + max_new_tokens)
        for row in rows:
            row.start = max(0, row.length - context)
        if not self.cached:
            return self.read(rows, [[] for _ in rows])
        windows = [row.tokens[row.start :] for row in rows[::samples]]
        self.cache = self.model.new_cache(len(windows), self.capacity)
        logits_BV = self.model.logits(self._fill(self.cache, windows))
        if samples > 1:
            repeated = [b // samples for b in range(len(rows))]
            self.cache.rows(repeated)
            logits_BV = logits_BV[repeated]
        return logits_BV[:, None]

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows alone."""
        if self.cache is not None:
            self.cache.rows(rows)

    def read(self, rows: list[Row], guesses: list[list[int]]) -> Tensor:
        """Logits (B, T, V) that follow the last token of each row and each of its guesses; T - 1 is the most guesses of a
        row, and what stands behind the guesses of another is of no meaning."""
        context = self.model.context_length
        for b, row in enumerate(rows):
            if row.length > context:
                row.start += row.length - max(1, context // 2)
                if self.cache is not None:
                    self._fill(self.cache.row(b), [row.tokens[row.start : -1]])
        room = self.capacity - max(row.length for row in rows)
        T = 1 + min(room, max(map(len, guesses)))
        if self.cache is not None:
            self.cache.lengths = [row.length - 1 for row in rows]  # all but the last token have been seen
            unseen = [[row.last, *guess[: T - 1]] for row, guess in zip(rows, guesses)]
            return self.model.logits(self.model.hidden(self._padded(unseen), self.cache))
        windows = [row.tokens[row.start :] + guess[: T - 1] for row, guess in zip(rows, guesses)]
        hidden_BLC = self.model.hidden(self._padded(windows))
        last = torch.tensor([row.length - 1 for row in rows], device=hidden_BLC.device)
        index_BT = (last[:, None] + torch.arange(T, device=last.device)).clamp(max=hidden_BLC.shape[1] - 1)
        return self.model.logits(hidden_BLC[torch.arange(len(rows), device=last.device)[:, None], index_BT])

    def _fill(self, cache: KVCache, windows: list[list[int]]) -> Tensor | None:
        """Compute `windows` into an empty cache; returns the states (B, C) of the last token of each."""
        lengths = [len(window) for window in windows]
        tokens_BT = self._padded(windows)
        states: list[Tensor | None] = [None] * len(windows)
        chunk = self.chunk or max(lengths)
        for start in range(0, max(lengths), chunk or 1):
            hidden_BTC = self.model.hidden(tokens_BT[:, start : start + chunk], cache)
            for b, length in enumerate(lengths):
                if start < length <= start + chunk:
                    states[b] = hidden_BTC[b, length - 1 - start]
        cache.lengths = lengths  # shorter rows are padded at their end, which no token before it sees
        return torch.stack(states) if all(lengths) else None

    def _padded(self, windows: list[list[int]]) -> Tensor:
        longest = max(map(len, windows))
        padded = [window + [0] * (longest - len(window)) for window in windows]
        return torch.tensor(padded, device=self.model.wte.weight.device)
