"""From the model's logits to the next token: every control that a user has over the choice.

First come the rules, pure functions on logits; then `Controls`, which applies those that are on in a fixed order,
that of the `transformers` library with OpenAI's two penalties put in:

    bias -> repetition -> presence, frequency -> no repeated n-gram, banned tokens, minimum length     (adjust)
    -> temperature -> top-k -> top-p -> min-p -> typical-p -> draw                                     (choose)

A rule takes float logits (..., V), each row by itself, and returns logits of the same shape; its input stays as it
was. A token is excluded by the logit -inf. What the rules know of the text so far is a History.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from gpt2x.config.option import ConfigError
from gpt2x.errors import UserError
from gpt2x.generation.config import SamplingConfig
from gpt2x.tokenizer.base import END_OF_TEXT, Tokenizer, TokenizerError

# -- before the temperature: rules on single tokens -------------------------------------------------------------


def add_bias(logits: Tensor, biases: Mapping[int, float]) -> Tensor:
    """Add a number to the logits of some tokens (id -> number): e^number times the odds; OpenAI's `logit_bias`."""
    ids = _indices(biases, logits)
    return _with(logits, ids, logits[..., ids] + logits.new_tensor(list(biases.values())))


def ban(logits: Tensor, ids: Collection[int]) -> Tensor:
    """Exclude the tokens `ids`."""
    return _with(logits, _indices(ids, logits), float("-inf"))


def penalize_repetition(logits: Tensor, tokens: Iterable[int], penalty: float) -> Tensor:
    """Make the tokens that are in `tokens` less likely, however often they are (Keskar et al., 2019, "CTRL").

    A positive logit is divided by `penalty` and a negative one multiplied, so that both fall where it is above 1.
    The paper divides both, which would raise a negative one; this is what all implementations do instead.
    """
    ids = _indices(set(tokens), logits)
    values = logits[..., ids]
    return _with(logits, ids, torch.where(values > 0, values / penalty, values * penalty))


def penalize_presence(logits: Tensor, tokens: Iterable[int], penalty: float) -> Tensor:
    """Take `penalty` from the logit of each token that is in `tokens`, however often; OpenAI's `presence_penalty`."""
    ids = _indices(set(tokens), logits)
    return _with(logits, ids, logits[..., ids] - penalty)


def penalize_frequency(logits: Tensor, tokens: Iterable[int], penalty: float) -> Tensor:
    """Take `penalty` from the logit of a token once for each time it is in `tokens`; OpenAI's `frequency_penalty`."""
    counts = Counter(tokens)
    ids = _indices(counts, logits)
    return _with(logits, ids, logits[..., ids] - penalty * logits.new_tensor(list(counts.values())))


def repeated_ngrams(tokens: list[int], n: int) -> set[int]:
    """The ids that, put after `tokens`, would complete an n-gram that is in `tokens` already (Paulus et al., 2017).

    n = 1 are all ids that are there. No ids where `tokens` is shorter than n.
    """
    start = tokens[len(tokens) - n + 1 :]
    return {tokens[i + n - 1] for i in range(len(tokens) - n + 1) if tokens[i : i + n - 1] == start}


# -- the temperature, and the truncations: which tokens stay in the draw -------------------------------------------


def scale(logits: Tensor, temperature: float) -> Tensor:
    """Divide by `temperature` (above 0), in float64; the largest logit of a row becomes 0.

    What is subtracted for that changes no probability, and keeps a tiny temperature from making infinities.
    """
    logits = logits.double()
    return (logits - logits.amax(-1, keepdim=True)) / temperature


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k largest logits: exactly k, of equal ones those with the lower id (Fan et al., 2018)."""
    if k >= logits.shape[-1]:
        return logits
    return _keep(logits, _largest(logits, logits.topk(k).values[..., -1:], k))


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the smallest set of likeliest tokens whose probability reaches p (Holtzman et al., 2019: nucleus sampling).

    Of equally likely ones those with the lower id. One token at least; p = 1 keeps all. Logits on the CPU.
    """
    if p >= 1:
        return logits
    chances = probabilities(logits.detach())
    ordered = torch.from_numpy(np.sort(chances.numpy())).flip(-1)  # fifteen times as fast as torch's sort of a long row
    below = (ordered.cumsum(-1) < p).sum(-1, keepdim=True)  # whole prefixes that do not reach p
    last = below.clamp(max=logits.shape[-1] - 1)
    return _keep(logits, _largest(chances, ordered.gather(-1, last), last + 1))


def keep_min_p(logits: Tensor, min_p: float) -> Tensor:
    """Keep the tokens that are at least `min_p` (0 to 1) times as likely as the likeliest (Nguyen et al., 2024)."""
    odds = scale(logits, 1).exp()
    return _keep(logits, odds >= min_p)


def keep_typical(logits: Tensor, p: float) -> Tensor:
    """Keep the tokens whose information content is nearest to the expected one (Meister et al., 2022).

    In the order of |-log probability - entropy| as many as it takes for their probability to reach p; of equally near
    ones those with the lower id. One token at least; p = 1 keeps all. The likeliest token may fall. Logits on the CPU.
    """
    if p >= 1:
        return logits
    log_chances = torch.log_softmax(logits.detach().double(), dim=-1)
    chances = log_chances.exp()
    entropy = torch.special.entr(chances).sum(-1, keepdim=True)
    distance = (log_chances + entropy).abs()
    order = torch.from_numpy(np.argsort(distance.numpy()))  # many times as fast as a stable sort; ties are settled below
    below = (chances.gather(-1, order).cumsum(-1) < p).sum(-1, keepdim=True)
    last = distance.gather(-1, order.gather(-1, below.clamp(max=logits.shape[-1] - 1)))
    nearer, equal = distance < last, distance == last
    before = (chances * nearer).sum(-1, keepdim=True) + (chances * equal).cumsum(-1) - chances  # for those in `equal`
    return _keep(logits, nearer | (equal & (before < p)))


def probabilities(logits: Tensor) -> Tensor:
    """The softmax of each row, in float64: (..., V)."""
    return torch.softmax(logits.double(), dim=-1)  # it takes the largest of a row from all first: nothing overflows


def draw(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """One id a row by inverting the cumulative distribution: the first id at which it exceeds the row's uniform number.

    `probabilities` (..., V) float64, at least one of a row above 0; `uniforms` (...) float64 in [0, 1). Returns (...).
    A token of probability 0 is never drawn: the sum does not grow at it, and u < 1 stays below the last sum in
    float64 too (u times it is at least half a unit of its last place smaller, and is rounded away from it).
    """
    cumulative = probabilities.cumsum(-1)
    targets = uniforms.unsqueeze(-1) * cumulative[..., -1:]
    return torch.searchsorted(cumulative, targets, right=True).squeeze(-1)


def _indices(ids: Iterable[int], logits: Tensor) -> Tensor:
    return torch.tensor(list(ids), dtype=torch.long, device=logits.device)


def _with(logits: Tensor, ids: Tensor, values: Tensor | float) -> Tensor:
    """A copy with other values at `ids` (n,)."""
    logits = logits.clone()
    logits[..., ids] = values
    return logits


def _keep(logits: Tensor, kept: Tensor) -> Tensor:
    return logits.masked_fill(~kept, float("-inf"))


def _largest(values: Tensor, nth: Tensor, n: int | Tensor) -> Tensor:
    """Where the n largest of each row are, `nth` (..., 1) the last of them; of equal ones those with the lower id."""
    at_least = values >= nth
    if bool((at_least.count_nonzero(-1)[..., None] == n).all()):  # no equal ones to leave out: the common case, and faster
        return at_least
    above, equal = values > nth, values == nth
    return above | (equal & (equal.cumsum(-1) <= n - above.sum(-1, keepdim=True)))


# -- all together --------------------------------------------------------------------------------------------------


@dataclass
class History:
    """The tokens of one row so far: the prompt's, and those made since."""

    prompt: list[int]
    new: list[int]


@dataclass(frozen=True, kw_only=True)
class Controls:
    """All controls of the choice of a token; the settings and their limits are SamplingConfig's, tokens are ids.

    It keeps no state: a choice is a function of the logits, the history and one uniform number. Row b of a result
    depends on row b of the input alone, bit for bit, since each row is computed by itself.

    Where rules exclude every token, first the n-gram rule gives way and then the minimum length.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    banned: Collection[int] = ()
    min_new_tokens: int = 0
    end_of_text: int | None = None

    @classmethod
    def from_config(cls, sampling: SamplingConfig, tokenizer: Tokenizer) -> Controls:
        """The controls that `sampling` describes. Raises ConfigError for a token that `tokenizer` does not have."""
        bias: dict[int, float] = {}
        for text, value in sampling.logit_bias.items():
            token = _token_id(tokenizer, text, "sampling.logit_bias")
            if token in bias:
                raise ConfigError("sampling.logit_bias", sampling.logit_bias, f"two entries are the token id:{token}")
            bias[token] = value
        return cls(
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            typical_p=sampling.typical_p,
            repetition_penalty=sampling.repetition_penalty,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            no_repeat_ngram=sampling.no_repeat_ngram,
            logit_bias=bias,
            banned=[_token_id(tokenizer, text, "sampling.banned") for text in sampling.banned],
            min_new_tokens=sampling.min_new_tokens,
            end_of_text=tokenizer.end_of_text,
        )

    def adjust(self, logits_BV: Tensor, histories: Sequence[History]) -> Tensor:
        """The logits after all rules that come before the temperature; the very input where none is on.

        Otherwise at least float32. Raises UserError if the banned tokens leave none.
        """
        adjusting = (
            self.logit_bias
            or self.repetition_penalty != 1
            or self.presence_penalty
            or self.frequency_penalty
            or self.no_repeat_ngram
            or self.banned
            or self.min_new_tokens
        )
        if not adjusting:
            return logits_BV
        logits_BV = logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32))
        return torch.stack([self._adjust(row, history) for row, history in zip(logits_BV, histories, strict=True)])

    def _adjust(self, logits_V: Tensor, history: History) -> Tensor:
        if self.logit_bias:
            logits_V = add_bias(logits_V, self.logit_bias)
        if self.repetition_penalty != 1:
            logits_V = penalize_repetition(logits_V, history.prompt + history.new, self.repetition_penalty)
        if self.presence_penalty:
            logits_V = penalize_presence(logits_V, history.new, self.presence_penalty)
        if self.frequency_penalty:
            logits_V = penalize_frequency(logits_V, history.new, self.frequency_penalty)

        ngrams = repeated_ngrams(history.prompt + history.new, self.no_repeat_ngram) if self.no_repeat_ngram else set()
        too_early = {self.end_of_text} - {None} if len(history.new) < self.min_new_tokens else set()
        for excluded in ({*ngrams, *too_early, *self.banned}, {*too_early, *self.banned}, {*self.banned}):
            left_V = ban(logits_V, excluded) if excluded else logits_V
            if left_V.max() != float("-inf"):
                return left_V
        problem = f"banned tokens: the {len(set(self.banned))} of them leave no token to choose"
        raise UserError(f"{problem} among {logits_V.shape[-1]}\n  ban fewer")

    def choose(self, logits_BV: Tensor, histories: Sequence[History], uniforms: Sequence[float] | Tensor) -> list[int]:
        """The next token of each row; `uniforms` (B,) are numbers in [0, 1), one a row.

        Temperature 0 takes the largest adjusted logit, of equal ones the one with the lowest id; the truncations and
        `uniforms` do not matter then. On the CPU, wherever the logits are. Raises UserError if they are not numbers.
        """
        logits_BV, likeliest = self._prepare(logits_BV, histories)
        if self.temperature == 0:
            return likeliest
        tokens = []
        for logits_V, uniform in zip(logits_BV, torch.as_tensor(uniforms, dtype=torch.float64), strict=True):
            ids, chances = self._candidates(logits_V)
            tokens.append(int(ids[draw(chances, uniform)]))
        return tokens

    def distribution(self, logits_BV: Tensor, histories: Sequence[History]) -> Tensor:
        """The probabilities that `choose` draws from: float64 (B, V). At temperature 0 its one token has them all."""
        logits_BV, likeliest = self._prepare(logits_BV, histories)
        result_BV = torch.zeros(logits_BV.shape, dtype=torch.float64)
        for result_V, logits_V, token in zip(result_BV, logits_BV, likeliest, strict=True):
            if self.temperature == 0:
                result_V[token] = 1
            else:
                ids, chances = self._candidates(logits_V)
                result_V[ids] = chances
        return result_BV

    def _prepare(self, logits_BV: Tensor, histories: Sequence[History]) -> tuple[Tensor, list[int]]:
        """The adjusted logits, and the likeliest token of each row."""
        logits_BV = self.adjust(logits_BV.cpu(), histories)
        largest = logits_BV.max(dim=-1)  # of equal ones the first; and NaN where there is one
        if not largest.values.isfinite().all():
            problem = "the model's logits are not finite numbers"
            raise UserError(f"{problem}\n  its weights are damaged, or its training diverged: use another checkpoint")
        return logits_BV, largest.indices.tolist()

    def _candidates(self, logits_V: Tensor) -> tuple[Tensor, Tensor]:
        """The ids in ascending order among which a token is drawn, and their probabilities: (n,), (n,) float64.

        Top-k is first here: dividing by the temperature keeps the order, and leaves the same k. What follows has
        then k tokens to look at instead of V.
        """
        ids = torch.arange(logits_V.shape[-1])
        if self.top_k is not None:
            logits_V = keep_top_k(logits_V, self.top_k)
            ids = (logits_V > float("-inf")).nonzero()[:, 0]
            logits_V = logits_V[ids]
        logits_V = scale(logits_V, self.temperature)
        if self.top_p is not None:
            logits_V = keep_top_p(logits_V, self.top_p)
        if self.min_p is not None:
            logits_V = keep_min_p(logits_V, self.min_p)
        if self.typical_p is not None:
            logits_V = keep_typical(logits_V, self.typical_p)
        return ids, probabilities(logits_V)


def token_id(tokenizer: Tokenizer, text: str) -> int:
    """The id of the token that a user names: by its text (" the"), by its number ("id:262"), or "<|endoftext|>".

    Raises TokenizerError for text that is not exactly one token, and for a bare number, which may mean either.
    """
    if text == END_OF_TEXT:
        return tokenizer.end_of_text
    if number := re.fullmatch(r"id:(\d+)", text, re.ASCII):
        if (token := int(number[1])) < tokenizer.vocab_size:
            return token
        raise TokenizerError(f"there is no such token: they are id:0 to id:{tokenizer.vocab_size - 1}")
    tokens = tokenizer.encode(text).tolist()
    named = ", ".join(f"{tokenizer.decode([token])!r} (id:{token})" for token in tokens)
    if re.fullmatch(r"\d+", text, re.ASCII):
        raise TokenizerError(f"a number or a text? write id:{text} for the token of that number; the text is {named}")
    if len(tokens) != 1:
        cut = f"{len(tokens)} tokens, {named}" if tokens else "no token"
        raise TokenizerError(f"must be one token, but this text is {cut}; a token can also be given by its number, as id:262")
    return tokens[0]


def _token_id(tokenizer: Tokenizer, text: str, key: str) -> int:
    """The same for the setting `key`. Raises ConfigError."""
    try:
        return token_id(tokenizer, text)
    except TokenizerError as error:
        raise ConfigError(key, text, str(error)) from None
