"""Sampling: the distribution that was asked for, greedy and top-k included, and the text it is asked to continue."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2x.generation.sampling import generate, keep_top_k, sample_token
from gpt2x.model.gpt import GPT

FINITE = st.floats(-50, 50, width=32)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- one token ----------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    logits=st.lists(FINITE | st.sampled_from([0.0, 1.0, 2.0]), min_size=1, max_size=30),  # the three make for ties
    k=st.integers(1, 35),
)
def test_top_k_keeps_exactly_k_and_of_equals_those_with_the_lower_id(logits, k):
    kept = keep_top_k(torch.tensor(logits), k)
    chosen = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:k]
    assert [i for i, x in enumerate(kept.tolist()) if x > -math.inf] == sorted(chosen)
    assert all(kept[i] == torch.tensor(logits)[i] for i in chosen)


def test_top_k_is_right_about_many_ties_too():
    logits = torch.randint(3, (50_257,), generator=seeded()).float()  # torch sorts long rows in another way than short ones
    assert torch.equal((keep_top_k(logits, 100) > -math.inf).nonzero()[:, 0], (logits == 2).nonzero()[:100, 0])


def test_top_k_works_row_by_row():
    rows = torch.randn(3, 4, 20, generator=seeded())
    kept = keep_top_k(rows, 5)
    for i in range(3):
        for j in range(4):
            assert torch.equal(kept[i, j], keep_top_k(rows[i, j], 5))


@settings(deadline=None)
@given(st.lists(FINITE | st.sampled_from([0.0, 1.0]), min_size=1, max_size=30), st.none() | st.integers(1, 40))
def test_temperature_zero_takes_the_largest_and_of_equals_the_lowest_id(logits, top_k):
    token = sample_token(torch.tensor(logits), temperature=0, top_k=top_k)
    assert token == max(range(len(logits)), key=lambda i: (logits[i], -i))


LOGITS = torch.tensor([1.5, -0.5, 0.0, 3.0, 3.0, -9.0, 0.7, 2.2])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [None, 1, 3, 5, 8, 100])
def test_tokens_follow_the_softmax(temperature, top_k):
    n, generator = 4000, seeded(7)
    counts = np.bincount(
        [sample_token(LOGITS, temperature=temperature, top_k=top_k, generator=generator) for _ in range(n)], minlength=8
    )
    weights = [math.exp(x / temperature) for x in LOGITS.tolist()]
    allowed = sorted(range(8), key=lambda i: (-weights[i], i))[:top_k]
    expected = np.array([n * weights[i] / sum(weights[j] for j in allowed) if i in allowed else 0 for i in range(8)])
    assert not counts[expected == 0].any()
    rare, common = (expected > 0) & (expected < 5), expected >= 5  # chi-square is meant for five and more
    observed, wanted = [*counts[common], counts[rare].sum()], [*expected[common], expected[rare].sum()]
    chi_square = sum((o - e) ** 2 / e for o, e in zip(observed, wanted, strict=True) if e > 0)
    assert chi_square < 30  # at most 7 degrees of freedom: a right sampler exceeds it once in 10,000 seeds; this one is fixed


def test_top_k_comes_before_the_temperature_and_both_leave_the_logits_as_they_were():
    logits = LOGITS.clone()
    drawn = {sample_token(logits, temperature=100.0, top_k=3, generator=seeded(s)) for s in range(200)}
    assert drawn == {3, 4, 7}
    assert torch.equal(logits, LOGITS)


@pytest.mark.parametrize("temperature", [1e-2, 1e-6, 1e-30, 1e-44])
@pytest.mark.parametrize("scale", [1.0, 1e4, 1e30])
def test_a_tiny_temperature_is_greedy_and_overflows_nothing(temperature, scale):
    logits = torch.tensor([-3.0, 1.0, 2.0, 0.0]) * scale
    assert {sample_token(logits, temperature=temperature, generator=seeded(s)) for s in range(20)} == {2}
    ties = torch.tensor([0.0, 2.0, 2.0]) * scale
    assert {sample_token(ties, temperature=temperature, generator=seeded(s)) for s in range(20)} == {1, 2}


def test_a_large_temperature_makes_all_alike():
    drawn = [sample_token(LOGITS, temperature=1e30, generator=generator) for generator in [seeded()] for _ in range(2000)]
    counts = np.bincount(drawn, minlength=8)
    assert ((counts - 250) ** 2 / 250).sum() < 30


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_logits_of_any_precision_will_do(dtype):
    logits = torch.tensor([0.0, 4.0, 2.0], dtype=dtype)
    same = [sample_token(logits, generator=seeded(s)) for s in range(50)]
    assert same == [sample_token(logits.float(), generator=seeded(s)) for s in range(50)]


# -- many ---------------------------------------------------------------------------------------------------


class Counting(torch.nn.Module):
    """A model whose next token is the last one plus 1 (mod 10); it notes every window it is given."""

    context_length = 4

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.windows = []

    def hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        assert tokens.shape[1] <= self.context_length
        self.windows.append(tokens[0].tolist())
        return tokens[..., None]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot((hidden[..., 0] + 1) % 10, 10) * 100.0


def test_the_window_slides_over_the_last_tokens_and_the_prompt_stays_as_it_was():
    model, prompt = Counting(), [7, 3]
    assert list(generate(model, prompt, max_new_tokens=5, temperature=0)) == [4, 5, 6, 7, 8]
    assert model.windows == [[7, 3], [7, 3, 4], [7, 3, 4, 5], [3, 4, 5, 6], [4, 5, 6, 7]]
    assert prompt == [7, 3]
    model.windows.clear()
    assert list(generate(model, [9, 9, 9, 1, 2, 3, 4], max_new_tokens=1, temperature=0)) == [5]
    assert model.windows == [[1, 2, 3, 4]]


def test_end_of_text_stops_and_is_not_yielded():
    assert list(generate(Counting(), [1], max_new_tokens=50, temperature=0, end_of_text=6)) == [2, 3, 4, 5]
    assert list(generate(Counting(), [5], max_new_tokens=50, temperature=0, end_of_text=6)) == []
    assert list(generate(Counting(), [6], max_new_tokens=3, temperature=0, end_of_text=6)) == [7, 8, 9]  # in the prompt: no end
    assert list(generate(Counting(), [8], max_new_tokens=3, temperature=0, end_of_text=0)) == [9]  # token 0 is a token too
    assert len(list(generate(Counting(), [1], max_new_tokens=50, temperature=0))) == 50


def test_each_token_is_handed_out_before_the_next_is_made():
    model = Counting()
    tokens = generate(model, [1], max_new_tokens=5)
    assert model.windows == []
    next(tokens)
    assert len(model.windows) == 1
    assert torch.is_grad_enabled()  # what is switched off for the model stays on for who asked
    assert not torch.is_inference_mode_enabled()


@pytest.fixture(scope="module")
def model() -> GPT:
    model = GPT(vocab_size=40, n_layer=2, n_head=2, n_embd=16, context_length=8, generator=seeded())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(15 if parameter.dim() == 2 else 1)
    return model.eval()


def test_the_same_seed_gives_the_same_tokens_whatever_the_global_generator(model):
    def tokens(seed: int) -> list[int]:
        return list(generate(model, [1, 2], max_new_tokens=30, top_k=20, generator=seeded(seed)))

    torch.manual_seed(1)
    first, state = tokens(5), torch.random.get_rng_state()
    torch.manual_seed(2)
    assert tokens(5) == first
    assert tokens(6) != first
    torch.manual_seed(1)
    tokens(7)
    assert torch.equal(torch.random.get_rng_state(), state)  # and leaves it alone


def test_greedy_generation_is_the_argmax_of_all_logits_at_each_step(model):
    expected = [3, 9, 27]
    for _ in range(20):  # past the context of 8, by way of forward()
        expected.append(int(model(torch.tensor([expected[-8:]]))[0, -1].argmax()))
    assert list(generate(model, [3, 9, 27], max_new_tokens=20, temperature=0)) == expected[3:]


def test_generating_tracks_no_gradients_and_can_be_followed_by_training(model):
    list(generate(model, [1], max_new_tokens=3, generator=seeded()))
    model(torch.tensor([[1, 2]])).sum().backward()
    assert model.wte.weight.grad is not None
    model.zero_grad()
