"""The loop that generates: the same tokens with and without a cache, in any batch, in any pieces, by guessing or not."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import POSITIONS, SHAPE, gpt, hugging_face, restless

from gpt2x.generation.controls import Controls
from gpt2x.generation.decoding import Row, decode
from gpt2x.model.gpt import GPT
from gpt2x.model.prepared import prepare

V, CONTEXT = SHAPE["vocab_size"], SHAPE["context_length"]
END = V - 1


def run(model: GPT, prompts: list[list[int]], **settings) -> list[Row]:
    """The finished rows, those of the first prompt first."""
    rows = {}
    settings = {"max_new_tokens": 20, "controls": Controls(temperature=0), "end_of_text": END} | settings
    for grown in decode(model, prompts, **settings):
        rows |= {(row.prompt_index, row.sample): row for row in grown}
    return [rows[key] for key in sorted(rows)]


def texts(rows: list[Row]) -> list[tuple[list[int], str | None]]:
    return [(row.history.new, row.finish) for row in rows]


MODELS = [restless(gpt(seed, attention=kind)) for seed, kind in enumerate(("sdpa", "manual"))]
OTHER_POSITIONS = [restless(gpt(0, position=position, tied_head=False)) for position in POSITIONS[1:]]
prompts_of_any_length = st.lists(st.lists(st.integers(0, V - 1), min_size=1, max_size=2 * CONTEXT), min_size=1, max_size=4)


# -- what is chosen -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS, ids=["sdpa", "manual"])
def test_greedy_tokens_are_those_of_transformers(model):
    prompts = [[5], [1, 2, 3, 4, 5, 6], [7] * 10]
    ours = run(model, prompts, end_of_text=None, max_new_tokens=CONTEXT - 10)
    for prompt, row in zip(prompts, ours, strict=True):
        expected = hugging_face(model).generate(
            torch.tensor([prompt]), max_new_tokens=CONTEXT - 10, do_sample=False, pad_token_id=0, eos_token_id=None
        )
        assert row.tokens == expected[0].tolist()
        assert len(set(row.history.new)) >= 5  # something to be wrong about


@pytest.mark.parametrize(
    ("model", "temperature"), [(model, t) for model in MODELS for t in (0, 1.0)] + [(model, 1.0) for model in OTHER_POSITIONS]
)
@settings(deadline=None, max_examples=25)
@given(prompts=prompts_of_any_length, chunk=st.none() | st.integers(1, 9), lookup=st.integers(0, 4), seed=st.integers(0, 99))
def test_cache_pieces_guesses_and_batch_change_nothing(model, temperature, prompts, chunk, lookup, seed):
    """Against the plainest way: each prompt alone, and everything computed anew for every token. Past the context too.

    Logits differ by rounding, 1e-6 of their size of 3; that no two likeliest are that near is so for these models.
    """
    common = {"controls": Controls(temperature=temperature), "seed": seed, "max_new_tokens": CONTEXT + 6}
    plain = [text for prompt in prompts for text in texts(run(model, [prompt], cache=False, **common))]
    assert texts(run(model, prompts, prefill_chunk=chunk, lookup=lookup, **common)) == plain
    assert texts(run(model, prompts, cache=False, lookup=lookup, **common)) == plain


def test_without_room_for_a_second_token_the_window_is_the_last_one():
    model = restless(gpt(context_length=1))
    common = {"max_new_tokens": 10, "end_of_text": None}
    assert texts(run(model, [[3], [4, 5]], **common)) == texts(run(model, [[3], [4, 5]], cache=False, **common))


@pytest.mark.parametrize("model", [MODELS[0], *OTHER_POSITIONS], ids=POSITIONS)
def test_a_full_context_slides_to_its_last_half_or_stops(model):
    prompt = list(range(10))
    (row,) = run(model, [prompt], end_of_text=None, max_new_tokens=40)
    tokens, start = row.tokens, 0
    for n in range(len(prompt), len(tokens)):  # what the window is at each token, told once more
        if n - start > CONTEXT:
            start = n - CONTEXT // 2
        assert tokens[n] == model(torch.tensor([tokens[start:n]]))[0, -1].argmax()
    assert start > 0 and len(set(row.history.new)) >= 8

    (stopped,) = run(model, [prompt], end_of_text=None, max_new_tokens=40, past_context="stop")
    assert stopped.finish == "context"
    assert stopped.history.new == row.history.new[: CONTEXT + 1 - len(prompt)]  # the last one needs no room
    with pytest.raises(ValueError, match=f"{CONTEXT + 1} tokens does not fit"):
        run(model, [[0] * (CONTEXT + 1)], past_context="stop")


def test_a_run_leaves_nothing_behind_for_the_next():
    """Reset between prompts: the same call gives the same tokens after any other."""
    model = MODELS[0]
    first = texts(run(model, [[1, 2, 3]]))
    run(model, [[9] * 20, [4]], controls=Controls(temperature=1.0), max_new_tokens=30)
    assert texts(run(model, [[1, 2, 3]])) == first


def test_with_the_kernel_the_logits_of_a_row_have_the_same_bits_in_any_batch(kernels):
    for weights in ("fp32", "int8"):
        model = prepare(copy.deepcopy(MODELS[0]), weights=weights, cache=kernels)
        prompts = [[i] * (1 + i) for i in range(7)]
        together = run(model, prompts, controls=Controls(temperature=1.0), top_logprobs=0, end_of_text=None)
        for prompt, row in zip(prompts, together, strict=True):
            (alone,) = run(model, [prompt], controls=Controls(temperature=1.0), top_logprobs=0, end_of_text=None)
            assert alone.history == row.history and alone.logprobs == row.logprobs


# -- seeds and samples ----------------------------------------------------------------------------------------


def test_samples_are_different_repeatable_and_independent_of_how_many_there_are():
    model, sampled = MODELS[0], {"controls": Controls(temperature=1.0), "end_of_text": None}
    five = texts(run(model, [[1, 2], [3]], samples=range(5), seed=3, **sampled))
    assert five == texts(run(model, [[1, 2], [3]], samples=range(5), seed=3, **sampled))
    assert len({tuple(tokens) for tokens, _ in five}) == 10
    two = texts(run(model, [[1, 2], [3]], samples=range(2), seed=3, **sampled))
    assert two == five[:2] + five[5:7]
    assert texts(run(model, [[1, 2], [3]], samples=range(3, 5), seed=3, **sampled)) == five[3:5] + five[8:10]
    assert texts(run(model, [[1, 2], [3]], samples=range(5), seed=4, **sampled)) != five


def test_each_prompt_may_have_its_own_seed():
    model, sampled = MODELS[0], {"controls": Controls(temperature=1.0)}
    both = texts(run(model, [[1, 2], [1, 2]], seed=[3, 4], **sampled))
    assert both == texts(run(model, [[1, 2]], seed=3, **sampled)) + texts(run(model, [[1, 2]], seed=4, **sampled))


# -- ends, events, log-probabilities --------------------------------------------------------------------------


class Scripted(GPT):
    """A model whose likeliest next token is the next one of a list, by position."""

    def __init__(self, tokens: list[int]):
        super().__init__(vocab_size=V, n_layer=1, n_head=1, n_embd=4, context_length=CONTEXT)
        self.tokens, self.fed = tokens, []

    def hidden(self, tokens_BT, cache=None):
        self.fed.append(tokens_BT.shape[1])
        positions = torch.arange(tokens_BT.shape[1]) if cache is None else cache.begin(tokens_BT.shape[1])
        return positions.expand(tokens_BT.shape)[..., None].float()

    def logits(self, x):
        following = torch.tensor([*self.tokens, END] + [0] * CONTEXT)[x[..., 0].long() + 1]
        return torch.nn.functional.one_hot(following, V).float()


def test_rows_end_by_themselves_and_the_others_go_on():
    model = Scripted([5, 6, 7, 8])
    rows = run(model, [[5], [5, 6, 7], [5, 6]], max_new_tokens=3)
    assert texts(rows) == [([6, 7, 8], "length"), ([8], "end_of_text"), ([7, 8], "end_of_text")]


def test_a_consumer_can_end_a_row():
    seen = []
    steps = decode(Scripted(list(range(20))), [[0], [0, 1]], controls=Controls(temperature=0), max_new_tokens=10)
    for rows in steps:
        for row in rows:
            seen.append((row.prompt_index, row.history.new[-1]))
            if row.history.new[-1] == 3:
                row.finish = "stop"
    assert seen == [(0, 1), (1, 2), (0, 2), (1, 3), (0, 3)]


def test_looking_up_takes_fewer_steps_where_a_text_repeats_itself():
    model = Scripted([1, 2, 3, 4] * 5)
    (row,) = run(model, [[1, 2, 3, 4, 1]], max_new_tokens=12, lookup=4)
    assert row.tokens == [1, 2, 3, 4] * 4 + [1]
    assert model.fed[0] == 5 and len(model.fed) < 7  # 13 without
    model.fed.clear()
    run(model, [[1, 2, 3, 4, 1]], max_new_tokens=12)
    assert len(model.fed) == 12


def test_what_is_looked_up_is_what_followed_most_recently_and_no_more_than_may_be_made():
    model = Scripted([1, 2, 3, 1, 2, 4, 1, 2, 4, 5, 6])
    (row,) = run(model, [[1, 2, 3, 1, 2, 4, 1]], max_new_tokens=3, lookup=4)
    assert row.history.new == [2, 4, 5]
    assert model.fed == [7, 2]  # 2 from the prompt; then 4 is guessed, rightly (3 followed earlier), and 5 comes with it


@pytest.mark.parametrize("length", [1, 5, 6, 14])
def test_a_prompt_is_read_in_pieces_of_the_size_that_was_asked_for(length):
    model = Scripted(list(range(30)))
    run(model, [list(range(length))], max_new_tokens=1, prefill_chunk=3)
    assert model.fed == [3] * (length // 3) + [length % 3] * (length % 3 > 0)


def test_logprobs_are_the_model_s_own_whatever_the_controls():
    model, prompt = MODELS[0], [1, 2, 3]
    controls = Controls(temperature=0.5, top_k=3, repetition_penalty=2.0)
    (row,) = run(model, [prompt], controls=controls, top_logprobs=4, end_of_text=None, max_new_tokens=10)
    logprobs = torch.log_softmax(model(torch.tensor([row.tokens]))[0].double(), dim=-1)[len(prompt) - 1 : -1]
    assert len(row.logprobs) == 10
    for token, recorded, expected in zip(row.history.new, row.logprobs, logprobs, strict=True):
        assert recorded.token == token
        assert recorded.logprob == pytest.approx(expected[token].item(), abs=1e-5)
        assert [id for id, _ in recorded.top] == expected.topk(4).indices.tolist()
        assert [p for _, p in recorded.top] == pytest.approx(expected.topk(4).values.tolist(), abs=1e-5)
    (without,) = run(model, [prompt], controls=controls, end_of_text=None, max_new_tokens=10)
    assert without.history == row.history and without.logprobs == []
    (none,) = run(model, [prompt], top_logprobs=0)
    assert all(p.top == [] for p in none.logprobs)
