"""Reports on judged answers and comparisons of two: the published scores, failures that are never lost, and what is refused."""

from __future__ import annotations

import csv
import json
import random

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2x.commands import evaluate
from gpt2x.config.compose import compose
from gpt2x.config.option import ConfigError
from gpt2x.config.schema import TrainConfig
from gpt2x.errors import UserError
from gpt2x.evaluation.judge import comparison
from gpt2x.evaluation.judge.comparison import compare, pair
from gpt2x.evaluation.judge.items import read_items
from gpt2x.evaluation.judge.report import describe, plot, summarise

ANSWERS = ["As fast as a bullet.", "Red", "", "I do not know that at all, but I can try to find out for you."]


def item(i, score=50.0, **changes) -> dict:
    place = i if isinstance(i, int) else len(i)
    texts = {"prompt": f"{i}:", "instruction": f"Do {i}", "input": "", "reference": "As fast as lightning."}
    texts |= {"answer": ANSWERS[place % 4], "finish": ("end_of_text", "length")[place % 2]}
    told = {"score": score, "reason": "so", "raw": "{}", "error": None if score is not None else "no JSON in the reply"}
    asked = {"latency_s": 0.5, "attempts": 1, "seed": 1, "cached": False}
    return {"id": i} | texts | told | asked | {"judge": "llama3.2"} | changes


def items(scores, **changes) -> list[dict]:
    return [item(i, score, **changes) for i, score in enumerate(scores)]


def couple(i, a_first, b_first, **changes) -> dict:
    asked = {"reason": "so", "raw": "{}", "error": None, "latency_s": 0.5, "attempts": 1, "seed": 1, "cached": False}
    orders = [{"first": first, "winner": winner} | asked for first, winner in (("a", a_first), ("b", b_first))]
    texts = {"instruction": f"Do {i}", "input": "", "reference": "sun", "answer_a": "sun " * (1 + i % 3), "answer_b": "a moon"}
    return {"id": i} | texts | {"orders": orders, "judge": "llama3.2"} | changes


SCORES = st.lists(st.one_of(st.none(), st.integers(0, 100)), min_size=1, max_size=10)


# -- the published scores --------------------------------------------------------------------------------------------------


@pytest.fixture
def published(mirror):
    def read(judge: str, model: int) -> list[dict]:
        path = mirror / f"judge-scores-{judge}-model-{model}.json"
        if not path.is_file():
            pytest.skip(f"{path.name} is not there")
        return read_items(path)

    return read


@pytest.mark.parametrize(
    ("judge", "model", "expected", "answers"),
    [("gpt4", 1, 74.09, 100), ("gpt4", 2, 56.57, 100), ("llama3-8b", 1, 77.05, 100), ("llama3-8b", 2, 67.37, 99)],
)
def test_the_published_means(published, judge, model, expected, answers):
    got = summarise(published(judge, model))
    assert round(got["score"]["value"], 2) == expected
    assert (got["items"], got["failed"], got["judge"], got["companions"]) == (answers, 0, None, None)
    assert f"{expected:.1f}" in describe(got)


def test_the_published_difference(published):
    got = compare(published("gpt4", 1), published("gpt4", 2), bootstrap=4000)["measures"]["score"]
    difference = got["difference"]
    assert difference["value"] == pytest.approx(17.52)
    assert (difference["low"], difference["high"]) == pytest.approx((8.4, 26.9), abs=0.4)  # another 4,000 resamples
    assert (got["wins"], got["ties"], got["losses"], round(got["sign_test"], 4)) == (33, 56, 11, 0.0013)
    for side, low, high in (("model", 66.0, 81.8), ("baseline", 47.2, 65.7)):
        assert (got[side]["low"], got[side]["high"]) == pytest.approx((low, high), abs=0.5)


def test_ninety_nine_scores_are_not_paired_with_a_hundred(published):
    with pytest.raises(UserError, match="100 and 99 scores cannot be paired: without ids nobody knows which one is missing"):
        compare(published("llama3-8b", 1), published("llama3-8b", 2))


def test_two_published_judges_of_the_same_answers(published):
    ours, theirs = ([row["score"] for row in published(judge, 1)] for judge in ("gpt4", "llama3-8b"))
    got = summarise([item(i, score, given=given) for i, (score, given) in enumerate(zip(ours, theirs))])["given"]
    assert got["answers"] == 100
    assert got["spearman"]["value"] == pytest.approx(scipy.stats.spearmanr(ours, theirs).statistic)
    assert got["distance"]["value"] == pytest.approx(np.abs(np.subtract(ours, theirs)).mean())
    assert got["within"]["points"] == 10


# -- a report --------------------------------------------------------------------------------------------------------------


def test_what_failed_is_counted_and_listed_whatever_becomes_of_it():
    some = [
        *items([90, None, 30]),
        item(3, 60, attempts=3),
        item(4, None, error="429"),
        item(5, 60, cached=True, latency_s=9.0),
    ]
    got = summarise(some)
    assert (got["items"], got["scored"], got["failed"], got["retried"], got["cached"]) == (6, 4, 2, 1, 1)
    assert got["failures"] == [{"id": 1, "error": "no JSON in the reply"}, {"id": 4, "error": "429"}]
    assert (got["score"]["value"], got["median"]) == (60, 60)
    assert got["bounds"] == {"low": 40, "high": pytest.approx(440 / 6)}
    assert got["seconds"] == {"median": 0.5, "total": 2.5}  # of the five that were asked
    assert sum(part["answers"] for part in got["distribution"]) == 4
    text = describe(got)
    for told in ("Not judged, left out: 2 of 6", "  4: 429", "Asked for more than once: 1. From the cache: 1."):
        assert told in text
    assert "between 40.0 and 73.3" in text
    strict = summarise(some, on_failure="lowest")
    assert (strict["score"]["value"], strict["scored"], strict["failed"]) == (40, 4, 2)
    assert "Not judged, counted as the worst: 2 of 6" in describe(strict)
    grades = summarise(items([5, None, 3], scale=[1, 5]), on_failure="lowest")
    assert grades["score"]["value"] == 3
    with pytest.raises(UserError, match="2 of 6 answers were not judged: 1, 4\n  The first: no JSON"):
        summarise(some, on_failure="raise")


def test_a_judge_that_fails_throughout_leaves_a_report():
    got = summarise(items([None] * 8))
    assert (got["scored"], got["failed"], got["score"]["value"], got["length"]["value"]) == (0, 8, None, None)
    assert "and 3 more" in describe(got)
    assert summarise(items([None] * 8), on_failure="lowest")["score"]["value"] == 0


@settings(max_examples=30)
@given(SCORES, st.randoms())
def test_the_order_of_the_items_changes_nothing(scores, rng: random.Random):
    some = items(scores)
    got = summarise(some, bootstrap=30)
    rng.shuffle(some)
    assert summarise(some, bootstrap=30) == got
    json.dumps(got, allow_nan=False)
    describe(got)
    if got["score"]["value"] is not None:
        assert 0 <= got["score"]["low"] <= got["score"]["value"] <= got["score"]["high"] <= 100


def test_what_stands_beside_the_score():
    got = summarise(items([10, 20, 30, 40], given=None))
    assert got["companions"]["empty"]["value"] == 0.25
    assert got["companions"]["reference_perplexity"]["value"] is None
    assert got["given"] is None
    text = describe(got)
    assert text.splitlines()[0].split() == ["4", "answers", "judged", "by", "llama3.2", "model"]
    assert "ROUGE-L" in text
    assert "perplexity" not in text
    known = summarise(items([10, 20], reference_nats=6.0, reference_tokens=3))
    assert known["companions"]["reference_perplexity"]["value"] == pytest.approx(np.exp(2))
    assert "reference's perplexity" in describe(known)


def test_a_score_that_grows_with_length_shows():
    some = [item(i, 10 * i, answer="word " * i) for i in range(10)]
    assert summarise(some)["length"]["value"] == pytest.approx(1)
    assert summarise(some[::-1])["length"]["value"] == pytest.approx(1)


def test_given_scores_of_some_answers_are_compared_with():
    given = [(4, 5), (2, None), (None, 1), (2, 2), (1, 3)]
    some = [item(i, score, given=other, scale=[1, 5]) for i, (score, other) in enumerate(given)]
    got = summarise(some)["given"]
    assert (got["answers"], got["exact"]["value"], got["distance"]["value"], got["within"]["points"]) == (3, 1 / 3, 1, 1)
    assert "With the 3 given scores" in describe(summarise(some))
    assert summarise(some, within=2)["given"]["within"]["value"] == 1


def test_pairs_have_a_report_of_their_own():
    some = [couple(i, "first", "second") for i in range(6)] + [couple(i, "first", "first") for i in range(6, 14)]
    some += [couple(14, "second", "first"), couple(15, "tie", None)]
    some[15]["orders"][1]["error"] = "cut off"
    got = summarise(some)
    assert (got["kind"], got["items"], got["scored"], got["failed"]) == ("pairwise", 16, 15, 1)
    assert (got["wins"], got["ties"], got["losses"]) == (6, 8, 1)
    assert got["failures"] == [{"id": 15, "error": "cut off"}]
    assert got["companions"]["a"]["words"]["value"] != got["companions"]["b"]["words"]["value"] == 2
    assert 0 < got["length_controlled"]["low"] < got["length_controlled"]["value"] < 1
    json.dumps(got, allow_nan=False)
    text = describe(got)
    assert "6 / 8 / 1" in text
    assert "No difference is shown between a and b (sign test of wins and losses, p=0.12)." in text
    assert "decided 8 pairs, 8 for the first answer and 0 for the second" in text
    assert "the judge prefers what stands first (p=0.0078)" in text
    assert "a is better" in describe(summarise(some[:6]))
    strict = summarise(some, on_failure="lowest")
    assert (strict["losses"], strict["failed"]) == (2, 1)
    random.Random(0).shuffle(some)
    assert summarise(some) == got


def test_no_answers_or_those_of_several_judges_or_off_the_scale_are_refused():
    with pytest.raises(UserError, match="no judged answers"):
        summarise([])
    with pytest.raises(UserError, match=r"several judges \(a, b\)"):
        summarise([item(0, judge="a"), item(1, judge="b")])
    with pytest.raises(UserError, match="the id 0 stands for several"):
        summarise([item(0), item(0)])
    with pytest.raises(UserError, match="item 1: the score 50 is not on the scale from 1 to 5"):
        summarise([item(0, 5, scale=[1, 5]), item(1, 50, scale=[1, 5])])
    with pytest.raises(UserError, match="several scales \\(from 0 to 100 and from 1 to 5\\)"):
        summarise([item(0, 5, scale=[1, 5]), item(1, 50)])
    with pytest.raises(UserError, match="several scales"):
        compare(items([5, 5], scale=[1, 5]), items([5, 5]))


@pytest.mark.parametrize(
    "some", [items([10, 20, None, 90]), items([None]), [couple(0, "first", "second"), couple(1, None, None)]]
)
def test_a_picture_of_any_of_them(some, tmp_path):
    path = plot(some, tmp_path / "plots" / "judged.png", title="a $dollar")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in path.parent.iterdir()] == ["judged.png"]


def test_grades_are_drawn_one_by_one(tmp_path):
    assert plot(items([1, 2, 5], scale=[1, 5]), tmp_path / "grades.png").is_file()


def test_items_and_bare_scores_are_read_and_other_files_refused(tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*items([1, None]), couple(2, "tie", "tie")]))
    assert [row["id"] for row in read_items(path)] == [0, 1, 2]
    path.write_text("[1, 2.5, null]")
    assert read_items(path) == [{"score": 1}, {"score": 2.5}, {"score": None}]
    for text, where in (('[1, "2"]', "record 2"), ("[true]", "record 1"), ('{"score": 1}\n{"id": 2}\n', "line 2")):
        path.write_text(text)
        with pytest.raises(UserError, match=f"items.jsonl: {where}: this is no judged answer"):
            read_items(path)


# -- two of them -----------------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.lists(st.tuples(*[st.one_of(st.none(), st.integers(0, 100))] * 2), min_size=1, max_size=8), st.randoms())
def test_the_other_way_round_is_the_negative_and_the_order_changes_nothing(rows, rng: random.Random):
    ours, theirs = (items(scores) for scores in zip(*rows))
    if not any(None not in row for row in rows):
        with pytest.raises(UserError, match="nothing to compare"):
            compare(ours, theirs)
        return
    got, back = compare(ours, theirs, bootstrap=30), compare(theirs, ours, bootstrap=30)
    assert got["failed"] == back["failed"] == [i for i, row in enumerate(rows) if None in row]
    one, other = got["measures"]["score"], back["measures"]["score"]
    assert one["difference"]["value"] == pytest.approx(-other["difference"]["value"])
    assert one["difference"]["low"] == pytest.approx(-other["difference"]["high"])
    assert (one["wins"], one["losses"], one["model"]) == (other["losses"], other["wins"], other["baseline"])
    rng.shuffle(theirs)
    assert compare(ours, theirs, bootstrap=30) == got
    json.dumps(got, allow_nan=False)


def test_the_same_answers_tie_in_everything():
    some = items([10, 60, 30, 90])
    got = compare(some, some)
    assert list(got["measures"]) == ["score", "exact_match", "rouge_l", "words", "empty", "end_of_text"]
    for row in got["measures"].values():
        assert (row["ties"], row["difference"]["value"], row["sign_test"]) == (4, 0, 1)
    assert "The model and the baseline have the same mean score." in comparison.describe(got)


def test_answers_of_one_alone_are_left_out_by_name():
    ours, theirs = items([80] * 12), [*items([20] * 9)[1:], item("x", 5)]
    theirs[0]["score"] = None
    got = compare(ours, theirs)
    assert got["unpaired"] == {"items": [0, 9, 10, 11], "baseline": ["x"]}
    assert (got["pairs"], got["failed"]) == (7, [1])
    text = comparison.describe(got)
    for told in (
        "7 answers of each judged by llama3.2",
        "Left out, as the baseline has none: 4 (0, 9, 10, 11).",
        "Left out, as the model has none: 1 (x).",
        "Without both scores, left out: 1 (1).",
        "The model is ahead of the baseline by 60.0 points: the interval leaves out 0.",
    ):
        assert told in text
    strict = compare(ours, theirs, on_failure="lowest")
    assert (strict["pairs"], strict["measures"]["score"]["difference"]["value"]) == (8, 62.5)
    with pytest.raises(UserError, match="1 of 8 pairs lack a score: 1\n"):
        compare(ours, theirs, on_failure="raise")


def test_a_difference_that_may_be_chance_is_called_so():
    text = comparison.describe(compare(items([50, 60, 10]), items([60, 40, 15])))
    assert "The model is ahead of the baseline by 1.7 points, which may be chance: the interval holds 0." in text
    bare = comparison.describe(compare(items([50, 60, 10]), items([60, 40, 15]), bootstrap=0))
    assert "The model is ahead of the baseline by 1.7 points." in bare


def test_pairing_needs_the_same_questions():
    with pytest.raises(UserError, match="item 1: the instruction is 'Do 1' in one file, 'Draw' in the other"):
        compare(items([1, 2]), [item(0), item(1, instruction="Draw")])
    with pytest.raises(UserError, match="item 1: the input is '' in one file, 'x' in the other"):
        compare(items([1, 2]), [item(0), item(1, input="x")])
    with pytest.raises(UserError, match="no id in common"):
        compare(items([1, 2]), [item("0"), item("1")])  # a number is no text
    with pytest.raises(UserError, match="verdicts on pairs are a comparison already"):
        compare(items([1]), [couple(0, "tie", "tie")])
    pairs, unpaired = pair(items([1, 2]), [{"score": 3}, {"score": 4}])  # a list of scores, of as many answers
    assert [(one["score"], other["score"]) for one, other in pairs] == [(1, 3), (2, 4)]
    assert unpaired == {"items": [], "baseline": []}


def test_another_judge_of_the_same_answers_is_compared_with_the_judge():
    ours, theirs = items([90, 50, 10, 30]), items([80, 50, 20, None], judge="gpt-4")
    got = compare(ours, theirs)
    assert (got["kind"], got["pairs"], got["failed"]) == ("judges", 3, [3])
    assert (got["agreement"]["distance"]["value"], got["agreement"]["spearman"]["value"]) == (pytest.approx(20 / 3), 1)
    text = comparison.describe(got)
    assert [line.split()[0] for line in text.splitlines()[1:3]] == ["llama3.2", "gpt-4"]
    assert "Spearman 1.00" in text
    with pytest.raises(UserError, match=r"other answers, judged by another judge \(llama3.2 and gpt-4\)"):
        compare(ours, items([1, 2, 3, 4], judge="gpt-4", answer="other"))


# -- evaluation=judged -----------------------------------------------------------------------------------------------------


@pytest.fixture
def judged(tmp_path, monkeypatch, capsys):
    """gpt2x-evaluate evaluation=judged with `overrides`, in a folder with two runs' judged answers; gives the exit code, what
    was printed, and the errors."""
    monkeypatch.chdir(tmp_path)
    for run, scores in (("a", [80, 90, None, 70]), ("b", [40, 90, 10, 60])):
        folder = tmp_path / run / "judged"
        folder.mkdir(parents=True)
        (tmp_path / run / "config.yaml").write_text("")
        (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in items(scores)))

    def call(*overrides: str) -> tuple[int, str, str]:
        code = evaluate(["evaluation=judged", *overrides])
        return code, *capsys.readouterr()

    return call


def test_two_judged_runs_are_compared_without_a_judge(judged, tmp_path):
    files = ["output=out.json", "table=table.csv", "evaluation.plot=plot.png", "evaluation.bootstrap=200"]
    code, out, err = judged("checkpoint=a", "against=b", *files)
    assert (code, err) == (0, "")
    assert "Without both scores, left out: 1 (2)." in out
    assert "3 answers of each judged by llama3.2" in out
    result = json.loads((tmp_path / "out.json").read_text())
    assert (result["evaluation"], result["checkpoint"], result["against"]) == ("judged", "a", "b")
    assert (result["score"]["value"], result["baseline"]["score"]["value"], result["bootstrap"]) == (80, 50, 200)
    assert result["comparison"]["measures"]["score"]["difference"]["value"] == pytest.approx(50 / 3)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "table.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["checkpoint"], row["against"], row["items"], row["score.value"]) == ("a", "b", "4", "80.0")
    told = judged("answers=a/judged/items.jsonl", "against=b/judged/items.jsonl", "evaluation.on_failure=lowest")
    assert told[0] == 0
    assert "counted as the worst: 1 of 4" in told[1]


def test_the_published_scores_from_the_command_line(judged, published, mirror):
    published("gpt4", 2)
    code, out, _ = judged(
        *(f"{name}={mirror}/judge-scores-gpt4-model-{i}.json" for i, name in ((1, "answers"), (2, "against")))
    )
    assert code == 0
    assert "33 / 56 / 11   p=0.0013" in out


@pytest.mark.parametrize(
    ("overrides", "code", "message"),
    [
        ([], 2, "checkpoint= or answers=, and neither is given"),
        (["checkpoint=a", "answers=a/judged/items.jsonl"], 2, "checkpoint= or answers=, and both are given"),
        (["checkpoint=a", "judge=book"], 2, "judge=book: evaluation=judged reads what is judged already"),
        (["checkpoint=a", "split=val"], 2, "split=val: evaluation=judged reads what is judged already"),
        (["checkpoint=a", "data=instructions_sample"], 2, "evaluation=judged reads what is judged already"),
        (["checkpoint=a", "against=nowhere"], 2, "against=nowhere"),
        (["checkpoint=a", "evaluation.plot=b"], 2, "evaluation.plot=b: is a folder"),
        (["checkpoint=c"], 1, "c: the answers of this run are not judged yet (it has no judged/items.jsonl)"),
        (["checkpoint=a", "evaluation.on_failure=raise"], 1, "1 of 4 answers were not judged: 2"),
    ],
)
def test_what_cannot_be_told_of_is_refused(judged, tmp_path, overrides, code, message):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "config.yaml").write_text("")
    got, out, err = judged(*overrides)
    assert (got, out) == (code, "")
    assert message in err


def test_a_run_does_not_end_with_reading_what_was_judged():
    with pytest.raises(ConfigError, match="evaluation=judged: reads what evaluation=judge has written"):
        compose("train", TrainConfig, ["evaluation=judged", "task=instruct", "data=instructions_sample"])
