"""The KV cache: whatever the pieces and the rows, the logits are those of one pass over the whole text."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import POSITIONS, SHAPE, far_from_linear, gpt, some_tokens

KINDS = ("manual", "sdpa")
T = SHAPE["context_length"]
# The same sums in another order: in float64 the logits, up to 3, differ by 5e-15. A wrong position or mask is off by 0.1.
TOLERANCE = 1e-11


def double(attention: str, position: str = "learned"):
    return far_from_linear(gpt(attention=attention, position=position)).double().eval()


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("attention", KINDS)
@settings(deadline=None, max_examples=30)
@given(cuts=st.lists(st.integers(1, T - 1), max_size=6, unique=True))
@torch.no_grad()
def test_a_text_in_pieces_gives_the_logits_of_the_whole(attention, position, cuts):
    model, tokens = double(attention, position), some_tokens()
    cache = model.new_cache(3, T)
    ends = [0, *sorted(cuts), T]
    pieces = [model.logits(model.hidden(tokens[:, a:b], cache)) for a, b in itertools.pairwise(ends)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens), atol=TOLERANCE, rtol=0)
    assert cache.lengths == [T] * 3


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("attention", KINDS)
@settings(deadline=None, max_examples=30)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4), steps=st.lists(st.integers(1, 3), max_size=4))
@torch.no_grad()
def test_rows_of_unequal_length_compute_what_they_would_alone(attention, position, lengths, steps):
    model, tokens = double(attention, position), some_tokens(batch=len(lengths))
    cache = model.new_cache(len(lengths), T)
    model.hidden(tokens[:, : max(lengths)], cache)  # of the shorter rows the last ones are padding
    cache.lengths = list(lengths)
    whole = [model(row[None])[0] for row in tokens]
    for n in steps:
        starts = list(cache.lengths)
        piece = torch.stack([row[start : start + n] for row, start in zip(tokens, starts)])
        logits = model.logits(model.hidden(piece, cache))
        for b, start in enumerate(starts):
            torch.testing.assert_close(logits[b], whole[b][start : start + n], atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_what_was_counted_too_far_can_be_taken_back():
    model, tokens = double("sdpa"), some_tokens(batch=2)
    cache = model.new_cache(2, T)
    model.hidden(tokens[:, :5], cache)
    model.hidden(torch.zeros(2, 4, dtype=torch.long), cache)  # guesses that turn out wrong
    cache.lengths = [5, 5]
    logits = model.logits(model.hidden(tokens[:, 5:9], cache))
    torch.testing.assert_close(logits, model(tokens)[:, 5:9], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("position", POSITIONS)
@torch.no_grad()
def test_rows_can_be_chosen_repeated_and_started_anew(position):
    model, tokens = double("sdpa", position), some_tokens(batch=3)
    cache = model.new_cache(3, T)
    model.hidden(tokens[:, :8], cache)
    cache.lengths = [8, 3, 5]
    cache.rows([2, 0, 2])
    assert cache.lengths == [5, 8, 5]
    next_tokens = torch.stack([tokens[2, 5], tokens[0, 8], tokens[2, 5]])[:, None]
    logits = model.logits(model.hidden(next_tokens, cache))[:, 0]
    whole = model(tokens)
    torch.testing.assert_close(logits, torch.stack([whole[2, 5], whole[0, 8], whole[2, 5]]), atol=TOLERANCE, rtol=0)
    cache.rows([1, 0])
    assert cache.lengths == [9, 6]

    other = some_tokens(batch=1, length=4, seed=9)
    model.hidden(other[:, :3], cache.row(0))  # nothing is left of what the row held before
    cache.lengths[0] = 3
    logits = model.logits(model.hidden(torch.stack([other[0, 3], tokens[2, 6]])[:, None], cache))[:, 0]
    torch.testing.assert_close(logits, torch.stack([model(other)[0, 3], whole[2, 6]]), atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_too_many_tokens_are_refused_and_the_memory_is_what_was_asked_for():
    model, tokens = gpt().eval(), some_tokens()
    cache = model.new_cache(3, 10)
    model.hidden(tokens[:, :8], cache)
    with pytest.raises(ValueError, match="11 tokens do not fit a cache of 10"):
        model.hidden(tokens[:, 8:11], cache)
    assert cache.keys.shape == (SHAPE["n_layer"], 3, SHAPE["n_head"], 10, SHAPE["n_embd"] // SHAPE["n_head"])
    assert model.new_cache(1, 10**6).capacity == T


def test_the_cache_s_memory_starts_finite():
    """A masked position has weight 0, and 0 times NaN would be NaN."""
    cache = gpt().new_cache(2, T)
    assert not cache.keys.any() and not cache.values.any()
