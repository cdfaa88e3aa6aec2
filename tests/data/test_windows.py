"""Windows: each one once an epoch, in an order that depends on the seed and the step alone; evaluation reads all of a split."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2x.data.batch import Batch
from gpt2x.data.windows import WindowedData, permute
from gpt2x.errors import UserError


def windowed(n_tokens: int, context_length: int, **changes) -> WindowedData:
    """Data whose token at position i is the number i, so that a batch shows where it comes from."""
    splits = {"train": np.arange(n_tokens, dtype=np.uint32), "val": np.arange(changes.pop("n_val", 0), dtype=np.uint32)}
    defaults = {"batch_size": 4, "eval_batch_size": 4, "stride": None, "drop_last": False, "shuffle": True, "seed": 1}
    return WindowedData(splits, context_length=context_length, name="numbers", **(defaults | changes))


def starts(data: WindowedData, first: int, n_batches: int) -> list[int]:
    return [int(s) for i in range(first, first + n_batches) for s in data.train_batch(i).inputs[:, 0]]


def epoch_starts(data: WindowedData, epoch: int) -> list[int]:
    """Where the windows of one epoch begin, in order; needs drop_last=False."""
    first = epoch * data.n_windows
    batches = range(first // data.batch_size, (first + data.n_windows - 1) // data.batch_size + 1)
    skip = first - batches.start * data.batch_size
    return starts(data, batches.start, len(batches))[skip : skip + data.n_windows]


# -- the permutation ----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=200)
@given(n=st.integers(1, 5000), key=st.integers(0, 2**64 - 1))
def test_permute_is_a_bijection(n, key):
    assert np.array_equal(np.sort(permute(np.arange(n), n, key)), np.arange(n))


@pytest.mark.parametrize("n", [2**k + d for k in (2, 3, 8, 9, 12) for d in (-1, 0, 1)])
def test_permute_is_a_bijection_next_to_powers_of_two(n):
    for key in (0, 1, 2**63, 2**64 - 1):
        assert np.array_equal(np.sort(permute(np.arange(n), n, key)), np.arange(n))


def test_permute_needs_no_more_than_the_places_asked_for():
    whole = permute(np.arange(3001), 3001, key=7)
    places = np.array([5, 5, 3000, 0, 1234])
    assert np.array_equal(permute(places, 3001, key=7), whole[places])
    n = 10**15  # could not be written down as a list
    few = permute(np.arange(1000), n, key=7)
    assert len(set(few.tolist())) == 1000
    assert few.min() >= 0
    assert few.max() < n
    assert few.mean() == pytest.approx(n / 2, rel=0.1)  # sd of the mean of 1000 uniform numbers: 1.8 % of n / 2


def chi_square(counts: np.ndarray) -> float:
    return float(((counts - counts.mean()) ** 2 / counts.mean()).sum())


def test_every_order_of_three_comes_up_equally_often():
    keys = random.Random(0)
    orders = Counter(tuple(permute(np.arange(3), 3, keys.getrandbits(64)).tolist()) for _ in range(1200))
    assert set(orders) == set(itertools.permutations(range(3)))
    assert chi_square(np.array(list(orders.values()))) < 25  # 5 degrees of freedom: exceeded by 1 in 7,000 fair ones


@pytest.mark.parametrize("n", [10, 97])
def test_every_window_comes_to_every_place_about_equally_often(n):
    """Four rounds on so few numbers leave a bias of some percent: no matter for training, a broken mixer shows far more."""
    keys, trials = random.Random(n), 2500
    orders = np.array([permute(np.arange(n), n, keys.getrandbits(64)) for _ in range(trials)])
    for place in (0, n // 2, n - 1):
        bias = chi_square(np.bincount(orders[:, place], minlength=n)) / trials
        assert bias < (n + 5 * (2 * n) ** 0.5) / trials + 0.1**2  # five deviations of chance, and 10 % of bias
    followed_by_neighbour = (np.diff(orders, axis=1) == 1).mean()
    assert followed_by_neighbour == pytest.approx(1 / n, rel=0.35)


# -- training -----------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=150)
@given(
    n_tokens=st.integers(2, 400),
    T=st.integers(1, 40),
    stride=st.none() | st.integers(1, 50),
    batch_size=st.integers(1, 9),
    shuffle=st.booleans(),
    epoch=st.integers(0, 5) | st.integers(10**6, 10**9),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_window_comes_exactly_once_per_epoch(n_tokens, T, stride, batch_size, shuffle, epoch, seed):
    if n_tokens < T + 1:
        T = n_tokens - 1
    data = windowed(n_tokens, T, stride=stride, batch_size=batch_size, shuffle=shuffle, seed=seed)
    found = sorted(epoch_starts(data, epoch))
    if stride is None:
        n_windows, step, shift = max(1, (n_tokens - 1) // T - 1), T, found[0]
        assert shift >= 0
        assert found[-1] + T + 1 <= n_tokens
    else:
        n_windows, step, shift = len(range(0, n_tokens - T, stride)), stride, 0
    assert found == [shift + i * step for i in range(n_windows)]
    assert data.batches_per_epoch == pytest.approx(n_windows / batch_size)


def test_epochs_differ_in_order_and_in_shift():
    shifted, fixed = windowed(1000, 10), windowed(1000, 10, stride=10)
    for data, n_shifts in ((shifted, 15), (fixed, 1)):
        epochs = [epoch_starts(data, e) for e in range(40)]
        assert len({tuple(e) for e in epochs}) == 40
        assert len({tuple(sorted(e)) for e in epochs}) >= n_shifts  # 40 draws of 19 shifts: 16.8 different ones expected
        assert all(e != sorted(e) for e in epochs)
    assert {tuple(sorted(epoch_starts(fixed, e))) for e in range(40)} == {tuple(range(0, 990, 10))}


@pytest.mark.parametrize("n_tokens", [21, 25, 30, 31, 39, 137])
def test_every_token_has_its_turn_as_input_and_as_target(n_tokens):
    data = windowed(n_tokens, 10, batch_size=1)
    batches = [data.train_batch(i) for i in range(300 * data.n_windows)]
    assert {t for b in batches for t in b.inputs.flatten().tolist()} == set(range(n_tokens - 1))
    assert {t for b in batches for t in b.targets.flatten().tolist()} == set(range(1, n_tokens))


@settings(deadline=None)
@given(index=st.integers(0, 500), stride=st.none() | st.integers(1, 20), drop_last=st.booleans(), shuffle=st.booleans())
def test_a_batch_computed_alone_is_the_one_in_the_sequence(index, stride, drop_last, shuffle):
    settings = {"stride": stride, "drop_last": drop_last, "shuffle": shuffle, "n_val": 50, "batch_size": 3}
    sequence = windowed(200, 10, **settings)
    for i in range(index % 7):  # what was read before leaves no trace
        sequence.train_batch(i)
        list(sequence.eval_batches("val"))
    alone = windowed(200, 10, **settings).train_batch(index)
    assert torch.equal(sequence.train_batch(index).inputs, alone.inputs)
    assert torch.equal(sequence.train_batch(index).targets, alone.targets)


def test_the_order_is_the_seeds_alone():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    first = starts(windowed(1000, 10, seed=5), 0, 30)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    assert starts(windowed(1000, 10, seed=5), 0, 30) == first
    others = [starts(windowed(1000, 10, seed=s), 0, 30) for s in (0, 1, 4, 6, 2**32 - 1)]
    assert all(other != first for other in others)
    assert len({tuple(o) for o in others}) == 5


@pytest.mark.parametrize("batch_size", [1, 5, 16])
def test_the_order_of_windows_does_not_depend_on_the_batch_size(batch_size):
    assert (
        starts(windowed(500, 10, batch_size=batch_size), 0, 80 // batch_size)
        == starts(windowed(500, 10, batch_size=80), 0, 1)[: 80 // batch_size * batch_size]
    )


@pytest.mark.parametrize(("dtype", "largest"), [(np.uint16, 65_535), (np.uint32, 70_000)])
def test_targets_are_the_inputs_moved_by_one_and_the_tokens_of_the_source(dtype, largest):
    source = np.random.default_rng(0).integers(0, largest + 1, 2000).astype(dtype)
    source[[3, 77]] = 0, largest
    data = WindowedData(
        {"train": source},
        context_length=16,
        batch_size=8,
        eval_batch_size=8,
        stride=3,
        drop_last=False,
        shuffle=False,
        seed=1,
        name="random",
    )
    batch = data.train_batch(2)
    assert batch.inputs.dtype == batch.targets.dtype == torch.int64
    assert batch.inputs.shape == batch.targets.shape == (8, 16)
    assert batch.weight == 8 * 16
    assert torch.equal(batch.inputs[:, 1:], batch.targets[:, :-1])
    for row, start in enumerate(range(16 * 3, 24 * 3, 3)):
        assert batch.inputs[row].tolist() == source[start : start + 16].tolist()
        assert batch.targets[row].tolist() == source[start + 1 : start + 17].tolist()


def test_without_shuffle_windows_come_in_order_and_a_batch_goes_on_into_the_next_epoch():
    data = windowed(51, 10, stride=10, shuffle=False, batch_size=3)
    assert starts(data, 0, 4) == [0, 10, 20, 30, 40, 0, 10, 20, 30, 40, 0, 10]
    assert data.batches_per_epoch == pytest.approx(5 / 3)


def test_drop_last_ends_each_epoch_before_its_smaller_batch():
    data = windowed(1000, 10, stride=10, drop_last=True, batch_size=4)  # 99 windows: 24 batches, 3 windows left over
    assert data.batches_per_epoch == 24
    left_over = set()
    for epoch in range(20):
        found = starts(data, epoch * 24, 24)
        assert len(set(found)) == 96
        assert set(found) < set(range(0, 990, 10))
        left_over.update(set(range(0, 990, 10)) - set(found))
    assert len(left_over) > 30  # others each time: 60 draws from 99 give 45 different ones on average
    in_order = windowed(1000, 10, stride=10, drop_last=True, shuffle=False, batch_size=4)
    assert starts(in_order, 23, 2) == [920, 930, 940, 950, 0, 10, 20, 30]


@pytest.mark.parametrize(("T", "stride"), [(4, 4), (4, 1), (4, 2), (4, 7), (256, 256), (10, 1)])
def test_the_windows_of_the_book(T, stride):
    """GPTDatasetV1 of Raschka's "Build a Large Language Model (From Scratch)", chapter 2, word for word."""
    token_ids = np.random.default_rng(1).integers(0, 50_257, 1300).astype(np.uint16)
    input_ids, target_ids = [], []
    for i in range(0, len(token_ids) - T, stride):
        input_ids.append(token_ids[i : i + T])
        target_ids.append(token_ids[i + 1 : i + T + 1])
    data = WindowedData(
        {"train": token_ids},
        context_length=T,
        batch_size=2,
        eval_batch_size=2,
        stride=stride,
        drop_last=True,
        shuffle=False,
        seed=1,
        name="book",
    )
    assert data.batches_per_epoch == len(input_ids) // 2
    for i in range(len(input_ids) // 2):
        batch = data.train_batch(i)
        assert np.array_equal(batch.inputs.numpy(), np.stack(input_ids[2 * i : 2 * i + 2]))
        assert np.array_equal(batch.targets.numpy(), np.stack(target_ids[2 * i : 2 * i + 2]))


@pytest.mark.parametrize("drop_last", [False, True])
def test_step_two_to_the_forty_is_as_good_as_any(drop_last):
    data = windowed(1000, 10, stride=10, drop_last=drop_last, batch_size=9)  # 99 windows, 11 batches
    first = 2**40 // 11 * 11
    found = starts(data, first, 11)
    assert sorted(found) == list(range(0, 990, 10))
    assert found != starts(data, first + 11, 11)
    assert starts(data, 2**40, 1) == found[9 * (2**40 - first) :][:9]


def test_a_batch_larger_than_an_epoch_holds_several_epochs():
    data = windowed(41, 10, stride=10, batch_size=10)
    found = starts(data, 0, 2)
    assert all(sorted(found[i : i + 4]) == [0, 10, 20, 30] for i in range(0, 20, 4))


def test_one_window_is_enough():
    assert starts(windowed(11, 10, batch_size=2), 0, 2) == [0, 0, 0, 0]
    assert set(starts(windowed(20, 10, batch_size=2), 0, 200)) == set(range(10))  # and moves where there is room
    assert set(starts(windowed(29, 10, batch_size=2), 0, 400)) == set(range(19))


def test_a_batch_says_where_it_comes_from():
    batch = windowed(1000, 10, stride=10, batch_size=2, shuffle=False).train_batch(50)
    assert batch.description == "epoch 1, windows at tokens [10, 20]"
    assert batch.to(torch.device("cpu")) is batch
    moved = batch.to(torch.device("meta"))
    assert moved.inputs.device.type == moved.targets.device.type == "meta"
    assert (moved.weight, moved.description) == (batch.weight, batch.description)


# -- evaluation ---------------------------------------------------------------------------------------------


def predictions(batches: Iterable[Batch]) -> list[tuple[int, int]]:
    """Each prediction as (the position it is made at, the position it is made for)."""
    batches = list(batches)
    for batch in batches:
        assert batch.inputs.shape == batch.targets.shape
        assert batch.weight == batch.targets.numel()
    return [p for b in batches for p in zip(b.inputs.flatten().tolist(), b.targets.flatten().tolist(), strict=True)]


@settings(deadline=None, max_examples=200)
@given(n_val=st.integers(0, 300), T=st.integers(1, 50), eval_batch_size=st.integers(1, 70))
def test_evaluation_predicts_every_token_but_the_first_exactly_once(n_val, T, eval_batch_size):
    data = windowed(100, T, n_val=n_val, eval_batch_size=eval_batch_size)
    batches = list(data.eval_batches("val"))
    assert predictions(batches) == [(i, i + 1) for i in range(n_val - 1)]
    assert data.n_eval("val") == max(0, n_val - 1) == sum(b.weight for b in batches)
    assert all(len(b.inputs) <= eval_batch_size and b.inputs.shape[1] <= T for b in batches)


@settings(deadline=None, max_examples=200)
@given(n_val=st.integers(2, 300), T=st.integers(1, 50), max_windows=st.integers(1, 20), eval_batch_size=st.integers(1, 9))
def test_max_windows_takes_full_windows_from_all_over_the_split(n_val, T, max_windows, eval_batch_size):
    data = windowed(100, T, n_val=n_val, eval_batch_size=eval_batch_size)
    found = predictions(data.eval_batches("val", max_windows))
    whole = (n_val - 1) // T
    if whole <= max_windows:
        assert found == predictions(data.eval_batches("val"))
        return
    assert len(found) == max_windows * T
    first = [p for p, _ in found[::T]]
    assert first[0] == 0
    assert all(s % T == 0 for s in first)
    assert len(set(first)) == max_windows
    if max_windows > 1:  # evenly: gaps differ by one window at most, and the last window is among them
        gaps = np.diff(first) // T
        assert first[-1] == (whole - 1) * T
        assert gaps.min() >= 1
        assert gaps.max() - gaps.min() <= 1
    assert found == predictions(data.eval_batches("val", max_windows))


def test_a_training_split_can_be_evaluated_too():
    data = windowed(1000, 10)
    assert predictions(data.eval_batches("train")) == [(i, i + 1) for i in range(999)]


# -- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_tokens", "T"), [(5, 5), (2, 1024), (128, 128), (1, 4), (0, 4)])
def test_a_text_too_short_for_one_window_is_refused_with_numbers_and_a_remedy_that_works(n_tokens, T):
    with pytest.raises(UserError) as error:
        windowed(n_tokens, T)
    message = str(error.value)
    assert message.startswith(f"data=numbers: the training split has {n_tokens} tokens")
    assert f"{T + 1:,}" in message
    assert "Use more text" in message
    if n_tokens > 1:
        assert f"model.context_length={n_tokens - 1} or less" in message
        assert starts(windowed(n_tokens, n_tokens - 1), 0, 1) == [0] * 4
    else:
        assert "or model.context_length" not in message  # nothing short enough exists
    assert starts(windowed(T + 1, T), 0, 1) == [0] * 4


def test_drop_last_refuses_an_epoch_without_a_whole_batch():
    with pytest.raises(UserError, match=r"data=numbers: an epoch has 9 windows, .* data.batch_size=10, .*data.drop_last=true"):
        windowed(100, 10, stride=10, drop_last=True, batch_size=10)
    assert windowed(101, 10, stride=10, drop_last=True, batch_size=10).batches_per_epoch == 1


def test_it_says_how_much_there_is():
    assert str(windowed(12_345, 10, n_val=67)) == "numbers: 12,345 train + 67 val tokens"
    assert str(windowed(12_345, 10)) == "numbers: 12,345 train tokens"
