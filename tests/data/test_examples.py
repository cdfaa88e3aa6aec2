"""Examples as batches: every row once an epoch in an order of the seed alone, and padding that is seen to be padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt2x.data.batch import IGNORED, Batch
from gpt2x.data.examples import Example, ExampleData
from gpt2x.errors import UserError


def next_tokens(lengths: list[int], packed: bool = False) -> list[Example]:
    """Examples of the given lengths, no two tokens alike, of which every third target is not asked for."""
    made, first = [], 1
    for n in lengths:
        tokens = np.arange(first, first + n)
        target = np.where(tokens % 3 == 0, IGNORED, tokens + 1)
        documents = (np.arange(n) >= n // 2).astype(np.int64) if packed else None
        made.append(Example(tokens, target, weight=int((target != IGNORED).sum()), documents=documents))
        first += n
    return made


def classes(lengths: list[int]) -> list[Example]:
    """The same tokens; the class of a row is its number modulo 3, and its weight a quarter more than its class."""
    return [Example(example.tokens, i % 3, weight=i % 3 + 0.25) for i, example in enumerate(next_tokens(lengths))]


def data(train: list[Example], val: list[Example] = (), **settings) -> ExampleData:
    settings = {"batch_size": 4, "eval_batch_size": 3, "shuffle": True, "seed": 1, "drop_last": False} | settings
    return ExampleData({"train": train, "val": list(val), "test": []}, name="mine", **settings)


def epoch(data: ExampleData, number: int) -> list[Batch]:
    per_epoch = data.batches_per_epoch
    return [data.train_batch(number * per_epoch + i) for i in range(per_epoch)]


def rows(batches: list[Batch]) -> list[int]:
    return [row for batch in batches for row in batch.rows.tolist()]


lengths = st.lists(st.integers(1, 12), min_size=1, max_size=60)
batch_sizes = st.integers(1, 9)
seeds = st.integers(0, 2**32 - 1)


# -- which rows, and when ---------------------------------------------------------------------------------------


@given(lengths=lengths, batch_size=batch_sizes, seed=seeds, number=st.integers(0, 1000), shuffle=st.booleans())
def test_every_row_comes_exactly_once_an_epoch(lengths, batch_size, seed, number, shuffle):
    batches = epoch(data(next_tokens(lengths), batch_size=batch_size, seed=seed, shuffle=shuffle), number)
    assert sorted(rows(batches)) == list(range(len(lengths)))
    sizes = sorted(len(batch.rows) for batch in batches)
    assert sizes[1:] == [batch_size] * (len(sizes) - 1)  # one batch at most is smaller, and none is empty
    assert sizes[0] == (len(lengths) - 1) % batch_size + 1


@given(lengths=lengths, batch_size=batch_sizes, seed=seeds, shuffle=st.booleans())
def test_drop_last_leaves_out_less_than_a_batch_and_not_always_the_same_rows(lengths, batch_size, seed, shuffle):
    settings = dict(batch_size=batch_size, seed=seed, shuffle=shuffle, drop_last=True)
    if len(lengths) < batch_size:
        with pytest.raises(UserError, match=rf"data=mine: an epoch has {len(lengths)} rows, less than data.batch_size"):
            data(next_tokens(lengths), **settings)
        return
    dropping = data(next_tokens(lengths), **settings)
    assert dropping.batches_per_epoch == len(lengths) // batch_size
    for number in range(3):
        batches = epoch(dropping, number)
        assert {len(batch.rows) for batch in batches} == {batch_size}
        assert len(set(rows(batches))) == len(lengths) // batch_size * batch_size
    if shuffle and len(lengths) % batch_size:
        seen = {row for number in range(200) for row in rows(epoch(dropping, number))}
        assert seen == set(range(len(lengths)))


@given(lengths=lengths, batch_size=batch_sizes, seed=seeds, indices=st.lists(st.integers(0, 5000), min_size=1, max_size=5))
def test_a_batch_is_a_function_of_the_seed_and_its_index_alone(lengths, batch_size, seed, indices):
    make = lambda: data(next_tokens(lengths), batch_size=batch_size, seed=seed)  # noqa: E731
    used = make()
    for index in indices:  # in any order, from what has been used and from what has not
        assert torch.equal(used.train_batch(index).inputs, make().train_batch(index).inputs)
        assert used.train_batch(index).description == make().train_batch(index).description


def test_another_seed_is_another_order_and_so_is_another_epoch():
    examples = next_tokens([5] * 200)
    orders = [tuple(rows(epoch(data(examples, seed=seed), number))) for seed in (1, 2) for number in (0, 1, 2)]
    assert len(set(orders)) == 6


@pytest.mark.parametrize("lengths", [[5] * 300, [1 + i % 30 for i in range(300)]], ids=["one length", "thirty lengths"])
def test_epochs_are_not_correlated(lengths):
    """A row's place in an epoch says nothing of its place in the next, nor who was in its batch of who will be."""
    shuffled = data(next_tokens(lengths), batch_size=10)
    places = np.array([np.argsort(rows(epoch(shuffled, number))) for number in range(60)])
    correlations = [np.corrcoef(places[i], places[i + 1])[0, 1] for i in range(59)]
    # Each has a standard error of 1/sqrt(300), or 1/sqrt(30) where the rows of a batch, being of one length, move together.
    error = (300 if len(set(lengths)) == 1 else 30) ** -0.5
    assert abs(np.mean(correlations)) < 4 * error / 59**0.5
    assert np.abs(correlations).max() < 4 * error
    # Over the epochs every row has been early and late: the mean of 60 uniform places is 150 +- 11.
    assert np.abs(places.mean(0) - 149.5).max() < 60
    if len(set(lengths)) == 1:  # 299 pairs of 300 rows meet with a chance of 9/299
        together = np.zeros((300, 300))
        for number in range(60):
            for batch in epoch(shuffled, number):
                together[np.ix_(batch.rows, batch.rows)] += 1
        met = together[~np.eye(300, dtype=bool)]
        assert met.mean() == pytest.approx(60 * 9 / 299)
        assert met.var() == pytest.approx(60 * 9 / 299 * 290 / 299, rel=0.1)  # that of a binomial distribution
        assert met.max() < 12


def test_without_shuffling_the_rows_come_in_their_order_in_every_epoch():
    in_order = data(next_tokens([7, 1, 5, 12, 3, 3, 9]), batch_size=3, shuffle=False)
    for number in (0, 1, 5):
        assert [batch.rows.tolist() for batch in epoch(in_order, number)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert rows(epoch(data(next_tokens([7, 1, 5, 12]), batch_size=3, shuffle=False, drop_last=True), 3)) == [0, 1, 2]


def test_a_batch_says_where_it_comes_from():
    batch = data(next_tokens([2, 2, 2]), batch_size=2, shuffle=False).train_batch(3)
    assert batch.description == "epoch 1, rows [2] of the training split"
    assert (batch.split, batch.rows.tolist()) == ("train", [2])


# -- what is in a batch -----------------------------------------------------------------------------------------


@given(lengths=lengths, batch_size=batch_sizes, seed=seeds, packed=st.booleans())
def test_padding_is_at_the_end_and_nothing_is_predicted_there(lengths, batch_size, seed, packed):
    examples = next_tokens(lengths, packed)
    for batch in epoch(data(examples, batch_size=batch_size, seed=seed), 0):
        assert batch.inputs.shape == batch.targets.shape == (len(batch.rows), max(lengths[row] for row in batch.rows))
        assert batch.lengths.tolist() == [lengths[row] for row in batch.rows]
        assert batch.tokens == sum(batch.lengths.tolist())
        assert (batch.documents is not None) == packed
        for b, row in enumerate(batch.rows):
            n = lengths[row]
            assert batch.inputs[b, :n].tolist() == examples[row].tokens.tolist()
            assert batch.targets[b, :n].tolist() == examples[row].target.tolist()
            assert (batch.targets[b, n:] == IGNORED).all()
            if packed:
                assert batch.documents[b, :n].tolist() == examples[row].documents.tolist()
                assert not np.isin(batch.documents[b, n:], examples[row].documents).any()  # padding belongs to no text
        assert batch.weight == (batch.targets != IGNORED).sum()


@given(lengths=lengths, batch_size=batch_sizes)
def test_classes_and_weights_are_those_of_the_rows(lengths, batch_size):
    examples = classes(lengths)
    batches = epoch(data(examples, batch_size=batch_size), 0)
    for batch in batches:
        assert batch.targets.tolist() == [row % 3 for row in batch.rows]
        assert batch.targets.dtype == torch.int64
        assert batch.weight == sum(row % 3 + 0.25 for row in batch.rows)
    assert sum(batch.weight for batch in batches) == sum(example.weight for example in examples)


@pytest.mark.parametrize(("n", "most"), [(200, 0.35), (1000, 0.1)])  # in pools of 6 and of 31 batches
def test_rows_of_about_one_length_share_a_batch(n, most):
    drawn = np.random.default_rng(0).integers(1, 200, n).tolist()

    def padding(shuffle: bool) -> float:
        batches = epoch(data(next_tokens(drawn), batch_size=8, shuffle=shuffle), 0)
        return sum(batch.inputs.numel() for batch in batches) / sum(drawn) - 1

    assert padding(shuffle=False) > 0.6  # of 8 uniform lengths the longest is 16/9 times their mean
    assert padding(shuffle=True) < most


def test_batches_of_short_rows_do_not_come_first():
    """They are sorted into batches, not the batches themselves: else an epoch would begin with what is easy to learn."""
    sorted_within = data(next_tokens([1 + i % 30 for i in range(300)]), batch_size=10)
    widths = np.array([[batch.inputs.shape[1] for batch in epoch(sorted_within, number)] for number in range(60)])
    slopes = [np.corrcoef(np.arange(30), row)[0, 1] for row in widths]
    assert abs(np.mean(slopes)) < 0.12  # the standard error of this mean is 1/sqrt(29 * 60) = 0.024


# -- evaluation -------------------------------------------------------------------------------------------------


@given(lengths=st.lists(st.integers(1, 12), max_size=40), batch_size=batch_sizes)
def test_an_evaluation_takes_every_row_once_short_ones_first(lengths, batch_size):
    examples = next_tokens(lengths)
    held_out = data(next_tokens([3]), examples, eval_batch_size=batch_size)
    batches = list(held_out.eval_batches("val"))
    assert sorted(rows(batches)) == list(range(len(lengths)))
    seen = [lengths[row] for row in rows(batches)]
    assert seen == sorted(seen)
    assert held_out.n_eval("val") == len(lengths)
    assert held_out.n_eval("test") == len(list(held_out.eval_batches("test"))) == 0
    assert {batch.split for batch in batches} <= {"val"}
    assert all(batch.lengths.tolist() == [lengths[row] for row in batch.rows] for batch in batches)
    assert all(len(batch.rows) == batch_size for batch in batches[:-1])


@given(lengths=lengths, maximum=st.integers(1, 70))
def test_a_maximum_takes_as_many_rows_from_all_over_the_split(lengths, maximum):
    trained = data(next_tokens(lengths))
    chosen = sorted(rows(list(trained.eval_batches("train", maximum))))
    assert len(set(chosen)) == len(chosen) == min(maximum, len(lengths))
    assert chosen == sorted(rows(list(trained.eval_batches("train", maximum))))  # the same each time
    if 1 < maximum < len(lengths):
        assert (chosen[0], chosen[-1]) == (0, len(lengths) - 1)
        steps = np.diff(chosen)
        assert steps.max() - steps.min() <= 1


# -- what it is -------------------------------------------------------------------------------------------------


def test_it_says_what_it_holds():
    held = data(next_tokens([5] * 1200), next_tokens([2, 9]))
    assert str(held) == "mine: 1,200 train + 2 val rows, of 2 to 9 tokens"
    assert held.batch_shape == "4 rows"
    assert str(data(next_tokens([3]), title="a table of mine")) == "a table of mine, of 3 to 3 tokens"
    with pytest.raises(UserError, match="data=mine: the training split has no rows"):
        data([])


def test_its_fingerprint_is_that_of_the_tokens():
    examples = next_tokens([3, 4])
    mine = data(examples, examples[:1]).fingerprint
    assert mine == data(next_tokens([3, 4]), next_tokens([3]), batch_size=1, seed=5, shuffle=False).fingerprint
    joined = Example(np.concatenate([e.tokens for e in examples]), np.concatenate([e.target for e in examples]))
    parted = Example(joined.tokens, joined.target, documents=np.array([0, 0, 0, 1, 1, 1, 1]))
    changed = Example(examples[0].tokens + 1, examples[0].target)
    others = [
        data(examples),
        data(examples[::-1], examples[:1]),
        data([joined], examples[:1]),
        data([parted], examples[:1]),
        data([changed, examples[1]], examples[:1]),
        data(examples[1:], examples[:1]),
    ]
    assert len({mine, *(other.fingerprint for other in others)}) == 7


def test_a_class_whose_texts_are_longer_is_not_alone_in_its_batches():
    examples = [Example(np.arange(40 if i % 2 else 5), i % 2) for i in range(400)]
    alone = sum(len(set(batch.targets.tolist())) == 1 for batch in epoch(data(examples, batch_size=8), 0))
    assert alone <= 3  # by chance one in 128 of 50; sorted by length, all but one would be
