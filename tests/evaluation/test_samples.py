"""Figures of texts against brute force, on cases worked out by hand, and on models whose texts are made one at a time."""

from __future__ import annotations

import contextlib
import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import far_from_linear, gpt

from gpt2x.config.option import ConfigError
from gpt2x.errors import UserError
from gpt2x.evaluation import samples
from gpt2x.evaluation.config import SamplesConfig
from gpt2x.evaluation.perplexity import token_losses
from gpt2x.evaluation.samples import Samples, copied, report, variety, words
from gpt2x.generation.config import SamplingConfig
from gpt2x.generation.controls import Controls
from gpt2x.generation.decoding import decode
from gpt2x.tokenizer.char import CharTokenizer

STORY = "The fox ran home. A red fox saw the moon, and the moon saw it. Sun rose; the fox slept well, and ran on. " * 20
HELD_OUT = "The red moon rose. It saw a fox run on, and the sun slept. " * 8
TOKENIZER = CharTokenizer.from_corpus([STORY, HELD_OUT])
CONTEXT = 24

MODEL = far_from_linear(gpt(vocab_size=TOKENIZER.vocab_size, context_length=CONTEXT, n_layer=2)).eval()
WORDS = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=12)


# Words


def test_words_are_letters_numbers_and_signs_and_cut_ones_are_left_out():
    assert words("Don't stop, Anna: 42 naïve_foxes!\n") == ["don't", "stop", ",", "anna", ":", "42", "naïve", "_", "foxes", "!"]
    assert words("the fox ran", start=5) == []  # "fox" begins before, "ran" may go on
    assert words("the fox ran ", start=4) == ["fox", "ran"]
    assert words("the fox ran.", start=3) == ["fox", "ran"]
    assert words("'so' she") == ["'", "so", "'"]
    assert words("") == words("word") == []


@given(st.text(alphabet="ab1.'_ \n\ufffd", max_size=30), st.integers(0, 30))
def test_words_are_whole_pieces_of_the_text_in_order(text, start):
    found, place = words(text, start), start
    for word in found:
        place = text.index(word, place) + len(word)
        assert place < len(text)
        assert word.isalpha() or word.isdigit() or len(word) == 1 or re.fullmatch(r"[ab]+('[ab]+)+", word)


# Copying


def brute_copied(texts, train, n: int) -> list[int]:
    def runs(row):
        return [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]

    known = set(runs(list(train)))
    return [sum(run in known for run in runs(list(text))) for text in texts]


@settings(max_examples=80)
@given(st.data())
def test_copied_runs_are_those_of_a_brute_force_search(data):
    rows, length, n = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 12)), data.draw(st.integers(1, 5))
    token = st.integers(0, 2)
    texts = np.array(data.draw(st.lists(st.lists(token, min_size=length, max_size=length), min_size=rows, max_size=rows)))
    train = np.array(data.draw(st.lists(token, max_size=60)), dtype=np.uint16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "_PIECE", data.draw(st.sampled_from([1, 7, 1 << 20])))
        if data.draw(st.booleans()):  # all runs have the same hash
            patch.setattr(samples, "_hash", lambda runs, factors: np.zeros(runs.shape[:-1], dtype=np.uint64))
        assert copied(texts, train, n).tolist() == brute_copied(texts, train, n)


def test_copying_from_a_large_vocabulary():
    rng = np.random.default_rng(0)
    train = rng.integers(0, 100_000, 5000, dtype=np.uint32)
    text = np.concatenate([train[1000:1020], rng.integers(0, 100_000, 20)])
    assert copied(np.stack([text, text[::-1]]).astype(np.int64), train, 8).tolist() == [13, 0]


# Figures


def figures(texts, **options) -> dict:
    n = len(texts)
    sums = {"perplexity": (np.full(n, 2.0), np.ones(n)), "known": (np.arange(n, dtype=float), np.full(n, float(n)))}
    return report(sums, texts, **({"bootstrap": 100} | options))


@settings(max_examples=60)
@given(st.lists(WORDS, min_size=2, max_size=6))
def test_repetition_and_variety_are_those_of_brute_force(texts):
    got = figures(texts)
    runs = again = 0
    for text in texts:
        for i in range(len(text) - 3):
            runs += 1
            again += any(text[j : j + 4] == text[i : i + 4] for j in range(i))
    assert got["repeated"]["value"] == (pytest.approx(again / runs) if runs else None)
    for n in (1, 2):
        grams = [tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)]
        assert got[f"distinct_{n}"]["value"] == (pytest.approx(len(set(grams)) / len(grams)) if grams else None)
    assert got["perplexity"]["value"] == pytest.approx(math.exp(2))
    assert got["known"]["value"] == pytest.approx((len(texts) - 1) / 2 / len(texts))
    for score in got.values():
        if score["low"] is not None:
            assert 0 <= score["low"] <= score["value"] <= score["high"]
    json.dumps(got, allow_nan=False)


def test_figures_worked_out_by_hand():
    got = figures([list("abcdabcd"), list("abcda"), list("xyz")], bootstrap=0)
    assert got["repeated"] == {"value": 1 / 7, "low": None, "high": None}  # 5 + 2 runs, one of which was there before
    assert got["distinct_1"]["value"] == 7 / 16
    assert got["distinct_2"]["value"] == 6 / 13  # ab bc cd da, xy yz
    assert got["distinct_1"]["low"] is not None  # the jackknife draws nothing


@settings(max_examples=40)
@given(st.lists(WORDS.filter(len), min_size=3, max_size=7))
def test_intervals_of_variety_are_the_jackknifes(texts):
    value, (low, high) = variety(texts)

    def of(chosen) -> float:
        return len({word for text in chosen for word in text}) / sum(map(len, chosen))

    without = [of(texts[:i] + texts[i + 1 :]) for i in range(len(texts))]
    N, mean = len(texts), np.mean(without)
    half = 1.959964 * math.sqrt((N - 1) / N * sum((w - mean) ** 2 for w in without))
    assert value == pytest.approx(of(texts))
    assert (low, high) == pytest.approx((max(0, value - half), min(1, value + half)), abs=1e-6)


def test_the_interval_of_variety_holds_what_is_to_be_expected_as_often_as_it_says():
    rng = np.random.default_rng(0)
    chances = 1 / np.arange(1, 2001)
    drawn = [rng.choice(2000, (40, 60), p=chances / chances.sum()) for _ in range(200)]
    found = [variety([text.tolist() for text in texts]) for texts in drawn]
    expected = np.mean([value for value, _ in found])
    assert 0.9 <= np.mean([low <= expected <= high for _, (low, high) in found]) <= 1
    widths = np.mean([high - low for _, (low, high) in found])
    assert widths == pytest.approx(2 * 1.96 * np.std([value for value, _ in found]), rel=0.3)


def test_what_is_in_one_text_alone_is_defined_and_what_is_in_none_is_not():
    assert variety([["a"], []]) == (1.0, (None, None))  # without the first there is nothing
    value, ends = variety([[], []])
    assert math.isnan(value)
    assert ends == (None, None)
    assert figures([[], []])["distinct_1"] == {"value": None, "low": None, "high": None}


# Losses of tokens


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_losses_are_those_of_one_token_at_a_time(batch_size):
    rng = np.random.default_rng(1)
    lengths = [1, 2, CONTEXT, CONTEXT + 1, CONTEXT + 2, 3 * CONTEXT, 5]
    rows = [rng.integers(0, TOKENIZER.vocab_size, n) for n in lengths]
    got = token_losses(MODEL, rows, batch_size=batch_size)
    assert [len(nats) for nats in got] == [n - 1 for n in lengths]
    for row, nats in zip(rows, got):
        for i in range(1, len(row)):
            window = max(0, math.ceil((i - CONTEXT) / (CONTEXT // 2))) * (CONTEXT // 2)
            with torch.no_grad():
                logits = MODEL(torch.from_numpy(row[None, window:i]))[0, -1].double()
            assert nats[i - 1] == pytest.approx(-logits.log_softmax(-1)[row[i]].item(), rel=1e-4, abs=1e-4)


def test_a_loss_that_is_no_number_is_told():
    broken = gpt(vocab_size=TOKENIZER.vocab_size)
    with torch.no_grad():
        broken.wte.weight[0] = torch.nan
    with pytest.raises(UserError, match="a loss is not finite"):
        token_losses(broken, [np.array([0, 1, 2])], batch_size=1)


# The whole


class Corpus:
    """A corpus of characters, cut into documents at each bar in its texts."""

    name = "fox"

    def __init__(self, train: str = STORY, val: str = HELD_OUT):
        self.splits = {"train": train, "val": val}

    def tokens(self, tokenizer) -> dict[str, np.ndarray]:
        end = [tokenizer.end_of_text]
        rows = {}
        for split, text in self.splits.items():
            parts = [tokenizer.encode(part) for part in text.split("|")]
            rows[split] = np.concatenate([parts[0], *(x for part in parts[1:] for x in (end, part))]).astype(np.uint16)
        return rows

    def texts(self, split):
        yield from self.splits[split].split("|")


def make(*, model=MODEL, tokenizer=TOKENIZER, judges=None, sampling=None, **changes) -> Samples:
    config = SamplesConfig(**({"texts": 6, "prompt_tokens": 7, "bootstrap": 50} | changes))
    options = {name: value for name, value in vars(config).items() if name != "_target_"}
    sampling = SamplingConfig(**({"max_new_tokens": 40, "banned": ["<|endoftext|>"]} | (sampling or {})))
    load = (judges or {}).__getitem__
    return Samples(model, tokenizer, autocast=contextlib.nullcontext, sampling=sampling, load_judge=load, **options)


def made(tmp_path, corpus=None, **options) -> tuple[dict, list[dict]]:
    path = tmp_path / "texts.jsonl"
    result = make(predictions=str(path), **options).evaluate(corpus or Corpus(), "val")
    return result, [json.loads(line) for line in path.read_text().splitlines()]


def test_texts_begin_in_the_split_and_the_real_ones_go_on_there(tmp_path):
    result, texts = made(tmp_path)
    assert len(texts) == 6
    place = -1
    for text in texts:
        assert (len(text["prompt"]), len(text["text"]), len(text["real"])) == (7, 40, 40)
        found = [m.start() for m in re.finditer(f"(?={re.escape(text['prompt'] + text['real'])})", HELD_OUT)]
        place = min(x for x in found if x > place)
    assert texts[0]["prompt"] + texts[0]["real"] == HELD_OUT[:47]
    assert texts[-1]["prompt"] + texts[-1]["real"] == HELD_OUT[-47:]
    assert (result["texts"], result["prompt_tokens"], result["sampling"]["max_new_tokens"]) == (6, 7, 40)


def test_the_figures_are_those_of_the_texts(tmp_path):
    result, texts = made(tmp_path)
    spelled = set(re.findall("[a-z]+", STORY.lower()))
    for name, key, other in (("generated", "text", "real"), ("real", "real", "text")):
        got = {measure: score["value"] for measure, score in result[name].items()}
        found = [words(text["prompt"] + text[key], 7) for text in texts]
        letters = [word for row in found for word in row if word.isalpha()]
        assert got["words"] == pytest.approx(sum(map(len, found)) / 6)
        assert got["known"] == pytest.approx(sum(word in spelled for word in letters) / len(letters))
        spans = [text[key][i : i + 8] for text in texts for i in range(33)]
        assert got["copied"] == pytest.approx(sum(span in STORY for span in spans) / len(spans))
        sizes = [min(len(a), len(words(t["prompt"] + t[other], 7))) for a, t in zip(found, texts)]
        fair = [word for row, size in zip(found, sizes) for word in row[:size]]
        assert got["distinct_1"] == pytest.approx(len(set(fair)) / len(fair))
        rows = [TOKENIZER.encode(text["prompt"] + text[key]) for text in texts]
        nats = np.concatenate([losses[6:] for losses in token_losses(MODEL, rows, batch_size=6)])
        assert len(nats) == 240
        assert got["perplexity"] == pytest.approx(math.exp(nats.mean()), rel=1e-5)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.0}, {"top_k": 3, "repetition_penalty": 1.3}])
def test_a_text_is_what_its_prompt_and_seed_give_alone_whatever_the_batch(tmp_path, sampling):
    first, texts = made(tmp_path, sampling=sampling, batch_size=1)
    for batch_size in (4, 50):
        again, others = made(tmp_path, sampling=sampling, batch_size=batch_size)
        assert others == texts
        for name in ("generated", "real"):
            for measure, score in first[name].items():
                for end, value in score.items():
                    assert again[name][measure][end] == (None if value is None else pytest.approx(value, rel=1e-4))
    seed = int(np.random.SeedSequence([1, 2]).generate_state(1)[0])
    controls = Controls.from_config(SamplingConfig(**sampling, banned=["<|endoftext|>"]), TOKENIZER)
    *_, rows = decode(MODEL, [TOKENIZER.encode(texts[2]["prompt"]).tolist()], controls=controls, max_new_tokens=40, seed=seed)
    assert TOKENIZER.decode(rows[0].history.new) == texts[2]["text"]


def test_the_seed_decides_and_each_text_has_random_numbers_of_its_own(tmp_path):
    repeating = Corpus(val="the fox " * 60)  # pieces that begin alike
    _, texts = made(tmp_path, repeating, prompt_tokens=8, sampling={"max_new_tokens": 16})
    _, same = made(tmp_path, repeating, prompt_tokens=8, sampling={"max_new_tokens": 16})
    _, other = made(tmp_path, repeating, prompt_tokens=8, sampling={"max_new_tokens": 16}, seed=2)
    assert texts == same
    assert len({text["text"] for text in texts + other}) == 12


def test_always_the_likeliest_token_is_likelier_and_less_varied_than_the_models_own_distribution():
    greedy, plain = (make(sampling={"temperature": t}).evaluate(Corpus(), "val")["generated"] for t in (0.0, 1.0))
    assert greedy["perplexity"]["value"] < plain["perplexity"]["value"]


def test_a_model_that_repeats_its_training_text_copies_all_of_it():
    class Parrot(torch.nn.Module):
        """Says what follows in the story, wherever the last characters stand in it."""

        context_length, wte = 200, SimpleNamespace(weight=torch.zeros(1))

        def parameters(self):
            yield torch.zeros(1)

        def hidden(self, tokens_BT):
            rows = [TOKENIZER.decode(row.tolist()) for row in tokens_BT]
            following = [
                [STORY[STORY.find(row[max(0, i - 5) : i + 1]) + min(i + 1, 6)] for i in range(len(row))] for row in rows
            ]
            return torch.tensor([TOKENIZER.encode("".join(row)).tolist() for row in following])[..., None].float()

        def logits(self, hidden):
            return 50 * torch.nn.functional.one_hot(hidden[..., 0].long(), TOKENIZER.vocab_size).float()

    corpus = Corpus(val=STORY[:800])
    parrot = make(model=Parrot(), span=7, sampling={"temperature": 0.0})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "decode", lambda *args, **options: decode(*args, cache=False, **options))
        got = parrot.evaluate(corpus, "val")["generated"]
    assert (got["copied"]["value"], got["known"]["value"]) == (1.0, 1.0)
    assert got["perplexity"]["value"] == pytest.approx(1.0)


def test_ends_of_documents_that_the_model_makes_are_gone_past(tmp_path):
    bias = {"<|endoftext|>": 4.0}
    result, texts = made(
        tmp_path, judges={"self": (MODEL, TOKENIZER)}, judge="self", sampling={"banned": [], "logit_bias": bias}
    )
    ends = [text["text"].count("\n\n") for text in texts]
    assert sum(ends) > 6
    assert [len(text["text"]) for text in texts] == [40 + n for n in ends]  # two characters for one token
    assert result["generated"]["judge_bpb"]["value"] > math.log2(result["generated"]["perplexity"]["value"])  # of fewer bytes


def test_beam_search(tmp_path):
    _, texts = made(tmp_path, sampling={"temperature": 0.0, "beams": 3, "max_new_tokens": 20})
    _, greedy = made(tmp_path, sampling={"temperature": 0.0, "max_new_tokens": 20})
    assert [text["prompt"] for text in texts] == [text["prompt"] for text in greedy]
    assert {len(text["text"]) for text in texts} == {20}


def test_documents_are_gone_through_and_their_ends_are_no_words(tmp_path):
    """An end-of-text in a real text separates words, counts no byte, and copies as the token that it is."""
    corpus = Corpus(train=STORY + "|" + STORY, val=HELD_OUT.replace(". It", "|It"))
    result, texts = made(tmp_path, corpus, judges={"same": (MODEL, TOKENIZER)}, judge="same")
    assert any("rose\n\nIt" in text["real"] for text in texts)
    assert all("endoftext" not in "".join(text.values()) for text in texts)
    bits = sum(
        nats[6:].sum() / math.log(2)
        for text in texts
        for nats in token_losses(
            MODEL,
            [np.concatenate([[*TOKENIZER.encode(part), TOKENIZER.end_of_text] for part in
             (text["prompt"] + text["real"]).split("\n\n")])[:-1].astype(int)],
            batch_size=1,
        )
    )  # fmt: skip
    size = sum(len(text["real"].replace("\n\n", "")) for text in texts)
    assert result["real"]["judge_bpb"]["value"] == pytest.approx(bits / size, rel=1e-5)


# The judge


def test_the_model_as_its_own_judge_finds_its_perplexity_again():
    result = make(judges={"self": (MODEL, TOKENIZER)}, judge="self").evaluate(Corpus(), "val")
    for name in ("generated", "real"):
        bits = result[name]["judge_bpb"]
        assert bits["value"] == pytest.approx(math.log2(result[name]["perplexity"]["value"]), rel=1e-5)  # a byte a token
        assert bits["low"] < bits["value"] < bits["high"]


def test_a_judge_with_another_tokenizer_sees_the_same_text():
    wider = CharTokenizer.from_corpus([STORY, HELD_OUT, "BCDEXYZ"])
    other = far_from_linear(gpt(vocab_size=wider.vocab_size, context_length=50, n_layer=1)).eval()
    result = make(judges={"other": (other, wider)}, judge="other").evaluate(Corpus(), "val")
    real = [HELD_OUT[start : start + 47] for start in np.arange(6) * (len(HELD_OUT) - 47) // 5]
    nats = np.concatenate([n[6:] for n in token_losses(other, [wider.encode(text) for text in real], batch_size=3)])
    assert result["real"]["judge_bpb"]["value"] == pytest.approx(nats.mean() / math.log(2), rel=1e-5)


def test_a_judge_that_cannot_read_the_texts_says_why():
    narrow = CharTokenizer.from_corpus(["the fox"])
    judges = {"narrow": (gpt(vocab_size=narrow.vocab_size), narrow)}
    with pytest.raises(UserError, match=r"evaluation.judge=narrow: cannot read what is generated: unknown to this character"):
        make(judges=judges, judge="narrow").evaluate(Corpus(), "val")


# Room in the split


@settings(max_examples=60)
@given(st.integers(2, 9), st.integers(1, 20), st.integers(1, 20), st.integers(0, 300))
def test_no_two_texts_go_on_over_the_same_text(texts, prompt, new, n_tokens):
    evaluation = make(texts=texts, prompt_tokens=prompt, sampling={"max_new_tokens": new})
    if n_tokens < prompt + new * texts:
        with pytest.raises(ConfigError, match="have room for"):
            evaluation._starts("fox", "val", n_tokens)
        return
    starts = evaluation._starts("fox", "val", n_tokens)
    assert (starts[0], starts[-1]) == (0, n_tokens - prompt - new)
    assert (np.diff(starts) >= new).all()


def test_too_little_text_is_told_with_what_there_is_room_for():
    with pytest.raises(ConfigError, match=r"evaluation.texts=60: the 472 tokens of split=val, data=fox, have room for 11"):
        make(texts=60).evaluate(Corpus(), "val")
    with pytest.raises(ConfigError, match=r"use fewer sampling.max_new_tokens, or split=train"):
        make(sampling={"max_new_tokens": 470}).evaluate(Corpus(), "val")


def test_what_is_told_are_two_lines_in_the_same_columns_whatever_the_settings():
    one = make(sampling={"temperature": 0.9}, judges={"self": (MODEL, TOKENIZER)}, judge="self")
    two = make(sampling={"top_k": 5, "min_p": 0.1}, bootstrap=0)
    told = [evaluation.describe(evaluation.evaluate(Corpus(), "val")).splitlines() for evaluation in (one, two)]
    labels = ["6 texts of 40 tokens", "banned=[<|endoftext|>] temperature=0.9 top_k=null", "real text"]
    assert [line[: line.index("  ")] for line in told[0]] == labels
    assert told[1][1].startswith("banned=[<|endoftext|>] temperature=1.0 top_k=5 min_p=0.1")
    assert told[0][0].split("  ")[-1] == "words"
    assert "judge's bpb" in told[0][0]
    assert "judge's bpb" not in told[1][0]
    assert told[0][1].count("±") == 8
    assert told[1][1].count("±") == 2


def test_a_span_longer_than_the_texts_is_copied_nowhere():
    result = make(span=41).evaluate(Corpus(), "val")
    assert result["real"]["copied"] == {"value": None, "low": None, "high": None}
