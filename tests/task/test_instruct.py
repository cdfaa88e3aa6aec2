"""Instruction tuning: every target read off independently, cuts that are told, rows that lose nothing."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from types import SimpleNamespace

import numpy as np
import pytest
import tiktoken
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt2x.config.instantiate import instantiate
from gpt2x.data.batch import IGNORED, Batch
from gpt2x.data.config import InstructionsConfig
from gpt2x.data.examples import Example
from gpt2x.data.instructions import Record
from gpt2x.errors import UserError
from gpt2x.model.gpt import GPT
from gpt2x.task.config import InstructionTuningConfig
from gpt2x.task.instruct import InstructionTuning, pack
from gpt2x.tokenizer.char import CharTokenizer
from gpt2x.tokenizer.gpt2 import GPT2Tokenizer

CHARS = CharTokenizer.from_corpus(["".join(map(chr, range(10, 127)))])
GPT2 = GPT2Tokenizer()
END = GPT2.end_of_text
LONG = 10_000  # a context that everything fits


def task(tokenizer=CHARS, **fields) -> InstructionTuning:
    return instantiate(InstructionTuningConfig(**{"template": "phi3"} | fields), tokenizer, {})


def corpus(train: list[Record], val: list[Record] = (), eval_batch_size: int = 2) -> SimpleNamespace:
    """All that the task wants of an InstructionCorpus."""
    batching = {"batch_size": 3, "eval_batch_size": eval_batch_size, "shuffle": True, "drop_last": False}
    return SimpleNamespace(name="mine", splits={"train": list(train), "val": list(val), "test": []}, batching=batching)


def examples(records: list[Record], context_length: int, tokenizer=CHARS, **fields) -> list[Example]:
    return task(tokenizer, **fields).examples(records, context_length, "train")


@pytest.fixture(scope="module")
def book(request, tmp_path_factory):
    """The book's 1,100 instructions, in the file's order: as read by us, and as they are."""
    mirror = request.getfixturevalue("mirror")
    config = InstructionsConfig(path=str(mirror / "instruction-data.json"), val_fraction=0, test_fraction=0)
    read = instantiate(config, cache=tmp_path_factory.mktemp("cache"))
    return read.splits["train"], json.loads((mirror / "instruction-data.json").read_text())


def book_text(entry: dict) -> tuple[str, str]:
    """Prompt and response of an entry as the book formats them."""
    prompt = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    prompt += f"\n\n### Instruction:\n{entry['instruction']}"
    prompt += f"\n\n### Input:\n{entry['input']}" if entry["input"] else ""
    return prompt + "\n\n### Response:\n", entry["output"]


# -- targets ---------------------------------------------------------------------------------------------------


def test_unmasked_examples_are_the_books_token_for_token(book):
    """The book tokenizes prompt and response in one piece, with tiktoken, appends end-of-text and moves by one."""
    records, entries = book
    reference = tiktoken.Encoding("r50k", pat_str=GPT2_PATTERN, mergeable_ranks=ranks(), special_tokens={})
    tuning = instantiate(InstructionTuningConfig(mask_prompt=False), GPT2, {})
    for entry, example in zip(entries, tuning.examples(records, LONG, "train"), strict=True):
        whole = [*reference.encode("".join(book_text(entry))), END]
        assert example.tokens.tolist() == whole[:-1]
        assert example.target.tolist() == whole[1:]
        assert example.weight == len(whole) - 1
        assert example.documents is None


GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""  # Radford et al., 2019


def ranks() -> dict[bytes, int]:
    return {token: rank for rank, token in enumerate(GPT2.tokens)}


def test_masked_examples_predict_the_response_and_end_of_text_alone(book):
    """Walked through token by token: what is predicted, read on its own, is the response."""
    records, entries = book
    tuning = instantiate(InstructionTuningConfig(), GPT2, {})
    for entry, example in zip(entries, tuning.examples(records, LONG, "train"), strict=True):
        prompt, response = book_text(entry)
        read, predicted = [], []
        for position, (token, target) in enumerate(zip(example.tokens.tolist(), example.target.tolist(), strict=True)):
            read.append(token)
            if target == IGNORED:
                assert not predicted, "after the response has begun everything is predicted"
                continue
            if not predicted:
                assert GPT2.decode(read) == prompt, "the first prediction is made where the whole prompt, and no more, is read"
            predicted.append(target)
            if position + 1 < len(example.tokens):
                assert target == example.tokens[position + 1], "moved by one"
        assert predicted[-1] == END
        assert predicted.count(END) == 1
        assert GPT2.decode(predicted[:-1]) == response
        assert example.weight == len(predicted)


@given(instruction=st.text(min_size=1, max_size=20), input=st.text(max_size=20), output=st.text(min_size=1, max_size=20))
def test_a_model_given_the_prompt_alone_sees_the_tokens_it_was_trained_on(instruction, input, output):
    """Also where the text's own tokens would run over the boundary: a response that begins with a space or a line end."""
    for response in (output, f" {output}", f"\n{output}"):
        tuning = task(GPT2)
        (example,) = tuning.examples([Record(instruction, input, (response,), 1)], LONG, "train")
        prompt = GPT2.encode(tuning.prompt(instruction, input)).tolist()
        assert example.tokens.tolist()[: len(prompt)] == prompt
        assert (example.target == IGNORED).sum() == len(prompt) - 1
        assert GPT2.decode(example.target[len(prompt) - 1 : -1]) == response


def test_the_first_of_several_outputs_is_learned():
    (example,) = examples([Record("Say.", "", ("one", "two"), 1)], LONG)
    assert CHARS.decode(example.target[example.target != IGNORED][:-1]) == "one"


def test_the_text_of_end_of_text_is_not_end_of_text():
    (example,) = examples([Record("Say <|endoftext|>.", "", ("<|endoftext|> it is",), 1)], LONG, GPT2)
    assert END not in example.tokens
    assert example.target.tolist().count(END) == 1


# -- length ----------------------------------------------------------------------------------------------------

WORDS = Record("Sum up.", "one two three four five six", ("some words",), 1)
PROMPT = "<|user|>\nSum up.\none two three four five six\n<|assistant|>\n"
WHOLE = len(PROMPT) + len("some words") + 1  # a token a character, and end-of-text
BARE = len(PROMPT) - len("one two three four five six")  # the prompt with nothing of its input


def read(example: Example) -> str:
    return CHARS.decode([*example.tokens, example.target[-1]])


@pytest.mark.parametrize("too_long", ["cut_end", "cut_input", "drop"])
def test_what_just_fits_is_left_alone_and_one_token_more_is_not(too_long, caplog):
    with caplog.at_level(logging.INFO):
        (whole,) = examples([WORDS], WHOLE - 1, too_long=too_long)
    assert read(whole) == PROMPT + "some words<|endoftext|>"
    assert not caplog.records
    shorter = examples([WORDS], WHOLE - 2, too_long=too_long)
    assert [len(example.tokens) for example in shorter] == ([] if too_long == "drop" else [WHOLE - 2])


@pytest.mark.parametrize("room", range(1, WHOLE + 2))
def test_cut_end_keeps_the_prompt_and_the_responses_beginning(room):
    made = examples([WORDS], room)
    kept = room + 1 - len(PROMPT)
    if kept < 1:
        assert made == []
        return
    assert read(made[0]) == (PROMPT + "some words<|endoftext|>" if kept > 10 else PROMPT + "some words"[:kept])
    assert made[0].weight == min(kept, 11)
    assert (made[0].target == IGNORED).sum() == len(PROMPT) - 1


@pytest.mark.parametrize("room", range(1, WHOLE + 2))
def test_cut_input_keeps_all_but_the_inputs_end(room):
    made = examples([WORDS], room, too_long="cut_input")
    letters = room + 1 - 11 - BARE  # of the input that fit
    if letters < 1:
        assert made == []
        return
    kept = WORDS.input[:letters].rstrip()
    assert read(made[0]) == f"<|user|>\nSum up.\n{kept}\n<|assistant|>\nsome words<|endoftext|>"
    assert made[0].weight == 11
    assert len(made[0].tokens) <= room


def test_without_an_input_there_is_nothing_to_cut_from_it():
    record = Record("Say a great deal.", "", ("word " * 20,), 1)
    assert examples([record], 50, too_long="cut_input") == []
    assert len(examples([record], 50, too_long="cut_end")) == 1


def test_the_log_says_how_many_were_cut_and_dropped(caplog):
    records = [WORDS, WORDS, Record("x" * 80, "", ("y",), 3), Record("a", "", ("b",), 4)]
    with caplog.at_level(logging.INFO):
        examples(records, WHOLE - 5)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        f"length   of 4 train examples 2 were cut (task.too_long=cut_end) and 1 dropped to fit model.context_length={WHOLE - 5}"
    )


def test_a_context_that_nothing_fits_is_refused():
    with pytest.raises(UserError, match=r"data=mine: nothing is left to train on[^$]*model.context_length=8: use a longer one"):
        task().batches(corpus([WORDS]), context_length=8, seed=1)


@given(
    input=st.text(min_size=1, max_size=60),
    output=st.text(min_size=1, max_size=20),
    context_length=st.integers(4, 120),
    too_long=st.sampled_from(["cut_end", "cut_input", "drop"]),
    mask_prompt=st.booleans(),
)
def test_any_text_fits_its_context_or_is_dropped(input, output, context_length, too_long, mask_prompt):
    record = Record("Sum up.", input, (output,), 1)
    for example in examples([record], context_length, GPT2, too_long=too_long, mask_prompt=mask_prompt):
        assert len(example.tokens) == len(example.target) <= context_length
        assert example.weight == (example.target != IGNORED).sum() >= 1
        predicted = example.target[example.target != IGNORED]
        assert mask_prompt or len(predicted) == len(example.target)
        if too_long != "cut_end":
            assert predicted.tolist()[-len(GPT2.encode(output)) - 1 :] == [*GPT2.encode(output), END]
        if too_long == "cut_input":
            text = GPT2.decode(example.tokens)
            assert text.startswith("<|user|>\nSum up.\n")
            assert "\ufffd" not in text or "\ufffd" in input + output  # no half character is left


# -- packing ---------------------------------------------------------------------------------------------------


def simple(n: int, start: int = 0) -> Example:
    tokens = np.arange(start, start + n)
    return Example(tokens, np.where(tokens % 3 == 0, IGNORED, tokens + 1), weight=int((tokens % 3 != 0).sum()))


@given(lengths=st.lists(st.integers(1, 20), max_size=40), context_length=st.integers(20, 50))
def test_packing_loses_nothing_keeps_the_order_and_the_limit(lengths, context_length):
    alone = [simple(n, 100 * i) for i, n in enumerate(lengths)]
    rows = pack(alone, context_length)
    apart = []
    for row in rows:
        assert 0 < len(row.tokens) <= context_length
        assert len(row.tokens) == len(row.target) == len(row.documents)
        assert row.weight == (row.target != IGNORED).sum()
        count = row.documents[-1] + 1
        assert row.documents.tolist() == sorted(row.documents.tolist())
        for document in range(count):
            here = row.documents == document
            apart.append((row.tokens[here].tolist(), row.target[here].tolist()))
    assert apart == [(example.tokens.tolist(), example.target.tolist()) for example in alone]
    firsts = [len(row.tokens[row.documents == 0]) for row in rows]
    for row, following in zip(rows, firsts[1:], strict=False):  # greedy: the next one would not have fit
        assert len(row.tokens) + following > context_length


def test_only_training_rows_are_packed():
    records = [Record(f"Say {i}.", "", ("a" * i,), i) for i in range(1, 9)]
    data = task(packing=True).batches(corpus(records, records), context_length=120, seed=1)
    assert all(example.documents is not None for example in data.splits["train"])
    assert sum(example.documents[-1] + 1 for example in data.splits["train"]) == 8
    assert len(data.splits["train"]) < 8
    assert [example.documents for example in data.splits["val"]] == [None] * 8
    weights = [sum(example.weight for example in data.splits[split]) for split in ("train", "val")]
    assert weights[0] == weights[1] == sum(range(1, 9)) + 8


# -- loss ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> GPT:
    shape = dict(vocab_size=CHARS.vocab_size, n_layer=2, n_head=2, n_embd=16, context_length=100)
    model = GPT(**shape, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.dim() == 2 else 1)
    return model.eval()


RECORDS = [Record(f"Say {i}.", "it" * (i % 3), ("word " * i,), i) for i in range(1, 8)]


def nats_one_by_one(model: GPT, records: list[Record]) -> list[float]:
    """The loss of each character of each response, and of end-of-text, from the softmax written out."""
    nats = []
    for record in records:
        prompt = f"<|user|>\n{record.instruction}\n" + (f"{record.input}\n" if record.input else "") + "<|assistant|>\n"
        text = [*CHARS.encode(prompt + record.outputs[0]).tolist(), CHARS.end_of_text]
        with torch.no_grad():
            scores = model(torch.tensor([text[:-1]]))[0].numpy()
        nats += [math.log(np.exp(scores[i - 1]).sum()) - scores[i - 1, text[i]] for i in range(len(prompt), len(text))]
    return nats


@pytest.mark.parametrize("eval_batch_size", [1, 2, 7])
def test_an_evaluation_is_that_of_the_responses_alone_whatever_the_batch(model, eval_batch_size):
    tuning = task()
    data = tuning.batches(corpus(RECORDS, RECORDS, eval_batch_size), context_length=100, seed=1)
    nats = nats_one_by_one(model, RECORDS)
    metrics = tuning.evaluate(model, data.eval_batches("val"))
    assert len(nats) == sum(len(r.outputs[0]) + 1 for r in RECORDS)
    assert metrics["loss"] == pytest.approx(np.mean(nats), rel=1e-6)  # the softmax is taken in float32
    assert metrics["bpb"] == pytest.approx(sum(nats) / math.log(2) / sum(len(r.outputs[0]) for r in RECORDS), rel=1e-6)
    assert tuning.evaluate(model, data.eval_batches("val"), stop=lambda: True) is None


def test_padding_is_never_in_the_loss(model):
    """The summed loss of a padded batch is that of its examples alone, and nothing flows back to the padding's logits."""
    tuning = task()
    (batch,) = tuning.batches(corpus(RECORDS, RECORDS, len(RECORDS)), context_length=100, seed=1).eval_batches("val")
    assert batch.inputs.shape[0] == len(RECORDS)
    assert tuning.loss(model, batch).item() == pytest.approx(sum(nats_one_by_one(model, RECORDS)), rel=1e-6)
    assert batch.weight == (batch.targets != IGNORED).sum()
    scores = []

    def keeping(tokens, *, wanted_BT, **about):
        scores.append(model(tokens, **about).detach().requires_grad_())
        return scores[0][wanted_BT]

    tuning.loss(keeping, batch).backward()
    learned = scores[0].grad.abs().sum(-1) > 0
    assert torch.equal(learned, batch.targets != IGNORED)


def test_rows_of_several_documents_are_told_to_the_model():
    tokens = torch.tensor([[1, 2, 3, 4]])
    documents = torch.tensor([[0, 0, 1, 1]])
    targets = torch.tensor([[IGNORED, 3, IGNORED, 5]])
    asked = []

    def uniform(inputs, *, wanted_BT, **about):
        asked.append(about)
        return torch.zeros(*inputs.shape, 8)[wanted_BT]

    batch = Batch(tokens, targets, weight=2, lengths=torch.tensor([4]), documents=documents)
    assert task().loss(uniform, batch).item() == pytest.approx(2 * math.log(8))
    task().loss(uniform, dataclasses.replace(batch, documents=None))
    assert torch.equal(asked[0]["documents_BT"], documents)
    assert asked[1] == {"documents_BT": None, "below": None}


# -- prompts ---------------------------------------------------------------------------------------------------


def test_prompts_are_cut_at_the_inputs_end_on_request():
    tuning = task()
    assert tuning.prompt("Sum up.", WORDS.input) == PROMPT
    assert tuning.prompt("Sum up.") == "<|user|>\nSum up.\n<|assistant|>\n"
    assert tuning.prompt("Sum up.", WORDS.input, max_tokens=len(PROMPT)) == PROMPT
    assert tuning.prompt("Sum up.", WORDS.input, max_tokens=BARE + 5) == "<|user|>\nSum up.\none t\n<|assistant|>\n"
    with pytest.raises(UserError, match=f"the prompt has {len(PROMPT)} tokens, which cannot be cut to {BARE}"):
        tuning.prompt("Sum up.", WORDS.input, max_tokens=BARE)
    assert len(GPT2.encode(task(GPT2).prompt("Sum up.", "snow 雪 " * 30, max_tokens=40))) <= 40


def test_what_is_shown_are_the_first_validation_records():
    records = [Record(f"Say {i}.", "it" * i, (f"{i}", "no"), i) for i in range(5)]
    first = {"prompt": "<|user|>\nSay 0.\n<|assistant|>\n", "question": "Say 0.", "reference": "0"}
    second = {"prompt": "<|user|>\nSay 1.\nit\n<|assistant|>\n", "question": "Say 1. it", "reference": "1"}

    def shown(answers: int, *val: Record) -> list[dict[str, str]]:
        tuning = task(answers=answers)
        tuning.batches(corpus([WORDS], list(val)), context_length=100, seed=1)
        return tuning.examples_to_show()

    assert shown(2, *records) == [first, second]
    assert len(shown(9, *records)) == 5
    assert shown(0, *records) == []
    assert shown(3) == []
    assert shown(2, Record("Say it " * 100, "", ("no",), 0), *records) == [first, second]  # what fits no context is left out


def test_the_template_stays_as_it_was_when_the_model_was_trained(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("with_input: 'Q: {instruction} {input}'\nwithout_input: 'Q: {instruction}'\n")
    trained = instantiate(InstructionTuningConfig(template=str(path)), CHARS, {})
    path.unlink()
    assert instantiate(InstructionTuningConfig(template=str(path)), CHARS, trained.about).prompt("Why?") == "Q: Why?"


def test_settings_say_what_the_best_is_and_what_data_they_need():
    assert task().metric == "val/loss"
    assert InstructionTuningConfig.data_kind == InstructionsConfig.kind == "instructions"
