"""Figures beside a judge's, worked out by hand, and the loss of references against every token's own and training's."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import far_from_linear, gpt
from rouge_score.rouge_scorer import RougeScorer

from gpt2x.config.instantiate import instantiate
from gpt2x.data.batch import IGNORED
from gpt2x.data.examples import ExampleData
from gpt2x.data.instructions import Record
from gpt2x.evaluation.judge.companions import MEASURES, parts, reference_losses, summary
from gpt2x.task.config import InstructionTuningConfig
from gpt2x.tokenizer.char import CharTokenizer

TOKENIZER = CharTokenizer.from_corpus(["".join(map(chr, range(10, 127)))])
CONTEXT = 160
MODEL = far_from_linear(gpt(vocab_size=TOKENIZER.vocab_size, context_length=CONTEXT, n_layer=2)).eval()
RECORDS = [
    Record("Name a colour.", "", ("Red.",), 1),
    Record("Rewrite the sentence.", "The car is very fast.", ("The car is as fast as lightning.",), 2),
    Record("Which cloud brings thunder?", "", ("Cumulonimbus", "A thundercloud"), 3),
]
TEXTS = st.lists(st.sampled_from(["red", "fox", "ran", "far", ""]), max_size=8).map(" ".join)


def figures(answers, references, finishes=None, losses=None) -> dict:
    return summary(parts(answers, references, finishes or [None] * len(answers), losses), bootstrap=100)


def test_figures_worked_out_by_hand():
    got = figures(
        ["The  fox ran.\n", "a b c d a b c d a b c d", ""],
        ["The fox ran.", "moon", "a sun"],
        ["end_of_text", "length", None],
        [(2.0, 4), None, (6.0, 4)],
    )
    assert list(got) == list(MEASURES)
    assert got["exact_match"]["value"] == pytest.approx(1 / 3)  # white space aside
    assert got["rouge_l"]["value"] == pytest.approx(1 / 3)
    assert got["words"]["value"] == pytest.approx(15 / 3)
    assert got["length_ratio"]["value"] == pytest.approx(15 / 6)
    assert got["empty"]["value"] == pytest.approx(1 / 3)
    assert got["end_of_text"]["value"] == pytest.approx(1 / 2)  # of the two that are known
    assert got["repeated"]["value"] == pytest.approx(5 / 10)  # "The fox ran ." is one run of four, then nine, four of them new
    assert got["reference_perplexity"]["value"] == pytest.approx(math.exp(8 / 8))


def test_what_is_not_known_is_not_measured():
    got = figures(["red fox", "sun"], ["", "sun"])
    assert got["end_of_text"]["value"] is got["reference_perplexity"]["value"] is got["repeated"]["value"] is None
    assert (got["exact_match"]["value"], got["rouge_l"]["value"], got["length_ratio"]["value"]) == (1, 1, 1)
    assert got["words"]["value"] == 1.5
    empty = figures(["", "sun"], ["", "moon"])  # nothing was asked for, so that nothing is no match
    assert (empty["exact_match"]["value"], empty["rouge_l"]["value"]) == (0, 0)
    bare = figures(["red"], [""])
    assert bare["exact_match"]["value"] is bare["rouge_l"]["value"] is bare["length_ratio"]["value"] is None


@settings(max_examples=40)
@given(st.lists(st.tuples(TEXTS, TEXTS, st.sampled_from([None, "end_of_text", "length"])), min_size=1, max_size=6))
def test_rouge_is_rouge_score_s_and_intervals_hold_the_figures(rows):
    answers, references, finishes = zip(*rows)
    got = figures(answers, references, finishes)
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    scores = [scorer.score(b, a)["rougeL"].fmeasure for a, b in zip(answers, references) if b.strip()]
    assert got["rouge_l"]["value"] == (pytest.approx(np.mean(scores)) if scores else None)
    for measured in got.values():
        if measured["value"] is not None:
            assert measured["low"] <= measured["value"] <= measured["high"]


# -- perplexity of the reference -------------------------------------------------------------------------------------------


def task(template: str = "phi3"):
    return instantiate(InstructionTuningConfig(template=template), TOKENIZER, {})


def losses(prompts, references, *, model=MODEL, **options) -> list:
    return reference_losses(model, TOKENIZER, prompts, references, **options)


@pytest.fixture(scope="module")
def double():
    return copy.deepcopy(MODEL).double()


@torch.no_grad()
def token_by_token(model, prompt: list[int], reference: list[int]) -> float:
    """Nats of a reference and its end-of-text, a forward pass for each token, in float64."""
    tokens, nats = list(prompt), 0.0
    for token in [*reference, TOKENIZER.end_of_text]:
        nats -= model(torch.tensor([tokens]))[0, -1].log_softmax(-1)[token].item()
        tokens.append(token)
    return nats


def test_the_loss_of_a_reference_is_that_of_each_of_its_tokens(double):
    prompts = [task().prompt(record.instruction, record.input) for record in RECORDS]
    references = [record.outputs[0] for record in RECORDS]
    for prompt, reference, (nats, tokens) in zip(prompts, references, losses(prompts, references)):
        encoded = [TOKENIZER.encode(text).tolist() for text in (prompt, reference)]
        assert tokens == len(encoded[1]) + 1
        assert nats == pytest.approx(token_by_token(double, *encoded), rel=1e-5)  # float32 against float64


def test_it_is_the_validation_loss_of_instruction_tuning():
    examples = task().examples(RECORDS, CONTEXT, "val")
    assert len(examples) == len(RECORDS)
    assert all((example.target[0] == IGNORED) for example in examples)  # prompts are masked
    batching = dict(batch_size=2, eval_batch_size=2, drop_last=False, shuffle=False)
    data = ExampleData({"train": examples, "val": examples}, seed=1, name="x", title="x", **batching)
    trained = task().evaluate(MODEL, data.eval_batches("val"))
    prompts = [task().prompt(record.instruction, record.input) for record in RECORDS]
    found = losses(prompts, [record.outputs[0] for record in RECORDS], batch_size=2)
    got = figures(["x"] * 3, ["x"] * 3, losses=found)["reference_perplexity"]
    assert got["value"] == pytest.approx(trained["perplexity"], rel=1e-5)  # the same logits, in batches of other shapes
    assert got["low"] < got["value"] < got["high"]


def test_it_does_not_depend_on_the_batches():
    prompts, references = ["Ask: ", "A longer prompt: ", "", "Q"], ["yes", "no " * 20, "why", ""]
    alone = [losses([prompt], [reference])[0] for prompt, reference in zip(prompts, references)]
    together = losses(prompts, references, batch_size=3)
    assert [tokens for _, tokens in together] == [4, 61, 4, 1]
    assert [nats for nats, _ in together] == pytest.approx([nats for nats, _ in alone], rel=1e-5)


def test_nothing_before_the_reference_is_an_end_of_text(double):
    ((nats, _),) = losses([""], ["yes"])
    assert nats == pytest.approx(token_by_token(double, [TOKENIZER.end_of_text], TOKENIZER.encode("yes").tolist()), rel=1e-5)


def test_what_is_longer_than_the_context_is_read_through_windows(double):
    prompt, reference = "word " * 20, "another " * 30
    ((nats, tokens),) = losses([prompt], [reference])
    assert tokens == 241
    row = [*TOKENIZER.encode(prompt).tolist(), *TOKENIZER.encode(reference).tolist(), TOKENIZER.end_of_text]
    expected = 0.0
    with torch.no_grad():
        for i in range(100, len(row)):  # token i, from the first window that predicts it
            start = 0 if i <= CONTEXT else math.ceil((i - CONTEXT) / (CONTEXT // 2)) * (CONTEXT // 2)
            expected -= double(torch.tensor([row[start:i]]))[0, -1].log_softmax(-1)[row[i]].item()
    assert nats == pytest.approx(expected, rel=1e-5)


def test_a_text_that_the_tokenizer_cannot_read_has_no_loss():
    assert losses(["Ask: ", "Ask: "], ["Лиса", "fox"])[0] is None
    assert losses(["Ask: ", "Ask: "], ["Лиса", "fox"])[1] == pytest.approx(losses(["Ask: "], ["fox"])[0])
    assert losses(["Лиса"], ["fox"]) == [None]
