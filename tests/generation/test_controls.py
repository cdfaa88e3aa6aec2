"""The controls: each rule against transformers or plain Python, their order, ties, draws, batches and bad input."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process as hf

from gpt2x.config.check import check
from gpt2x.config.option import ConfigError
from gpt2x.errors import UserError
from gpt2x.generation import controls
from gpt2x.generation.config import SamplingConfig
from gpt2x.generation.controls import Controls, History, draw, token_id
from gpt2x.tokenizer.base import TokenizerError
from gpt2x.tokenizer.char import CharTokenizer
from gpt2x.tokenizer.gpt2 import GPT2Tokenizer

INF = math.inf
GPT2 = GPT2Tokenizer()
SEEDS = st.integers(0, 2**32 - 1)
ROWS = st.lists(st.floats(-50, 50, width=32) | st.sampled_from([0.0, 1.0, 2.0]), min_size=1, max_size=30)  # with ties
SHARES = st.floats(1e-3, 0.999)
NOWHERE = [History([], [])]


def random_logits(*shape: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def kept(logits: torch.Tensor) -> list[int]:
    """The ids that a row (V,) does not exclude."""
    return (logits > -INF).nonzero()[:, 0].tolist()


def softmax(row: list[float]) -> list[float]:
    weights = [math.exp(x - max(row)) for x in row]
    return [weight / math.fsum(weights) for weight in weights]


# -- each rule against transformers' class for it -------------------------------------------------------------------

TOKENS = st.lists(st.integers(0, 39), min_size=1, max_size=60)


def processed(processor, logits: torch.Tensor, tokens: list[int] = ()) -> torch.Tensor:
    """What transformers makes of one row (V,)."""
    return processor(torch.tensor([tokens], dtype=torch.long), logits[None])[0]


@given(SEEDS, TOKENS, st.floats(0.1, 10))
def test_repetition_penalty(seed, tokens, penalty):
    logits = random_logits(40, seed=seed)
    expected = processed(hf.RepetitionPenaltyLogitsProcessor(penalty), logits, tokens)
    torch.testing.assert_close(controls.penalize_repetition(logits, tokens, penalty), expected, rtol=1e-15, atol=0)


@given(SEEDS, TOKENS, st.integers(1, 5))
def test_repeated_ngrams(seed, tokens, n):
    expected = processed(hf.NoRepeatNGramLogitsProcessor(n), random_logits(40, seed=seed), tokens)
    assert torch.equal(controls.ban(random_logits(40, seed=seed), controls.repeated_ngrams(tokens, n)), expected)


@given(SEEDS, st.dictionaries(st.integers(0, 39), st.floats(-5, 5), min_size=1))
def test_bias(seed, biases):
    logits = random_logits(40, seed=seed, dtype=torch.float32)  # its biases are float32 whatever the logits
    expected = processed(hf.SequenceBiasLogitsProcessor({(i,): bias for i, bias in biases.items()}), logits, [0])
    assert torch.equal(controls.add_bias(logits, biases), expected)


@given(SEEDS, st.sets(st.integers(0, 39), max_size=39))
def test_ban(seed, ids):
    logits = random_logits(40, seed=seed)
    expected = processed(hf.SuppressTokensLogitsProcessor(sorted(ids)), logits) if ids else logits
    assert torch.equal(controls.ban(logits, ids), expected)


@given(SEEDS, st.integers(1, 45))
def test_top_k(seed, k):
    logits = random_logits(40, seed=seed)
    assert torch.equal(controls.keep_top_k(logits, k), processed(hf.TopKLogitsWarper(k), logits))


@given(SEEDS, SHARES)
def test_top_p(seed, p):
    logits = random_logits(40, seed=seed)
    assert torch.equal(controls.keep_top_p(logits, p), processed(hf.TopPLogitsWarper(p), logits))


@given(SEEDS, SHARES)
def test_min_p(seed, p):
    logits = random_logits(40, seed=seed)
    assert torch.equal(controls.keep_min_p(logits, p), processed(hf.MinPLogitsWarper(p), logits))


@given(SEEDS, SHARES)
def test_typical_p(seed, p):
    logits = random_logits(40, seed=seed)
    assert torch.equal(controls.keep_typical(logits, p), processed(hf.TypicalLogitsWarper(p), logits))


@settings(max_examples=200)
@given(
    st.fixed_dictionaries(
        {"temperature": st.floats(0.05, 20)},
        optional={
            "top_k": st.integers(1, 45),
            "top_p": SHARES,
            "min_p": SHARES,
            "typical_p": SHARES,
            "repetition_penalty": st.floats(0.5, 2),
            "no_repeat_ngram": st.integers(1, 4),
            "banned": st.lists(st.integers(0, 38), min_size=1, max_size=10),
            "min_new_tokens": st.integers(0, 20),
            "logit_bias": st.dictionaries(st.integers(0, 39), st.integers(-3, 3), min_size=1),
        },
    ),
    SEEDS,
    TOKENS,
    st.lists(st.integers(0, 39), max_size=10),
)
def test_any_composition_is_that_of_transformers(chosen, seed, prompt, new):
    logits, end_of_text = random_logits(40, seed=seed), 39
    banned = {*chosen.get("banned", ()), end_of_text}
    if n := chosen.get("no_repeat_ngram"):
        assume(len(banned | controls.repeated_ngrams(prompt + new, n)) < 40)  # where all are excluded, ours gives way

    makers = {
        "logit_bias": lambda biases: hf.SequenceBiasLogitsProcessor({(i,): float(bias) for i, bias in biases.items()}),
        "repetition_penalty": hf.RepetitionPenaltyLogitsProcessor,
        "no_repeat_ngram": hf.NoRepeatNGramLogitsProcessor,
        "banned": lambda ids: hf.NoBadWordsLogitsProcessor([[i] for i in ids]),
        "min_new_tokens": lambda n: hf.MinNewTokensLengthLogitsProcessor(len(prompt), n, [end_of_text]),
        "temperature": hf.TemperatureLogitsWarper,
        "top_k": hf.TopKLogitsWarper,
        "top_p": hf.TopPLogitsWarper,
        "min_p": hf.MinPLogitsWarper,
        "typical_p": hf.TypicalLogitsWarper,
    }
    processors = hf.LogitsProcessorList(make(chosen[name]) for name, make in makers.items() if name in chosen)
    expected = processed(processors, logits, prompt + new).softmax(-1)
    found = Controls(**chosen, end_of_text=end_of_text).distribution(logits[None], [History(prompt, new)])[0]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


# -- each rule against plain Python, ties included ----------------------------------------------------------------


@given(ROWS, st.integers(1, 35))
def test_exactly_k_are_kept_and_of_equals_those_with_the_lower_id(row, k):
    logits = torch.tensor(row)
    expected = sorted(sorted(range(len(row)), key=lambda i: (-row[i], i))[:k])
    assert kept(controls.keep_top_k(logits, k)) == expected
    assert kept(Controls(top_k=k, temperature=20.0).distribution(logits[None], NOWHERE)[0].log()) == expected
    assert torch.equal(controls.keep_top_k(logits, k)[expected], logits[expected])


def test_top_k_is_right_about_many_ties_too():
    logits = torch.randint(3, (50_257,), generator=torch.Generator().manual_seed(0)).float()
    expected = (logits == 2).nonzero()[:100, 0].tolist()
    assert kept(controls.keep_top_k(logits, 100)) == expected
    assert kept(Controls(top_k=100).distribution(logits[None], NOWHERE)[0].log()) == expected


def check_smallest(row: list[float], key, p: float, found: list[int]) -> None:
    """`found` are the first tokens by (key, id), as few as it takes for their probability to reach p."""
    chances = softmax(row)
    order = sorted(range(len(row)), key=lambda i: (key(chances[i]), i))
    share = math.fsum(chances[i] for i in found)
    assert share >= p - 1e-9
    if len(found) > 1:
        last = next(i for i in reversed(order) if i in found)
        assert share - chances[last] < p + 1e-9
    assert found == sorted(order[: len(found)])


@given(st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=30), SHARES)
@example([0.0] * 4, 0.5)
@example([0.0] * 3, 0.999)
def test_top_p_keeps_the_fewest_that_reach_p(row, p):
    check_smallest(row, lambda chance: -chance, p, kept(controls.keep_top_p(torch.tensor(row), p)))


@given(ROWS, SHARES)
@example([0.0] * 4, 0.5)
def test_typical_p_keeps_the_fewest_nearest_to_the_entropy_that_reach_p(row, p):
    chances = softmax(row)
    entropy = -math.fsum(chance * math.log(chance) for chance in chances if chance)

    def distance(chance: float) -> float:
        return round(abs(-math.log(chance) - entropy), 9) if chance else INF

    distances = sorted({distance(chance) for chance in chances})
    assume(all(b - a > 1e-7 for a, b in itertools.pairwise(distances)))  # nearly equal ones may come in either order
    exact = [abs(-math.log(chance) - entropy) for chance in chances if chance]
    assume(len({round(x, 9) for x in exact}) == len(set(chances)))  # as may two chances on both sides of the entropy
    check_smallest(row, distance, p, kept(controls.keep_typical(torch.tensor(row), p)))


@given(ROWS, SHARES)
def test_min_p_keeps_those_within_a_factor_of_the_likeliest(row, p):
    odds = [math.exp(x - max(row)) for x in row]
    assume(all(abs(x - p) > 1e-9 for x in odds))
    assert kept(controls.keep_min_p(torch.tensor(row), p)) == [i for i, x in enumerate(odds) if x >= p]


@given(ROWS, st.lists(st.integers(0, 29), max_size=50), st.floats(-2, 2))
def test_presence_and_frequency_penalties(row, tokens, penalty):
    tokens = [token % len(row) for token in tokens]
    logits = torch.tensor(row, dtype=torch.float64)
    presence = [x - penalty * (i in tokens) for i, x in enumerate(row)]
    frequency = [x - penalty * tokens.count(i) for i, x in enumerate(row)]
    assert controls.penalize_presence(logits, tokens, penalty).tolist() == pytest.approx(presence, abs=1e-12)
    assert controls.penalize_frequency(logits, tokens, penalty).tolist() == pytest.approx(frequency, abs=1e-12)


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 6))
def test_a_banned_id_is_one_that_would_repeat_an_ngram(tokens, n):
    there = {tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)}
    repeating = {i for i in range(4) if len(tokens) >= n and tuple([*tokens, i][-n:]) in there}
    assert controls.repeated_ngrams(tokens, n) == repeating


@pytest.mark.parametrize("share", [1.0, 0.9999999999999999])
def test_a_share_of_one_keeps_all(share):
    logits = random_logits(1000)
    for rule in (controls.keep_top_p, controls.keep_typical):
        assert len(kept(rule(logits, share))) >= 999  # the very last may be too small to count beside 1
        assert share < 1 or rule(logits, share) is logits


def test_rules_work_row_by_row_and_leave_their_input():
    logits = random_logits(3, 4, 50)
    before = logits.clone()
    rules = [
        lambda x: controls.add_bias(x, {3: 1.5, 7: -2.0}),
        lambda x: controls.ban(x, [1, 2]),
        lambda x: controls.penalize_repetition(x, [1, 1, 5], 1.3),
        lambda x: controls.penalize_presence(x, [1, 1, 5], 1.3),
        lambda x: controls.penalize_frequency(x, [1, 1, 5], 1.3),
        lambda x: controls.scale(x, 0.7),
        lambda x: controls.keep_top_k(x, 7),
        lambda x: controls.keep_top_p(x, 0.8),
        lambda x: controls.keep_min_p(x, 0.1),
        lambda x: controls.keep_typical(x, 0.8),
        controls.probabilities,
    ]
    for rule in rules:
        changed = rule(logits)
        assert changed.shape == logits.shape and not torch.equal(changed, before)
        assert torch.equal(logits, before)
        for i, j in itertools.product(range(3), range(4)):
            assert torch.equal(changed[i, j], rule(logits[i, j]))


# -- all together --------------------------------------------------------------------------------------------------

FULL = {
    "temperature": 0.8,
    "top_k": 400,
    "top_p": 0.97,
    "min_p": 1e-3,
    "typical_p": 0.9,
    "repetition_penalty": 1.3,
    "presence_penalty": 0.4,
    "frequency_penalty": 0.3,
    "no_repeat_ngram": 2,
    "logit_bias": {3: 2.0, 17: -1.0},
    "banned": [5, 6],
    "min_new_tokens": 4,
    "end_of_text": 49,
}

# The steps in the stated order. What exclusions have before and after them does not show, nor whether the temperature
# comes before top-k: they are in one step each here, so that any two neighbours can be told apart.
HISTORY = History([1, 2, 3, 17, 17, 8], [3, 3, 9])
STEPS = [
    lambda x: controls.add_bias(x, {3: 2.0, 17: -1.0, 9: 1.0}),
    lambda x: controls.penalize_repetition(x, HISTORY.prompt + HISTORY.new, 1.8),
    lambda x: controls.penalize_frequency(controls.penalize_presence(x, HISTORY.new, 0.3), HISTORY.new, 0.2),
    lambda x: controls.keep_top_k(controls.scale(x, 1.7), 12),
    lambda x: controls.keep_top_p(x, 0.8),
    lambda x: controls.keep_min_p(x, 0.12),
    lambda x: controls.keep_typical(x, 0.7),
]
AS_STEPS = Controls(
    logit_bias={3: 2.0, 17: -1.0, 9: 1.0},
    repetition_penalty=1.8,
    presence_penalty=0.3,
    frequency_penalty=0.2,
    temperature=1.7,
    top_k=12,
    top_p=0.8,
    min_p=0.12,
    typical_p=0.7,
)


def composed(steps, logits: torch.Tensor) -> torch.Tensor:
    for step in steps:
        logits = step(logits)
    return controls.probabilities(logits)


def test_the_steps_are_composed_in_the_stated_order():
    for seed in range(200):
        logits = random_logits(30, seed=seed)
        found = AS_STEPS.distribution(logits[None], [HISTORY])[0]
        torch.testing.assert_close(found, composed(STEPS, logits), rtol=1e-12, atol=0)


@pytest.mark.parametrize("first", range(len(STEPS) - 1))
def test_two_neighbouring_steps_in_the_other_order_would_be_seen(first):
    swapped = [*STEPS[:first], STEPS[first + 1], STEPS[first], *STEPS[first + 2 :]]
    rows = [random_logits(30, seed=seed) for seed in range(200)]
    assert any(not torch.allclose(composed(STEPS, row), composed(swapped, row), rtol=1e-6) for row in rows)


def test_penalties_look_where_they_say():
    history, logits = History([1], [2]), torch.ones(1, 4)
    assert Controls(repetition_penalty=2.0).adjust(logits, [history]).tolist() == [[1, 0.5, 0.5, 1]]
    assert Controls(presence_penalty=2.0).adjust(logits, [history]).tolist() == [[1, 1, -1, 1]]
    assert Controls(frequency_penalty=2.0).adjust(logits, [history]).tolist() == [[1, 1, -1, 1]]
    assert Controls(no_repeat_ngram=1).adjust(logits, [history]).tolist() == [[1, -INF, -INF, 1]]


def test_end_of_text_is_excluded_until_enough_tokens_are_made():
    controls_ = Controls(min_new_tokens=2, end_of_text=0, temperature=0)
    logits = torch.tensor([[9.0, 1.0]] * 3)
    assert controls_.choose(logits, [History([1] * 5, [1] * n) for n in (0, 1, 2)], [0.0] * 3) == [1, 1, 0]


def test_where_nothing_is_left_rules_give_way():
    logits, history = torch.tensor([[1.0, 2.0, 3.0]]), [History([0, 1, 2], [])]
    assert Controls(no_repeat_ngram=1).adjust(logits, history) is not logits
    assert torch.equal(Controls(no_repeat_ngram=1).adjust(logits, history), logits)
    both = Controls(no_repeat_ngram=1, banned=[2], temperature=0)
    assert both.choose(logits, history, [0.0]) == [1]
    early = Controls(no_repeat_ngram=1, banned=[0, 1], min_new_tokens=1, end_of_text=2)
    assert early.distribution(logits, history).tolist() == [[0, 0, 1]]
    with pytest.raises(UserError, match="the 3 of them leave no token to choose among 3"):
        Controls(banned=[0, 1, 2, 2]).adjust(logits, history)


@pytest.mark.parametrize("temperature", [0, 0.7])
@pytest.mark.parametrize("bad", [[math.nan, 0.0], [math.nan, math.nan], [INF, 0.0], [-INF, -INF]])
def test_logits_that_are_no_numbers_are_refused(bad, temperature):
    for chosen in ({}, {"banned": [0]}, {"top_k": 1}):
        if bad[1] == 0 and chosen.get("banned"):
            continue  # what is banned does not matter any more
        with pytest.raises(UserError, match=r"not finite numbers|leave no token"):
            Controls(temperature=temperature, **chosen).choose(torch.tensor([bad]), NOWHERE, [0.5])


def test_nothing_on_costs_nothing():
    logits = random_logits(2, 9)
    assert Controls(temperature=0.3, top_k=2, top_p=0.5).adjust(logits, NOWHERE * 2) is logits


@settings(max_examples=60)
@given(SEEDS, st.sets(st.sampled_from(sorted(set(FULL) - {"end_of_text"}))), st.floats(1e-6, 100))
def test_a_distribution_sums_to_one_and_is_what_is_drawn_from(seed, names, temperature):
    chosen = {**{name: FULL[name] for name in names}, "temperature": temperature, "end_of_text": 49}
    logits, histories = random_logits(3, 500, seed=seed), [HISTORY, History([4], []), History([], [7, 7])]
    uniforms = torch.rand(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    some = Controls(**chosen)
    distribution = some.distribution(logits, histories)
    assert distribution.dtype == torch.float64 and (distribution >= 0).all()
    assert torch.allclose(distribution.sum(-1), torch.ones(3, dtype=torch.float64), rtol=1e-12)
    assert some.choose(logits, histories, uniforms) == draw(distribution, uniforms).tolist()


def test_rows_do_not_depend_on_their_batch():
    full = Controls(**{**FULL, "end_of_text": 50_256})
    logits = random_logits(7, 50_257, dtype=torch.float32)
    histories = [History(list(range(b, 40 + b)), list(range(b)) * 2) for b in range(7)]
    uniforms = torch.rand(7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for some in (full, dataclasses.replace(full, top_k=None), dataclasses.replace(full, temperature=0), Controls()):
        adjusted, distribution = some.adjust(logits, histories), some.distribution(logits, histories)
        tokens = some.choose(logits, histories, uniforms)
        for rows in ([3], [6, 0], [5, 4, 3, 2, 1, 0]):
            picked = logits[rows], [histories[b] for b in rows]
            assert torch.equal(some.adjust(*picked), adjusted[rows])
            assert torch.equal(some.distribution(*picked), distribution[rows])
            assert some.choose(*picked, uniforms[rows]) == [tokens[b] for b in rows]


def test_a_choice_keeps_no_state_and_leaves_its_input():
    full, logits, history = Controls(**FULL), random_logits(1, 60), copy.deepcopy(HISTORY)
    before = logits.clone()
    first = full.choose(logits, [history], [0.4])
    full.choose(random_logits(1, 60, seed=3), [History([8], [9])], [0.9])
    assert full.choose(logits, [history], [0.4]) == first
    assert torch.equal(logits, before) and history == HISTORY


def test_there_must_be_as_many_histories_and_numbers_as_rows():
    for histories, uniforms in ((NOWHERE, [0.1, 0.2]), (NOWHERE * 2, [0.1])):
        with pytest.raises(ValueError, match="zip"):
            Controls(banned=[0]).choose(torch.zeros(2, 3), histories, uniforms)


# -- greedy, temperatures, precisions ----------------------------------------------------------------------------


@given(ROWS, st.none() | st.integers(1, 40))
def test_temperature_zero_takes_the_largest_and_of_equals_the_lowest_id(row, top_k):
    greedy = Controls(temperature=0, top_k=top_k)
    likeliest = max(range(len(row)), key=lambda i: (row[i], -i))
    assert greedy.choose(torch.tensor([row]), NOWHERE, [0.99]) == [likeliest]
    assert greedy.distribution(torch.tensor([row]), NOWHERE)[0].nonzero().tolist() == [[likeliest]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_lowest_of_equals_in_long_rows_too(dtype):
    logits = torch.randint(3, (4, 50_257), generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = [int((row == 2).nonzero()[0]) for row in logits]
    assert Controls(temperature=0).choose(logits, NOWHERE * 4, [0.5] * 4) == expected


@pytest.mark.parametrize("temperature", [1e-2, 1e-6, 1e-30, 1e-44, 1e-300, 5e-324])
@pytest.mark.parametrize("size", [1.0, 1e4, 1e30])
@pytest.mark.parametrize("truncation", [{}, {"top_k": 2}, {"top_p": 0.6}, {"min_p": 0.3}, {"typical_p": 0.6}])
def test_a_tiny_temperature_is_greedy_and_overflows_nothing(temperature, size, truncation):
    some = Controls(temperature=temperature, **truncation)
    for row, expected in (([-3.0, 1.0, 2.0, 0.0], [0, 0, 1, 0]), ([0.0, 2.0, 2.0], [0, 0.5, 0.5])):
        found = some.distribution(torch.tensor([row]) * size, NOWHERE)[0]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-40)


def test_a_huge_temperature_makes_all_alike():
    assert Controls(temperature=1e30).distribution(random_logits(1, 8), NOWHERE).tolist() == [[0.125] * 8]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_taken_at_its_value(dtype):
    logits = random_logits(1, 400, dtype=dtype)
    full = Controls(**FULL)
    assert full.adjust(logits, [HISTORY]).dtype == torch.float32
    for some in (full, Controls(top_p=0.9, typical_p=0.9), Controls(min_p=0.1), Controls(top_k=20)):
        assert torch.equal(some.distribution(logits, [HISTORY]), some.distribution(logits.float(), [HISTORY]))


def test_logits_that_track_gradients_will_do():
    logits = random_logits(1, 20).requires_grad_()
    assert len(Controls(top_p=0.9, typical_p=0.9, logit_bias={1: 1.0}).choose(logits, NOWHERE, [0.5])) == 1


# -- the draw ----------------------------------------------------------------------------------------------------

LAST = 1 - 2**-53  # the largest number below 1


@given(
    st.lists(st.just(0.0) | st.floats(1e-300, 1) | st.sampled_from([0.1, 1 / 3]), min_size=1, max_size=40),
    st.sampled_from([0.0, 5e-324, 2**-53, 0.5, LAST]) | st.floats(0, LAST),
)
def test_a_draw_inverts_the_cumulative_distribution(weights, uniform):
    assume(sum(weights) > 0)
    row = torch.tensor(weights, dtype=torch.float64)
    token = int(draw(row, torch.tensor(uniform, dtype=torch.float64)))
    assert row[token] > 0
    below, total = math.fsum(weights[:token]), math.fsum(weights)
    assert below <= uniform * total * (1 + 1e-12) and uniform * total <= (below + weights[token]) * (1 + 1e-12)


def test_a_draw_never_gives_what_is_excluded_at_either_end():
    rows = torch.tensor([[0.0, 0.3, 0.7, 0.0]] * 2, dtype=torch.float64)
    assert draw(rows, torch.tensor([0.0, LAST], dtype=torch.float64)).tolist() == [1, 2]
    some = Controls(banned=[0, 50_256])
    assert some.choose(torch.zeros(1, 50_257), NOWHERE, [0.0])[0] > 0
    assert some.choose(torch.zeros(1, 50_257), NOWHERE, [LAST])[0] < 50_256


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [None, 1, 3, 5, 8, 100])
def test_tokens_follow_the_softmax(temperature, top_k):
    row, n = [1.5, -0.5, 0.0, 3.0, 3.0, -9.0, 0.7, 2.2], 4000
    uniforms = torch.rand(n, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    some = Controls(temperature=temperature, top_k=top_k)
    counts = torch.bincount(torch.tensor(some.choose(torch.tensor([row] * n), NOWHERE * n, uniforms)), minlength=8).double()
    allowed = sorted(range(8), key=lambda i: (-row[i], i))[:top_k]
    chances = softmax([row[i] / temperature for i in allowed])
    expected = torch.zeros(8, dtype=torch.float64).index_put((torch.tensor(allowed),), n * torch.tensor(chances).double())
    assert not counts[expected == 0].any()
    rare = (expected > 0) & (expected < 5)  # chi-square is meant for five and more: these are counted together
    observed = torch.cat([counts[expected >= 5], counts[rare].sum()[None]])
    wanted = torch.cat([expected[expected >= 5], expected[rare].sum()[None]])
    chi_square = float(((observed - wanted) ** 2 / wanted)[wanted > 0].sum())
    assert chi_square < 30  # at most 7 degrees of freedom: a right sampler exceeds it once in 10,000 seeds; this one is fixed


def test_evenly_spread_numbers_give_each_token_its_share():
    row = torch.tensor(softmax([1.5, -0.5, 0.0, 3.0, 3.0, -9.0, 0.7, 2.2]), dtype=torch.float64)
    n = 100_000
    tokens = draw(row.expand(n, -1).contiguous(), (torch.arange(n, dtype=torch.float64) + 0.5) / n)
    assert (tokens.diff() >= 0).all()
    assert (torch.bincount(tokens, minlength=8) - n * row).abs().max() <= 1


# -- tokens that a user names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "token"),
    [(" the", 262), ("id:262", 262), ("id:0", 0), ("id:50256", 50_256), ("<|endoftext|>", 50_256), ("\n", 198), ("The", 464)],
)
def test_a_token_by_its_text_or_number(text, token):
    assert token_id(GPT2, text) == token


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (" New York", "this text is 2 tokens, ' New' (id:968), ' York' (id:1971); a token can also be given by its number"),
        ("", "this text is no token"),
        ("id:50257", "there is no such token: they are id:0 to id:50256"),
        ("id:-1", "this text is 3 tokens"),
        ("262", "write id:262 for the token of that number; the text is '262' (id:29119)"),
        ("é1", "this text is 2 tokens"),
    ],
)
def test_what_is_no_token_is_refused(text, message):
    with pytest.raises(TokenizerError) as caught:
        token_id(GPT2, text)
    assert message in str(caught.value)


def test_tokens_of_characters():
    tokenizer = CharTokenizer.from_corpus(["abc 1"])
    assert [token_id(tokenizer, text) for text in ("b", " ", "id:1", "<|endoftext|>")] == [3, 0, 1, 5]
    for text in ("z", "ab", "1"):
        with pytest.raises(TokenizerError):
            token_id(tokenizer, text)


def test_controls_from_settings():
    sampling = SamplingConfig(
        **{name: value for name, value in FULL.items() if name not in ("logit_bias", "banned", "end_of_text")},
        logit_bias={" the": -2.0, "id:5": 1.0},
        banned=["<|endoftext|>", " a"],
    )
    expected = {**FULL, "logit_bias": {262: -2.0, 5: 1.0}, "banned": [50_256, 257], "end_of_text": 50_256}
    assert Controls.from_config(sampling, GPT2) == Controls(**expected)
    assert Controls.from_config(SamplingConfig(), GPT2) == Controls(end_of_text=50_256, banned=[])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"banned": [" a", "New York"]}, "sampling.banned=New York: must be one token, but this text is 2 tokens"),
        ({"logit_bias": {"id:99999": 1.0}}, "sampling.logit_bias=id:99999: there is no such token"),
        ({"logit_bias": {" the": 1.0, "id:262": 2.0}}, "two entries are the token id:262"),
    ],
)
def test_a_setting_that_names_no_token_is_refused_by_name(setting, message):
    with pytest.raises(ConfigError) as caught:
        Controls.from_config(SamplingConfig(**setting), GPT2)
    assert message in str(caught.value)


# -- the settings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"min_new_tokens": 101}, "min_new_tokens=101: must be at most max_new_tokens, which is 100"),
        ({"max_new_tokens": 0}, "max_new_tokens=0: must be at least 1"),
        ({"temperature": -1}, "temperature=-1: must be at least 0"),
        ({"top_k": 0}, "top_k=0: must be at least 1"),
        ({"top_p": 0}, "top_p=0: must be above 0 and at most 1"),
        ({"top_p": 1.1}, "top_p=1.1: must be above 0 and at most 1"),
        ({"min_p": 0}, "min_p=0: must be above 0 and at most 1"),
        ({"typical_p": 2}, "typical_p=2: must be above 0 and at most 1"),
        ({"repetition_penalty": 0}, "repetition_penalty=0: must be at least 0.01"),
        ({"no_repeat_ngram": 0}, "no_repeat_ngram=0: must be at least 1"),
        ({"logit_bias": {"a": "b"}}, "expected a number for 'a', not b"),
        ({"stop": ["\n", ""]}, "an empty string is everywhere"),
        ({"samples": 0}, "samples=0: must be at least 1"),
        ({"samples": 2, "temperature": 0}, "samples=2: at temperature=0 they would all be the same"),
        ({"beams": 2}, "beams=2: beam search draws nothing: it needs temperature=0, not 1.0"),
        ({"beams": 2, "temperature": 0, "samples": 3}, "samples=3: beam search finds at most as many texts as beams, 2"),
        ({"beams": 2, "temperature": 0, "top_logprobs": 0}, "top_logprobs=0: cannot be given with beam search"),
        ({"length_penalty": 0.5}, "length_penalty=0.5: is for beam search"),
        ({"top_logprobs": -1}, "top_logprobs=-1: must be at least 0"),
    ],
)
def test_settings_that_cannot_be_used(data, message):
    with pytest.raises(ConfigError) as caught:
        check(SamplingConfig, data)
    assert message in str(caught.value)


def test_settings_that_go_together():
    assert check(SamplingConfig, {"beams": 3, "temperature": 0, "samples": 3, "length_penalty": 0}).samples == 3
    assert check(SamplingConfig, {"samples": 3, "top_logprobs": 5}).top_logprobs == 5
    assert check(SamplingConfig, {"min_new_tokens": 100}).min_new_tokens == 100
