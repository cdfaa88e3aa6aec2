"""ROUGE reports against rouge-score, a ROUGE written out here, and cases worked out by hand."""

from __future__ import annotations

import json
import logging
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from gpt2x.config.option import ConfigError
from gpt2x.errors import UserError
from gpt2x.evaluation.config import RougeConfig
from gpt2x.evaluation.rouge import MEASURES, Rouge, describe, lead, report, rouge, sentences

WORDS = st.lists(st.sampled_from(["red", "fox", "ran", "far", "sun"]), max_size=7).map(" ".join)  # too short to be stemmed


def f1(hits: int, answer: int, reference: int) -> float:
    return 2 * hits / (answer + reference) if hits else 0.0


def ngram_f1(answer: str, reference: str, n: int) -> float:
    a, b = (Counter(zip(*(text.split()[i:] for i in range(n)))) for text in (answer, reference))
    return f1((a & b).total(), a.total(), b.total())


def lcs_f1(answer: str, reference: str) -> float:
    a, b = answer.split(), reference.split()

    def longest(i: int, j: int) -> int:
        if i == len(a) or j == len(b):
            return 0
        return 1 + longest(i + 1, j + 1) if a[i] == b[j] else max(longest(i + 1, j), longest(i, j + 1))

    return f1(longest(0, 0), len(a), len(b))


@settings(max_examples=60)
@given(WORDS, st.lists(WORDS, min_size=1, max_size=3))
def test_the_scores_are_rouge_and_the_best_reference_counts_for_each(answer, references):
    got = rouge([answer], [references])
    assert got["rouge1"] == pytest.approx(max(ngram_f1(answer, r, 1) for r in references))
    assert got["rouge2"] == pytest.approx(max(ngram_f1(answer, r, 2) for r in references))
    assert got["rougeL"] == pytest.approx(max(lcs_f1(answer, r) for r in references))


def test_each_measure_has_its_own_best_reference():
    got = rouge(["a b c d e f"], [("f e d c b a", "a b")])  # all words in no order, or two in order
    assert (got["rouge1"][0], got["rouge2"][0]) == (1.0, pytest.approx(2 / 6))


def test_words_are_stemmed():
    assert rouge(["summarizes cats"], [("summarized cat",)])["rouge1"][0] == 1.0
    plain = RougeScorer(["rouge1"], use_stemmer=False).score("summarized cat", "summarizes cats")
    assert plain["rouge1"].fmeasure == 0.0


@settings(max_examples=30)
@given(st.permutations(range(3)))
def test_the_order_of_references_changes_nothing(order):
    references = ["the fox ran", "red sun", "far fox red sun"]
    a, b = (rouge(["the red fox"], [texts]) for texts in (references, [references[i] for i in order]))
    assert all(a[name] == b[name] for name in MEASURES)


def make(answers, references, sources=None, finishes=None, **options) -> dict:
    sources = sources or [""] * len(answers)
    return report(answers, references, sources, finishes or ["end_of_text"] * len(answers), **({"bootstrap": 200} | options))


def test_a_report_worked_out_by_hand():
    got = make(
        ["The fox ran.", "", "Red sun set now"],
        [("The fox ran.",), ("A dog slept well", "A cat"), ("Moon",)],
        ["The fox ran. It was far. It was dark. It slept.", "A dog slept well! Then?", ["Moon", "Sun"]],
        ["end_of_text", "end_of_text", "length"],
    )
    model, lead1, lead3 = got["systems"].values()
    assert list(got["systems"]) == ["model", "lead-1", "lead-3"]
    assert [model[name]["value"] for name in MEASURES] == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    assert [lead1[name]["value"] for name in MEASURES] == pytest.approx([1, 2 / 3, 1])  # a word has no pairs
    assert lead3["rouge1"]["value"] == pytest.approx((2 * 3 / 12 + 2 * 4 / 9 + 2 * 1 / 3) / 3)
    assert (model["words"], lead1["words"], lead3["words"]) == pytest.approx((7 / 3, 8 / 3, 16 / 3))
    assert got["references"] == {"number": pytest.approx(4 / 3), "words": pytest.approx(10 / 4)}
    assert got["length_ratio"] == pytest.approx((7 / 3) / (10 / 4))
    assert (got["examples"], got["empty"], got["cut_short"], got["foreign"]) == (3, 1 / 3, 1 / 3, 0)
    text = describe(got)
    assert [line.split()[0] for line in text.splitlines()[1:5]] == ["model", "lead-1", "lead-3", "references"]
    assert "33.3% of the answers are empty, 33.3% were cut off" in text
    assert "lead-1 is ahead of the model in ROUGE-L by 0.6667." in text
    assert "1.3 references an example: the best one counts" in text
    json.dumps(got, allow_nan=False)


@settings(max_examples=30)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=8), st.integers(0, 100))
def test_intervals_hold_the_mean(pairs, seed):
    got = make([a for a, _ in pairs], [(r,) for _, r in pairs], seed=seed)["systems"]["model"]
    for name in MEASURES:
        mean = np.mean([rouge([a], [(r,)])[name][0] for a, r in pairs])
        assert got[name]["value"] == pytest.approx(mean)
        assert 0 <= got[name]["low"] <= got[name]["value"] <= got[name]["high"] <= 1


def test_intervals_follow_the_seed_and_can_be_left_out():
    answers, references = ["red fox", "sun", "far ran"], [("red fox",), ("moon",), ("far",)]
    assert make(answers, references, seed=1) == make(answers, references, seed=1)
    assert make(answers, references, seed=1) != make(answers, references, seed=2)
    bare = make(answers, references, bootstrap=0)
    assert bare["systems"]["model"]["rouge1"]["low"] is None
    assert "(" not in describe(bare).splitlines()[1]


def test_without_sources_there_are_no_leads():
    got = make(["red"], [("red",)])
    assert list(got["systems"]) == ["model"]
    assert "Without the leads" in describe(got)
    assert list(make(["red", "sun"], [("red",), ("sun",)], ["Red. Sun.", "  "])["systems"]) == ["model"]


def test_equal_systems_are_called_equal():
    assert "The model and lead-1 are level" in describe(make(["Red fox."], [("Red fox.",)], ["Red fox."]))


def test_what_rouge_cannot_read_is_told(caplog):
    with caplog.at_level(logging.WARNING):
        got = make(["Лиса бежит", "fox"], [("Лиса бежит",), ("fox",)])
    assert got["foreign"] == 1
    assert "1 of 2 examples have no reference in the letters a to z" in caplog.text


def test_nothing_to_compare_with():
    with pytest.raises(UserError, match="example 2 has no reference"):
        make(["a", "b"], [("a",), ()])
    with pytest.raises(ValueError, match="no answers"):
        make([], [])
    empty = make(["a"], [("",)])
    assert empty["length_ratio"] is None
    assert "times the words" not in describe(empty)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ('He said "go." She went.', ['He said "go."', "She went."]),
        ("We use e.g. CNNs (cf. Fig. 3) by Dr. A. Smith et al. Then more.", None),
        ("Costs 3.5 percent. in all", None),
        ("first line\nSecond line\n\n", ["first line", "Second line"]),
        ('Wow... OK. "Quoted" it is. \'Tis so.', ["Wow...", "OK.", '"Quoted" it is.', "'Tis so."]),
        ("Été. Où? Ça va.", ["Été.", "Où?", "Ça va."]),
        ("", []),
        (" \n ", []),
        (["One. And a half. ", "", "Two.\n"], ["One. And a half.", "Two."]),
    ],
)
def test_sentences(text, expected):
    assert sentences(text) == ([text] if expected is None else expected)


@given(st.text(alphabet="aB.!? \n\"'(e", max_size=60))
def test_sentences_lose_nothing_but_white_space(text):
    assert "".join("".join(sentences(text)).split()) == "".join(text.split())


def test_lead():
    assert lead("One. Two. Three. Four.", 1) == "One."
    assert lead("One. Two. Three. Four.", 3) == "One. Two. Three."
    assert lead(["One", "Two"], 3) == "One Two"
    assert lead("", 3) == ""


def test_real_summaries_with_several_references(mirror):
    lines = (mirror / "scitldr-a-test.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines[:40]]
    references = [tuple(row["target"]) for row in rows]
    assert max(map(len, references)) > 1
    own = make([texts[-1] for texts in references], references, [row["source"] for row in rows])
    assert own["systems"]["model"]["rouge1"]["value"] == pytest.approx(1)
    scorer = RougeScorer(list(MEASURES), use_stemmer=True)
    best = [max(scorer.score(text, row["source"][0])["rougeL"].fmeasure for text in row["target"]) for row in rows]
    assert own["systems"]["lead-1"]["rougeL"]["value"] == pytest.approx(np.mean(best))


# -- the evaluation of the command --------------------------------------------------------------------------------------


def record(instruction: str, text: str, *outputs: str) -> SimpleNamespace:
    return SimpleNamespace(instruction=instruction, input=text, outputs=outputs, line=1)


RECORDS = [record("Sum up", f"Fox {i} ran. It was far." + " Then more." * i, f"Fox {i}", f"Fox {i} ran") for i in range(5)]
CORPUS = SimpleNamespace(name="foxes", splits={"train": [], "val": RECORDS, "test": []})


def evaluation(answer=None, **changes) -> Rouge:
    def first_words(prompts, sampling, seed):
        return [(" ".join(prompt.split(": ")[1].split()[:2]), "end_of_text") for prompt in prompts]

    options = dict(batch_size=2, max_examples=None, max_new_tokens=9, beams=1, bootstrap=50, predictions=None)
    return Rouge(answer or first_words, "{}: {}".format, **(options | changes))


def test_an_evaluation_asks_for_each_example_and_reports_in_their_order(tmp_path):
    measure = evaluation(predictions=str(tmp_path / "answers.jsonl"))
    got = measure.evaluate(CORPUS, "val")
    answers, references = [f"Fox {i}" for i in range(5)], [r.outputs for r in RECORDS]
    expected = report(answers, references, [r.input for r in RECORDS], ["end_of_text"] * 5, bootstrap=50)
    assert got == {"evaluation": "rouge", "max_new_tokens": 9, "beams": 1} | expected
    assert measure.describe(got) == describe(expected)
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [line["answer"] for line in lines] == answers
    assert lines[1]["prompt"] == "Sum up: Fox 1 ran. It was far. Then more."
    assert (lines[1]["references"], lines[1]["rouge1"], lines[1]["finish"]) == (["Fox 1", "Fox 1 ran"], 1.0, "end_of_text")


def test_an_evaluation_tells_the_model_how_to_answer():
    asked = []

    def answer(prompts, sampling, seed):
        asked.append((len(prompts), sampling.max_new_tokens, sampling.temperature, sampling.beams))
        return [("Fox", "length")] * len(prompts)

    got = evaluation(answer, beams=3, max_examples=3).evaluate(CORPUS, "val")
    assert asked == [(2, 9, 0.0, 3), (1, 9, 0.0, 3)]
    assert (got["examples"], got["cut_short"], got["beams"]) == (3, 1.0, 3)


def test_an_evaluation_refuses_an_empty_split_and_a_file_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match="split=test: data=foxes has no examples there"):
        evaluation().evaluate(CORPUS, "test")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="evaluation.predictions=.*cannot be written"):
        evaluation(predictions=str(tmp_path / "file" / "x")).evaluate(CORPUS, "val")
    with pytest.raises(ConfigError, match="predictions=.*is a folder"):
        RougeConfig(predictions=str(tmp_path)).check_available()
