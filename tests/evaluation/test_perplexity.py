"""Perplexity against transformers running the published recipe, and against one token at a time."""

from __future__ import annotations

import contextlib
import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from gpt2x.config.option import ConfigError
from gpt2x.data.windows import WindowedData
from gpt2x.errors import UserError
from gpt2x.evaluation import perplexity
from gpt2x.evaluation.perplexity import Perplexity, Row
from gpt2x.model.gpt import GPT
from gpt2x.task.lm import LanguageModeling
from gpt2x.tokenizer.char import CharTokenizer

VOCAB, T, END = 40, 16, 39
LENGTHS = np.append(np.random.default_rng(0).integers(1, 9, VOCAB - 1), 0)  # bytes of each token; end-of-text has none
TOKENIZER = SimpleNamespace(end_of_text=END, token_lengths=lambda: LENGTHS)


def sharp_model() -> GPT:
    """A small model whose predictions are far from uniform and depend much on the context."""
    model = GPT(vocab_size=VOCAB, n_layer=2, n_head=2, n_embd=16, context_length=T, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(12 if parameter.dim() == 2 else 1)
    return model.eval()


MODEL = sharp_model()
DOUBLE = copy.deepcopy(MODEL).double()


def evaluate(tokens, *, model=MODEL, tokenizer=TOKENIZER, reference=None, **changes) -> dict:
    corpus = SimpleNamespace(name="random", tokens=lambda tokenizer: {"val": np.asarray(tokens, dtype=np.uint16)})
    options = dict(mode="strided", context_length=None, stride=None, batch_size=4, against_fp32=reference is not None)
    measure = Perplexity(model, tokenizer, autocast=contextlib.nullcontext, reference=lambda: reference, **(options | changes))
    return measure.evaluate(corpus, "val")


def random_tokens(n: int, seed: int = 1, end_every: int | None = None) -> np.ndarray:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, END, n)
    if end_every is not None:
        tokens[rng.random(n) < 1 / end_every] = END
    return tokens


def log_probabilities(context: list[int], model: GPT = DOUBLE) -> np.ndarray:
    """The model's log-probabilities of the next token, in float64, softmax written out."""
    with torch.no_grad():
        logits = model(torch.tensor([context]))[0, -1].numpy()
    return logits - math.log(np.exp(logits - logits.max()).sum()) - logits.max()


def brute_force(tokens: list[int], context_length: int, stride: int) -> float:
    """Nats of tokens[1:], each computed by itself from the first window that reaches as far as it."""
    nats = 0.0
    for i in range(1, len(tokens)):
        window = max(0, math.ceil((i - context_length) / stride))
        nats -= log_probabilities([int(t) for t in tokens[window * stride : i]])[tokens[i]]
    return nats


def hugging_face_recipe(model: GPT2LMHeadModel, tokens: np.ndarray, max_length: int, stride: int) -> tuple[float, int]:
    """Mean nats and the number of tokens, from windows of `max_length`, of each only what no earlier one has scored."""
    row, nats, count, reached = torch.from_numpy(tokens)[None], 0.0, 0, 0
    for begin in range(0, len(tokens), stride):
        end = min(begin + max_length, len(tokens))
        labels = row[:, begin:end].clone()
        labels[:, : reached - begin] = -100
        scored = int((labels[:, 1:] != -100).sum())  # they move the labels by one, and average over what is left
        if scored:
            nats += model(row[:, begin:end], labels=labels).loss.item() * scored
        count, reached = count + scored, end
        if end == len(tokens):
            break
    return nats / count, count


@pytest.fixture(scope="module")
def theirs() -> GPT2LMHeadModel:
    config = GPT2Config(vocab_size=VOCAB, n_positions=T, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    reference = GPT2LMHeadModel(config)
    named = DOUBLE.named_parameters()
    reference.transformer.load_state_dict({n: p.detach().T if p.dim() == 2 and ".c_" in n else p.detach() for n, p in named})
    return reference.double().eval()


@pytest.mark.parametrize("stride", [1, 5, 8, 15])
@pytest.mark.parametrize("n", [2, T - 1, T, T + 1, 200])
def test_strided_is_hugging_faces_recipe_on_the_same_weights_and_tokens(theirs, n, stride):
    tokens = random_tokens(n)
    with torch.no_grad():
        loss, count = hugging_face_recipe(theirs, tokens, T, stride)
    ours = evaluate(tokens, model=DOUBLE, context_length=T - 1, stride=stride)
    assert ours["tokens"] == count == n - 1
    assert ours["loss"] == pytest.approx(loss, rel=1e-6)  # cross-entropies are taken in float32
    assert ours["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)


@settings(deadline=None, max_examples=25)
@given(
    n=st.integers(2, 70), length=st.integers(1, T), stride=st.integers(1, T), batch=st.integers(1, 9), seed=st.integers(0, 9)
)
def test_strided_is_each_token_by_itself(n, length, stride, batch, seed):
    stride = min(stride, length)
    tokens = random_tokens(n, seed, end_every=8)
    got = evaluate(tokens, context_length=length, stride=stride, batch_size=batch)
    assert got["tokens"] == n - 1
    assert got["loss"] == pytest.approx(brute_force(tokens, length, stride) / (n - 1), rel=1e-5)
    assert got["bytes"] == LENGTHS[tokens[1:]].sum()


def documents_of(tokens) -> list[list[int]]:
    """The documents, each with its closing end-of-text; the last may lack one."""
    documents = [[]]
    for token in map(int, tokens):
        documents[-1].append(token)
        if token == END:
            documents.append([])
    return [document for document in documents if document]


@settings(deadline=None, max_examples=25)
@given(
    n=st.integers(1, 70),
    every=st.sampled_from([2, 10, 50]),
    stride=st.integers(1, T),
    batch=st.integers(1, 9),
    seed=st.integers(0, 9),
)
def test_documents_are_each_document_by_itself(n, every, stride, batch, seed):
    tokens = random_tokens(n, seed, end_every=every)
    documents = documents_of(tokens)
    nats = sum(brute_force([END, *document], T, stride) for document in documents)
    got = evaluate(tokens, mode="documents", stride=stride, batch_size=batch)
    assert (got["documents"], got["tokens"]) == (len(documents), n)
    assert got["loss"] == pytest.approx(nats / n, rel=1e-5)
    assert got["bytes"] == LENGTHS[tokens].sum()


def test_a_document_does_not_see_its_neighbours_and_the_strided_row_does():
    first, other, second = ([*random_tokens(9, seed), END] for seed in (1, 2, 3))
    alone = {mode: evaluate(second, mode=mode)["loss"] for mode in ("documents", "strided")}

    def nats_of_second(mode: str, before: list[int]) -> float:
        both, one = evaluate([*before, *second], mode=mode), evaluate(before, mode=mode)
        return both["loss"] * both["tokens"] - one["loss"] * one["tokens"]

    for before in (first, other, [END]):
        assert nats_of_second("documents", before) == pytest.approx(10 * alone["documents"], rel=1e-5)
    assert abs(nats_of_second("strided", first) - nats_of_second("strided", other)) > 0.1


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=8),
    context=st.integers(1, 20),
    stride=st.integers(1, 20),
    batch=st.integers(1, 9),
)
def test_every_token_is_counted_once_with_as_much_context_as_promised(lengths, context, stride, batch):
    stride = min(stride, context)
    ends = np.cumsum(lengths)
    row = Row(np.arange(1, ends[-1] + 1), np.array([0, *ends[:-1]]), ends, before=0)  # token i stands for its own place
    seen = []
    for inputs, counted, targets in row.batches(row.windows(context, stride), batch):
        assert inputs.shape == counted.shape
        assert inputs.shape[1] <= context
        assert (inputs[counted] + 1 == targets).all()
        for window, mask in zip(inputs, counted):
            for place in torch.nonzero(mask).flatten().tolist():
                document = ends.searchsorted(int(window[place]), side="right")
                begin = 0 if document == 0 else ends[document - 1]
                assert window[0] >= begin
                assert place + 1 >= min(int(window[place]) + 1 - begin, context - stride + 1)
        seen += targets.tolist()
    assert sorted(seen) == list(range(1, ends[-1] + 1))


@pytest.mark.parametrize("mode", ["documents", "strided"])
def test_the_result_does_not_depend_on_the_batch_size(mode):
    tokens = random_tokens(900, end_every=12)
    results = [evaluate(tokens, mode=mode, batch_size=size) for size in (1, 2, 7, 64, 1000)]
    for result in results[1:]:
        assert result["loss"] == pytest.approx(results[0]["loss"], rel=1e-6)
        assert result["tokens"] == results[0]["tokens"]


def test_windows_end_to_end_give_the_validation_loss_of_training():
    tokens = random_tokens(5 * T + 7)
    batching = dict(batch_size=2, eval_batch_size=3, stride=None, drop_last=False, shuffle=True)
    data = WindowedData({"train": tokens, "val": tokens}, context_length=T, seed=1, name="random", **batching)
    training = LanguageModeling(TOKENIZER, {}).evaluate(MODEL, data.eval_batches("val"))
    ours = evaluate(tokens, stride=T)
    assert {name: ours[name] for name in training} == pytest.approx(training, rel=1e-6)
    assert ours["windows"] == 6


def uniform_model(vocab_size: int) -> GPT:
    model = GPT(vocab_size=vocab_size, n_layer=1, n_head=1, n_embd=4, context_length=8)
    torch.nn.init.zeros_(model.wte.weight)
    return model.eval()


@pytest.mark.parametrize("mode", ["documents", "strided"])
def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary(mode):
    got = evaluate(random_tokens(100, end_every=9), mode=mode, model=uniform_model(VOCAB))
    assert got["perplexity"] == pytest.approx(VOCAB, rel=1e-6)


def test_bits_per_byte_of_a_known_text():
    """Eight ids, so three bits a character: 5 characters of one byte and one of three make 18 bits in 8 bytes."""
    tokenizer = CharTokenizer.from_corpus(["abcdef€"])
    got = evaluate(tokenizer.encode("abcde€"), mode="documents", model=uniform_model(8), tokenizer=tokenizer)
    assert (got["tokens"], got["bytes"]) == (6, 8)
    assert got["bpb"] == pytest.approx(18 / 8)
    only_ends = evaluate([7, 7], mode="documents", model=uniform_model(8), tokenizer=tokenizer)
    assert (only_ends["bytes"], only_ends["bpb"]) == (0, None)


def test_reduced_weights_are_compared_with_fp32_position_by_position():
    tokens, reduced = random_tokens(70, end_every=9), copy.deepcopy(MODEL)
    with torch.no_grad():
        for parameter in reduced.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
    got = evaluate(tokens, mode="documents", model=reduced, reference=MODEL)
    double, agreed, kl = copy.deepcopy(reduced).double(), 0, 0.0
    for document in documents_of(tokens):
        sequence = [END, *document]
        for i in range(1, len(sequence)):
            start = 0 if i <= T else math.ceil((i - T) / (T // 2)) * (T // 2)
            exact, rough = (log_probabilities(sequence[start:i], m) for m in (DOUBLE, double))
            agreed += exact.argmax() == rough.argmax()
            kl += (np.exp(exact) * (exact - rough)).sum()
    told = got["against_fp32"]
    assert 0.1 < told["top1_agreement"] < 0.99
    assert told["top1_agreement"] == agreed / len(tokens)
    assert told["kl"] == pytest.approx(kl / len(tokens), rel=1e-4)
    assert told["loss_fp32"] == pytest.approx(evaluate(tokens, mode="documents")["loss"], rel=1e-6)
    assert told["loss_difference"] == pytest.approx(got["loss"] - told["loss_fp32"])


def test_fp32_against_itself_differs_in_nothing():
    told = evaluate(random_tokens(70), reference=MODEL)["against_fp32"]
    assert (told["top1_agreement"], told["loss_difference"]) == (1.0, 0.0)
    assert told["kl"] == pytest.approx(0, abs=1e-12)


def test_logits_are_made_for_few_rows_at_a_time_and_only_where_they_count(monkeypatch):
    model, rows = sharp_model(), []
    logits = model.logits
    monkeypatch.setattr(model, "logits", lambda x: rows.append(len(x)) or logits(x))
    tokens = random_tokens(300)
    whole = evaluate(tokens, model=model, batch_size=20)
    assert sum(rows) == 299  # overlapping windows hold nearly twice as many
    monkeypatch.setattr(perplexity, "_ROWS", 7)
    rows.clear()
    assert evaluate(tokens, model=model, batch_size=20)["loss"] == pytest.approx(whole["loss"], rel=1e-6)
    assert max(rows) == 7


@pytest.mark.parametrize("piece", [1, 3, 10, 1000])
def test_the_ends_of_documents_are_found_piece_by_piece(monkeypatch, piece):
    monkeypatch.setattr(perplexity, "_PIECE", piece)
    assert perplexity._document_ends(np.array([END, 1, 2, END, 3, END]), END).tolist() == [1, 4, 6]
    assert perplexity._document_ends(np.array([1, END, 3]), END).tolist() == [2, 3]
    assert perplexity._document_ends(np.array([1, 2]), END).tolist() == [2]
    assert perplexity._document_ends(np.array([1]), END).tolist() == [1]
    assert perplexity._document_ends(np.array([END]), END).tolist() == [1]
    assert perplexity._document_ends(np.array([], dtype=int), END).tolist() == []


def test_a_split_on_disk_is_read_where_it_lies(tmp_path):
    random_tokens(300, end_every=9).astype(np.uint16).tofile(tmp_path / "val.bin")
    mapped = np.memmap(tmp_path / "val.bin", dtype=np.uint16, mode="r")
    assert evaluate(mapped, mode="documents")["loss"] == evaluate(random_tokens(300, end_every=9), mode="documents")["loss"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stride": T + 1}, r"evaluation\.stride=17: windows hold 16 tokens, so some would be left out\n  use at most 16"),
        ({"stride": 6, "context_length": 5}, r"evaluation\.stride=6: windows hold 5 tokens"),
        ({"context_length": T + 1}, r"evaluation\.context_length=17: the model's context holds 16\n  use at most 16"),
    ],
)
def test_windows_that_do_not_fit_the_model_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        evaluate(random_tokens(50), **changes)


@pytest.mark.parametrize(("mode", "n"), [("strided", 0), ("strided", 1), ("documents", 0)])
def test_a_split_without_anything_to_predict_is_refused(mode, n):
    with pytest.raises(UserError, match="split=val: data=random has too little text there"):
        evaluate(random_tokens(n), mode=mode)


def test_a_loss_that_is_no_number_is_no_result():
    model = sharp_model()
    torch.nn.init.constant_(model.ln_f.bias, math.nan)
    with pytest.raises(UserError, match="the loss is nan"):
        evaluate(random_tokens(20), model=model)


def test_half_the_context_is_the_default_and_a_context_of_one_token_has_windows_too():
    assert evaluate(random_tokens(50))["stride"] == T // 2
    one = evaluate(random_tokens(50), context_length=1)
    assert (one["stride"], one["windows"]) == (1, 49)
