"""Beam search: the hypotheses and scores of transformers, and of trying everything."""

from __future__ import annotations

import itertools

import pytest
import torch
from models import POSITIONS, gpt, hugging_face, restless

from gpt2x.generation.beam import beam_search
from gpt2x.generation.controls import Controls

GREEDY = Controls(temperature=0)


def small(seed: int, **changes):
    return restless(gpt(seed, **({"vocab_size": 20, "n_embd": 16, "n_head": 2} | changes)))


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("beams", [2, 5])
def test_hypotheses_are_those_of_transformers(beams, length_penalty):
    """Ended and cut ones alike: of six tokens one is the end."""
    ended = 0
    for seed in range(16):
        model, prompt, end = small(seed, vocab_size=6), [seed % 6, 3, 4], 5
        expected = hugging_face(model).generate(
            torch.tensor([prompt]),
            num_beams=beams,
            num_return_sequences=beams,
            max_new_tokens=12,
            do_sample=False,
            length_penalty=length_penalty,
            eos_token_id=end,
            pad_token_id=end,
            early_stopping=False,
            return_dict_in_generate=True,
            output_scores=True,
        )
        found = beam_search(
            model, prompt, beams=beams, controls=GREEDY, max_new_tokens=12, end_of_text=end, length_penalty=length_penalty
        )
        theirs = [tokens[len(prompt) :].tolist() for tokens in expected.sequences]
        theirs = [tokens[: tokens.index(end)] if end in tokens else tokens for tokens in theirs]
        assert [hypothesis.tokens for hypothesis in found] == theirs
        assert [hypothesis.score for hypothesis in found] == pytest.approx(expected.sequences_scores.tolist(), abs=1e-4)
        ended += any(hypothesis.finish == "end_of_text" for hypothesis in found)
    assert ended >= 3


def test_with_beams_for_everything_it_finds_the_likeliest_text_of_all():
    model, prompt = small(1, vocab_size=6), [1, 2]
    scores = {}
    for text in itertools.product(range(6), repeat=3):
        logprobs = torch.log_softmax(model(torch.tensor([[*prompt, *text]]))[0].double(), dim=-1)
        scores[text] = sum(logprobs[len(prompt) - 1 + i, token].item() for i, token in enumerate(text))
    found = beam_search(model, prompt, beams=36, controls=GREEDY, max_new_tokens=3, length_penalty=0.0)
    best = sorted(scores, key=lambda text: -scores[text])[:36]
    assert tuple(found[0].tokens) == best[0]
    assert found[0].score == pytest.approx(scores[best[0]], abs=1e-4)
    assert all(found[i].score >= found[i + 1].score for i in range(35))


@pytest.mark.parametrize("settings", [{"cache": False}, {"prefill_chunk": 2}])
@pytest.mark.parametrize("position", POSITIONS)
def test_the_cache_changes_nothing_past_the_context_either(settings, position):
    learned = position == "learned"  # the others repeat themselves where the head is tied
    model = small(2 if learned else 11, context_length=10, position=position, tied_head=learned)
    common = {"beams": 3, "controls": GREEDY, "max_new_tokens": 15, "end_of_text": None}
    plain, other = (beam_search(model, [1, 2, 3, 4, 5], **common, **extra) for extra in ({}, settings))
    assert [h.tokens for h in plain] == [h.tokens for h in other]
    assert len(plain[0].tokens) == 15 and plain[0].finish == "length"
    assert len(set(plain[0].tokens)) >= 4
    tokens, start, score = [1, 2, 3, 4, 5], 0, 0.0  # the score of what was found, with the window told once more
    for token in plain[0].tokens:
        if len(tokens) - start > 10:
            start = len(tokens) - 5
        score += torch.log_softmax(model(torch.tensor([tokens[start:]]))[0, -1].double(), dim=-1)[token].item()
        tokens.append(token)
    assert plain[0].score == pytest.approx(score / 15, abs=1e-4)


def test_a_full_context_stops_the_search_if_it_shall():
    found = beam_search(small(2, context_length=8), [1] * 5, beams=2, controls=GREEDY, max_new_tokens=15, past_context="stop")
    assert {(len(h.tokens), h.finish) for h in found} == {(4, "context")}
    with pytest.raises(ValueError, match="9 tokens does not fit"):
        beam_search(small(2, context_length=8), [1] * 9, beams=2, controls=GREEDY, max_new_tokens=5, past_context="stop")


def test_one_beam_is_greedy_and_more_beams_than_tokens_are_no_problem():
    model, prompt = small(4), [1, 2]
    (only,) = beam_search(model, prompt, beams=1, controls=GREEDY, max_new_tokens=10)
    tokens = list(prompt)
    for _ in range(10):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    assert only.tokens == tokens[2:]
    found = beam_search(small(1, vocab_size=2), [0], beams=8, controls=GREEDY, max_new_tokens=2)
    assert sorted(h.tokens for h in found) == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_controls_reach_the_search():
    model, prompt = small(5), [1, 2]
    (free, *_) = beam_search(model, prompt, beams=3, controls=GREEDY, max_new_tokens=8)
    banned = Controls(temperature=0, banned=[free.tokens[0]])
    for hypothesis in beam_search(model, prompt, beams=3, controls=banned, max_new_tokens=8):
        assert free.tokens[0] not in hypothesis.tokens
