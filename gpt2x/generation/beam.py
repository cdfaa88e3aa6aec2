"""Beam search: the continuation that is likeliest as a whole, as far as keeping a few candidates finds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gpt2x.generation.controls import Controls, History
from gpt2x.generation.decoding import Reader, Row
from gpt2x.model.gpt import GPT


@dataclass(frozen=True)
class Hypothesis:
    """A continuation, how it ended, and its score: the sum of its tokens' log-probabilities over length ** penalty."""

    tokens: list[int]
    finish: str
    score: float


@torch.inference_mode()
def beam_search(
    model: GPT,
    prompt: Sequence[int],
    *,
    beams: int,
    controls: Controls,
    max_new_tokens: int,
    end_of_text: int | None = None,
    length_penalty: float = 1.0,
    cache: bool = True,
    past_context: str = "slide",
    prefill_chunk: int | None = None,
) -> list[Hypothesis]:
    """The `beams` best continuations of `prompt` that were found, best first.

    Every step extends each of the `beams` likeliest texts by every token and keeps the likeliest again (Graves, 2012).
    One that ends with `end_of_text` is set aside with its score; its end counts in its probability and its length.
    The search is over when `beams` have ended and, at its present score, none still running could do better (the rule
    of transformers' `early_stopping=False`), or after `max_new_tokens`. A `length_penalty` above 0 favours long texts
    (Wu et al., 2016, in the simpler form of transformers). `controls` change the logits before they become
    log-probabilities; nothing is drawn.
    """
    rows = [Row(0, beam, History(list(prompt), [])) for beam in range(beams)]
    reader = Reader(model, cache=cache, past_context=past_context, prefill_chunk=prefill_chunk)
    logits_BV = reader.start(rows, beams, max_new_tokens)[:, 0]
    sums = torch.full((beams, 1), -torch.inf, dtype=torch.float64)
    sums[0] = 0  # at first all beams are the same text: only one of them may be extended
    ended: list[Hypothesis] = []
    while True:
        logits_BV = controls.adjust(logits_BV, [row.history for row in rows])
        totals_BV = sums + torch.log_softmax(logits_BV.double().cpu(), dim=-1)
        V = totals_BV.shape[1]
        best = totals_BV.flatten().topk(min(2 * beams, totals_BV.numel()))  # twice as many: up to half of them may end
        length = len(rows[0].history.new) + 1
        parents, going_on, going_on_sums = [], [], []
        for rank, (total, index) in enumerate(zip(best.values.tolist(), best.indices.tolist())):
            if total == -torch.inf:  # a small vocabulary has no more
                break
            parent, token = divmod(index, V)
            tokens = rows[parent].history.new
            if token == end_of_text:
                if rank < beams:
                    ended.append(Hypothesis(list(tokens), "end_of_text", total / length**length_penalty))
            elif len(going_on) < beams:
                parents.append(parent)
                history = History(rows[parent].history.prompt, [*tokens, token])
                going_on.append(Row(0, len(going_on), history, start=rows[parent].start))
                going_on_sums.append(total)
        ended = sorted(ended, key=lambda hypothesis: -hypothesis.score)[:beams]
        rows, sums = going_on, torch.tensor(going_on_sums, dtype=torch.float64)[:, None]
        full = bool(rows) and reader.stops(rows[0])
        if length == max_new_tokens or full:
            finish = "length" if length == max_new_tokens else "context"
            ended += [Hypothesis(r.history.new, finish, s / length**length_penalty) for r, s in zip(rows, going_on_sums)]
            return sorted(ended, key=lambda hypothesis: -hypothesis.score)[:beams]
        if not going_on or (len(ended) == beams and going_on_sums[0] / length**length_penalty <= ended[-1].score):
            return ended
        reader.keep(parents)
        logits_BV = reader.read(rows, [[]] * len(rows))[:, 0]
