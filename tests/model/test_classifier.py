"""The classifier: Hugging Face's logits, padding that changes nothing, and the ways to compute less that give the same."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import POSITIONS, SHAPE, far_from_linear, gpt, hugging_face, some_tokens
from transformers import GPT2ForSequenceClassification

from gpt2x.config.instantiate import instantiate
from gpt2x.device import DeviceConfig
from gpt2x.model.classifier import POOLINGS, Classifier, parts
from gpt2x.model.gpt import GPT
from gpt2x.model.prepared import ready

T, CLASSES = SHAPE["context_length"], 5
KINDS = ("manual", "sdpa")
LENGTHS = torch.tensor([1, 7, T, 13])
EXACT = dict(atol=1e-10, rtol=0)  # float64; the logits reach 5


def classifier(pooling: str = "last_token", attention: str = "sdpa", **changes) -> Classifier:
    """A classifier in float64 of which nothing is near zero or linear."""
    model = far_from_linear(gpt(attention=attention, **changes))
    made = Classifier(model, n_classes=CLASSES, pooling=pooling, generator=torch.Generator().manual_seed(5))
    return made.double().eval()


def texts(seed: int = 2) -> torch.Tensor:
    return some_tokens(batch=len(LENGTHS), seed=seed)


def states_alone(model: Classifier, tokens: torch.Tensor) -> torch.Tensor:
    """Hugging Face's final states (n, C) of one text by itself."""
    return hugging_face(model.gpt).transformer(tokens[None]).last_hidden_state[0]


# -- which state -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", KINDS)
@torch.no_grad()
def test_the_last_token_s_logits_are_those_of_hugging_face_s_classifier(attention):
    model, tokens = classifier(attention=attention), texts()
    twin = hugging_face(model.gpt)
    twin.config.num_labels = CLASSES
    twin.config.pad_token_id = SHAPE["vocab_size"] - 1
    reference = GPT2ForSequenceClassification(twin.config).double().eval()
    reference.transformer.load_state_dict(twin.transformer.state_dict())
    reference.score.weight.copy_(model.score.weight)
    padding = torch.arange(T) >= LENGTHS[:, None]
    tokens[~padding & (tokens == twin.config.pad_token_id)] = 0
    tokens[padding] = twin.config.pad_token_id
    expected = reference(tokens).logits + model.score.bias  # theirs has none
    assert expected.abs().max() > 1
    torch.testing.assert_close(model(tokens, LENGTHS), expected, **EXACT)


@pytest.mark.parametrize("attention", KINDS)
@pytest.mark.parametrize("pooling", POOLINGS)
@torch.no_grad()
def test_each_pooling_takes_the_state_it_says_from_each_text_alone(pooling, attention):
    model, tokens = classifier(pooling, attention), texts()
    pooled = {
        "last_token": lambda states: states[-1],
        "mean": lambda states: states.mean(0),
        "first_token": lambda states: states[0],
        "padded_last": lambda states: states[-1],  # of rows that are as long as they are filled up to
    }[pooling]
    alone = [pooled(states_alone(model, tokens[b, :n])) for b, n in enumerate(LENGTHS.tolist())]
    expected = torch.stack(alone) @ model.score.weight.T + model.score.bias
    torch.testing.assert_close(model(tokens, LENGTHS), expected, **EXACT)


@pytest.mark.parametrize("attention", KINDS)
@pytest.mark.parametrize("pooling", POOLINGS[:3])
def test_padding_changes_neither_logits_nor_gradients(pooling, attention):
    """However much of it there is and whatever stands in it, the text's logits are those without any."""
    tokens, n, gradients = texts()[:1, :9], torch.tensor([9]), []
    for padding in (torch.empty(1, 0, dtype=torch.long), torch.zeros(1, 1, dtype=torch.long), texts(3)[:1, : T - 9]):
        model = classifier(pooling, attention)
        logits = model(torch.cat([tokens, padding], 1), n)
        logits.sin().sum().backward()
        gradients.append([logits, *(parameter.grad for parameter in model.parameters())])
    for padded in gradients[1:]:
        for mine, other in zip(gradients[0], padded, strict=True):
            torch.testing.assert_close(mine, other, **EXACT)


@torch.no_grad()
def test_padded_last_depends_on_what_a_text_is_filled_up_with_and_how_far():
    """The book's rows: all of one length, and the state of the last position, which is padding's."""
    model, tokens = classifier("padded_last"), texts()[:1, :9]
    logits = [model(torch.cat([tokens, torch.full((1, k), 4)], 1), torch.tensor([9 + k])) for k in (0, 1, T - 9)]
    logits.append(model(torch.cat([tokens, torch.full((1, 1), 7)], 1), torch.tensor([10])))
    for i in range(4):
        for j in range(i):
            assert (logits[i] - logits[j]).abs().max() > 1e-3


@torch.no_grad()
def test_the_first_token_has_seen_nothing_else():
    model, tokens = classifier("first_token"), texts()
    changed = torch.cat([tokens[:, :1], texts(3)[:, 1:]], 1)
    torch.testing.assert_close(model(tokens, LENGTHS), model(changed, LENGTHS), **EXACT)


# -- only one position -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", KINDS)
@pytest.mark.parametrize("n_layer", [1, 3])
@pytest.mark.parametrize("position", POSITIONS)
def test_one_position_is_computed_as_all_of_them_are(attention, n_layer, position):
    """States and the gradients of everything below them, of the attention's keys and values too."""
    at, results = torch.tensor([0, 6, T - 1, 12]), []
    for only in (True, False):
        model = far_from_linear(gpt(attention=attention, n_layer=n_layer, position=position)).double()
        states = model.hidden(texts(), at_B=at) if only else model.hidden(texts())[torch.arange(4), at][:, None]
        assert states.shape == (4, 1, SHAPE["n_embd"])
        states.sin().sum().backward()
        results.append([states, *(parameter.grad for parameter in model.parameters())])
    for only, whole in zip(*results, strict=True):
        torch.testing.assert_close(only, whole, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("position", POSITIONS)
@torch.no_grad()
def test_a_classifier_computed_by_the_kernel_is_the_same(pooling, position, kernels):
    exact, quick = classifier(pooling, position=position), classifier(pooling, position=position).float()
    with ready(quick, instantiate(DeviceConfig(threads=1)), weights="fp32", cache=kernels)():
        logits = quick(texts(), LENGTHS)
    assert type(quick.gpt.h[0]).__name__ == "_KernelBlock"
    torch.testing.assert_close(logits.double(), exact(texts(), LENGTHS), atol=1e-4, rtol=0)  # float32


# -- where the lower blocks are known --------------------------------------------------------------------------


@pytest.mark.parametrize("attention", KINDS)
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("n", range(SHAPE["n_layer"] + 1))
def test_a_classifier_above_what_is_known_is_the_whole_one(pooling, attention, n):
    results = []
    for known in (True, False):
        model = classifier(pooling, attention)
        below = None
        if known:
            with torch.no_grad():
                below = model.gpt.below(texts(), n)
        logits = model(texts(), LENGTHS, below)
        logits.sin().sum().backward()
        results.append([logits, *(parameter.grad for part in upper(model, n) for parameter in part.parameters())])
    for short, whole in zip(*results, strict=True):
        torch.testing.assert_close(short, whole, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("attention", KINDS)
@pytest.mark.parametrize("n", range(SHAPE["n_layer"] + 1))
@pytest.mark.parametrize("position", POSITIONS)
@torch.no_grad()
def test_a_language_model_above_what_is_known_is_the_whole_one(attention, n, position):
    model, tokens = far_from_linear(gpt(attention=attention, position=position)).double().eval(), texts()
    documents = torch.arange(T).expand(4, T) // 10
    for more in ({}, {"documents_BT": documents}):
        below = model.below(tokens, n, *more.values())
        assert below.n == n
        torch.testing.assert_close(model(tokens, below=below, **more), model(tokens, **more), **EXACT)


def upper(model: Classifier, n: int) -> list[torch.nn.Module]:
    """What lies above the states that enter block n."""
    return [*model.gpt.h[n:], model.gpt.ln_f, model.score]


# -- several texts in a row ------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", POSITIONS)
@settings(max_examples=30)
@given(cuts=st.sets(st.integers(1, T - 1), max_size=6), padding=st.integers(0, 5), attention=st.sampled_from(KINDS))
def test_texts_in_one_row_are_computed_as_each_alone_is(position, cuts, padding, attention):
    """Logits and the gradients of all weights: no text sees another, each has positions from 0 on, padding has no part."""
    tokens, ends = some_tokens(batch=1), [*sorted(cuts), T]
    if padding and padding < T - max(cuts, default=0):
        ends[-1] = T - padding
    documents = torch.full((1, T), -1)
    packed, apart = (far_from_linear(gpt(attention=attention, position=position)).double() for _ in range(2))
    alone, start = [], 0
    for number, end in enumerate(ends):
        documents[0, start:end] = number
        alone.append(apart(tokens[:, start:end]))
        start = end
    together = packed(tokens, documents_BT=documents)[:, : ends[-1]]
    alone = torch.cat(alone, 1)
    torch.testing.assert_close(together, alone, **EXACT)
    for logits in (together, alone):
        logits.sin().sum().backward()
    for (name, mine), other in zip(packed.named_parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-9, rtol=1e-9, msg=name)


@pytest.mark.parametrize("attention", KINDS)
@torch.no_grad()
def test_rows_of_one_text_are_what_they_are_without_saying_so(attention):
    model, tokens = far_from_linear(gpt(attention=attention)).double().eval(), some_tokens()
    torch.testing.assert_close(model(tokens, documents_BT=torch.zeros_like(tokens)), model(tokens), **EXACT)


@pytest.mark.parametrize("attention", KINDS)
@pytest.mark.parametrize("position", POSITIONS)
@torch.no_grad()
def test_packed_rows_can_be_computed_in_bf16(attention, position):
    model, tokens = far_from_linear(gpt(attention=attention, position=position)).eval(), some_tokens()
    documents = (torch.arange(T) // 10).expand_as(tokens)
    expected = model(tokens, documents_BT=documents)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(tokens, documents_BT=documents)
    assert 0 < (rounded.float() - expected).abs().max() < 1


@torch.no_grad()
def test_only_the_wanted_positions_get_logits():
    model, tokens = far_from_linear(gpt()).double().eval(), some_tokens()
    wanted = tokens % 3 == 0
    torch.testing.assert_close(model(tokens, wanted_BT=wanted), model(tokens)[wanted], **EXACT)


# -- what it is made of ----------------------------------------------------------------------------------------


def test_a_classifier_has_no_head_over_the_vocabulary_and_one_over_the_classes():
    untied = gpt(tied_head=False)
    head = untied.lm_head.weight.numel()
    size = untied.n_parameters()
    made = Classifier(untied, n_classes=CLASSES, pooling="mean")
    assert sum(p.numel() for p in made.parameters()) == size - head + CLASSES * (SHAPE["n_embd"] + 1)
    assert str(made).endswith("5 classes")
    assert parts(made) == (untied, made.score)
    plain: GPT = gpt()
    assert parts(plain) == (plain, None)


def test_the_head_begins_as_its_stream_says():
    heads = [classifier().score.weight for _ in range(2)]
    assert torch.equal(*heads)
    assert 0.9 < heads[0].abs().max() * math.sqrt(SHAPE["n_embd"]) <= 1
    other = Classifier(gpt(), n_classes=CLASSES, pooling="mean", generator=torch.Generator().manual_seed(6))
    assert not torch.equal(other.score.weight.double(), heads[0])
