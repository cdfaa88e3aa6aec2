"""Language modelling: Hugging Face's loss, and an evaluation that no grouping into batches can change."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import tokenizer_of
from transformers import GPT2Config, GPT2LMHeadModel

from gpt2x.config.instantiate import instantiate
from gpt2x.data.batch import Batch
from gpt2x.data.windows import WindowedData
from gpt2x.model.gpt import GPT
from gpt2x.task.config import LanguageModelingConfig
from gpt2x.task.lm import LanguageModeling
from gpt2x.tokenizer.gpt2 import GPT2Tokenizer

VOCAB, T = 50, 16
LENGTHS = np.random.default_rng(0).integers(0, 9, VOCAB)  # bytes of each token


@pytest.fixture(scope="module")
def model() -> GPT:
    """A small model whose predictions are far from uniform, so that windows differ much in their loss."""
    model = GPT(vocab_size=VOCAB, n_layer=2, n_head=2, n_embd=16, context_length=T, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(12 if parameter.dim() == 2 else 1)
    return model.eval()


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    return np.random.default_rng(1).integers(0, VOCAB, 1000).astype(np.uint16)


@pytest.fixture
def task() -> LanguageModeling:
    return instantiate(LanguageModelingConfig(), tokenizer_of(LENGTHS), {})


def windowed(tokens: np.ndarray, n_val: int, eval_batch_size: int) -> WindowedData:
    return WindowedData(
        {"train": tokens, "val": tokens[:n_val]},
        context_length=T,
        batch_size=5,
        eval_batch_size=eval_batch_size,
        stride=None,
        drop_last=False,
        shuffle=True,
        seed=1,
        name="random",
    )


def nats_window_by_window(model: GPT, tokens: np.ndarray) -> list[float]:
    """The loss of each predicted token by another road: float64 throughout, one window at a time, softmax written out."""
    model, nats = copy.deepcopy(model).double(), []
    for start in range(0, len(tokens) - 1, T):
        window = [int(t) for t in tokens[start : start + T + 1]]
        with torch.no_grad():
            logits = model(torch.tensor([window[:-1]]))[0].numpy()
        nats += [math.log(np.exp(row).sum()) - row[target] for row, target in zip(logits, window[1:], strict=True)]
    assert len(nats) == len(tokens) - 1
    return nats


def test_the_loss_is_the_sum_of_hugging_faces():
    model = GPT(vocab_size=VOCAB, n_layer=1, n_head=2, n_embd=16, context_length=T).double()
    reference = GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCAB, n_positions=T, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    )
    state = {name: p.detach().T if p.dim() == 2 and ".c_" in name else p.detach() for name, p in model.named_parameters()}
    reference.transformer.load_state_dict(state)
    text = torch.randint(VOCAB, (4, T), generator=torch.Generator().manual_seed(0))
    theirs = reference.double().eval()(text, labels=text).loss.item()  # they move the labels by one, and average
    batch = Batch(text[:, :-1], text[:, 1:], weight=4 * (T - 1))
    ours = LanguageModeling(tokenizer_of(LENGTHS), {}).loss(model, batch)
    assert ours.shape == ()
    assert ours.item() / batch.weight == pytest.approx(theirs, rel=1e-6)  # the softmax is taken in float32


def test_the_loss_is_what_is_differentiated(model, task):
    """Its gradient with respect to the logits is softmax minus one-hot, for every token with the same weight."""

    class Logits(torch.nn.Module):
        def forward(self, tokens):
            return logits

    logits = torch.randn(3, T, VOCAB, generator=torch.Generator().manual_seed(0), requires_grad=True)
    targets = torch.randint(VOCAB, (3, T), generator=torch.Generator().manual_seed(1))
    task.loss(Logits(), Batch(targets, targets, weight=3 * T)).backward()
    expected = logits.detach().softmax(-1) - F.one_hot(targets, VOCAB)
    torch.testing.assert_close(logits.grad, expected, atol=1e-6, rtol=0)  # float32


@pytest.mark.parametrize("n_val", [1000, 1 + 40 * T, 10, 2])
@pytest.mark.parametrize("eval_batch_size", [1, 7, 64])
def test_an_evaluation_equals_that_of_each_window_alone_for_every_batch_size(model, tokens, task, n_val, eval_batch_size):
    nats = nats_window_by_window(model, tokens[:n_val])
    metrics = task.evaluate(model, windowed(tokens, n_val, eval_batch_size).eval_batches("val"))
    # The model computes in float32: 1e-6 is its precision for losses of this size, not an allowance for the grouping.
    assert metrics["loss"] == pytest.approx(np.mean(nats), rel=1e-6)
    assert metrics["perplexity"] == pytest.approx(math.exp(np.mean(nats)), rel=1e-5)
    n_bytes = sum(int(LENGTHS[t]) for t in tokens[1:n_val])
    assert metrics["bpb"] == pytest.approx(sum(nats) / math.log(2) / n_bytes, rel=1e-6)


def test_an_evaluation_is_the_same_to_the_last_digits_for_every_batch_size(model, tokens, task):
    double = copy.deepcopy(model).double()
    results = [task.evaluate(double, windowed(tokens, 1000, size).eval_batches("val")) for size in (1, 2, 7, 64, 1000)]
    for result in results[1:]:
        assert result == pytest.approx(results[0], rel=1e-8)  # sums of float32 losses: nothing but their last digit may differ


def test_bits_per_byte_of_a_model_that_knows_nothing_are_the_bits_of_the_alphabet(task):
    """Uniform over 256 single bytes is 8 bits a byte; end-of-text costs bits too and stands for no byte."""

    class Uniform(torch.nn.Module):
        def forward(self, tokens):
            return torch.zeros(*tokens.shape, 256)

    targets = torch.arange(200).view(2, 100)
    task = LanguageModeling(tokenizer_of(np.ones(256, dtype=np.int64)), {})
    metrics = task.evaluate(Uniform(), [Batch(targets, targets, weight=200)])
    assert metrics == {"loss": pytest.approx(math.log(256)), "perplexity": pytest.approx(256), "bpb": pytest.approx(8)}
    lengths = np.ones(256, dtype=np.int64)
    lengths[100:] = 0
    metrics = LanguageModeling(tokenizer_of(lengths), {}).evaluate(Uniform(), [Batch(targets, targets, weight=200)])
    assert metrics["bpb"] == pytest.approx(16)


def test_bits_per_byte_count_the_bytes_of_the_text(model):
    tokenizer = GPT2Tokenizer()
    text = "In 1842 the harbour had 17 boats, 3 cafés and one naïve gull.\n"
    ids = torch.from_numpy(tokenizer.encode(text).astype(np.int64))[None]

    class Halving(torch.nn.Module):
        """Gives the token that comes the probability 1/2."""

        def forward(self, tokens):
            logits = torch.full((*tokens.shape, tokenizer.vocab_size), -math.log(tokenizer.vocab_size - 1))
            return logits.scatter(-1, ids[:, 1:, None], 0.0)

    batch = Batch(ids[:, :-1], ids[:, 1:], weight=ids.shape[1] - 1)
    metrics = LanguageModeling(tokenizer, {}).evaluate(Halving(), [batch])
    assert metrics["perplexity"] == pytest.approx(2, rel=1e-5)
    assert metrics["bpb"] == pytest.approx((ids.shape[1] - 1) / (len(text.encode()) - len("In")), rel=1e-5)


def test_tokens_that_stand_for_no_bytes_have_no_bits_per_byte(model):
    batch = Batch(torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 3, dtype=torch.long), weight=3)
    assert math.isnan(LanguageModeling(tokenizer_of(np.zeros(VOCAB)), {}).evaluate(model, [batch])["bpb"])


def test_a_hopeless_model_has_a_finite_perplexity_and_a_diverged_one_none(task):
    class Certain(torch.nn.Module):
        def __init__(self, score):
            super().__init__()
            self.score = score

        def forward(self, tokens):
            return torch.zeros(*tokens.shape, VOCAB).index_fill(-1, torch.tensor([0]), self.score)

    batch = Batch(torch.ones(1, 3, dtype=torch.long), torch.ones(1, 3, dtype=torch.long), weight=3)
    metrics = task.evaluate(Certain(1e6), [batch])
    assert metrics["loss"] == pytest.approx(1e6)
    assert math.isfinite(metrics["perplexity"])
    diverged = task.evaluate(Certain(float("nan")), [batch])
    assert math.isnan(diverged["loss"])
    assert math.isnan(diverged["perplexity"])


@pytest.mark.parametrize("after", [0, 1, 3])
def test_stop_ends_the_evaluation_without_a_result_and_before_the_next_batch(model, tokens, task, after):
    read = []

    def batches():
        for batch in windowed(tokens, 1000, 4).eval_batches("val"):
            read.append(batch)
            yield batch

    assert task.evaluate(model, batches(), stop=lambda: len(read) > after) is None
    assert len(read) == after + 1


def test_evaluating_records_no_gradients_and_draws_no_random_numbers(model, tokens, task):
    state, recording = torch.random.get_rng_state(), []
    hook = model.register_forward_hook(lambda module, inputs, logits: recording.append(logits.requires_grad))
    task.evaluate(model, windowed(tokens, 100, 4).eval_batches("val"))
    hook.remove()
    assert set(recording) == {False}  # it would keep all activations in memory
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(p.grad is None for p in model.parameters())
    assert task.metric == "val/loss"
