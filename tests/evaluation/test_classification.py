"""The classification report against scikit-learn, brute force and what must hold for any classifier."""

from __future__ import annotations

import csv
import json
import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2x.config.option import ConfigError
from gpt2x.errors import UserError
from gpt2x.evaluation import classification
from gpt2x.evaluation.baseline import tfidf_baseline
from gpt2x.evaluation.classification import (
    SUMMARY,
    Classification,
    accuracy_difference,
    describe,
    flat,
    plot_classification,
    report,
    statistics,
)
from gpt2x.evaluation.config import ClassificationConfig

LABELS = ["ham", "spam", "offer", "news", "other"]


@pytest.fixture(autouse=True)
def no_warnings():
    """scikit-learn and numpy warn of what is not defined: here all of it is handled."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def simulate(n: int, n_classes: int, seed: int = 0, spread: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Classes that are drawn from the probabilities themselves: a perfectly calibrated classifier."""
    rng = np.random.default_rng(seed)
    exps = np.exp(rng.normal(size=(n, n_classes)) * spread)
    probabilities = exps / exps.sum(axis=1, keepdims=True)
    return (rng.random(n)[:, None] > probabilities.cumsum(axis=1)[:, :-1]).sum(axis=1), probabilities


def measure(truth, probabilities, **options) -> dict:
    probabilities = np.asarray(probabilities, dtype=float)
    settings = {"labels": LABELS[: probabilities.shape[1]], "bootstrap": 0} | options
    return report(np.asarray(truth), probabilities, **settings)


def one_hot(classes, n_classes: int) -> np.ndarray:
    return np.eye(n_classes)[np.asarray(classes)]


def brute_force_ece(truth, probabilities, bins: int) -> float:
    total = 0.0
    for i in range(bins):
        low, high = i / bins, (i + 1) / bins
        rows = [(p.max(), p.argmax() == t) for t, p in zip(truth, probabilities) if low < p.max() <= high]
        total += abs(sum(p for p, _ in rows) - sum(hit for _, hit in rows))
    return total / len(truth)


def brute_force_auroc(positive, scores) -> float:
    above = [(a > b) + (a == b) / 2 for a in scores[positive] for b in scores[~positive]]
    return sum(above) / len(above)


@pytest.mark.parametrize("n_classes", [2, 3, 5])
def test_the_numbers_are_scikit_learns(n_classes):
    truth, probabilities = simulate(300, n_classes)
    got, predicted = measure(truth, probabilities), probabilities.argmax(axis=1)
    assert got["accuracy"]["value"] == pytest.approx(sk.accuracy_score(truth, predicted))
    assert got["balanced_accuracy"]["value"] == pytest.approx(sk.balanced_accuracy_score(truth, predicted))
    assert got["f1"]["value"] == pytest.approx(sk.f1_score(truth, predicted, average="macro"))
    assert got["log_loss"]["value"] == pytest.approx(sk.log_loss(truth, probabilities))
    assert got["ece"]["value"] == pytest.approx(brute_force_ece(truth, probabilities, 15))
    assert got["confusion"] == sk.confusion_matrix(truth, predicted).tolist()
    aurocs = [brute_force_auroc(truth == k, probabilities[:, k]) for k in range(n_classes)]
    assert got["auroc"]["value"] == pytest.approx(aurocs[1] if n_classes == 2 else np.mean(aurocs))
    for k, row in enumerate(got["classes"]):
        p, r, f, n = (part[k] for part in sk.precision_recall_fscore_support(truth, predicted))
        assert [row["precision"]["value"], row["recall"]["value"], row["f1"]["value"]] == pytest.approx([p, r, f])
        assert (row["support"], row["predicted"], row["label"]) == (n, (predicted == k).sum(), LABELS[k])


@settings(max_examples=40)
@given(st.integers(2, 5), st.integers(5, 60), st.integers(0, 10**6), st.sampled_from([1, 2, 3, 10]))
def test_resampled_numbers_are_scikit_learns_with_those_weights(n_classes, n, seed, bins):
    """With ties among the probabilities, and resamples that lack a class."""
    rng = np.random.default_rng(seed)
    probabilities = rng.integers(1, 4, (n, n_classes)).astype(float)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    truth = rng.integers(0, n_classes, n)
    counts_BN = rng.integers(0, 3, (4, n)).astype(float)
    counts_BN[:, 0] = 1  # none is empty
    rows = statistics(truth, probabilities, counts_BN, bins)
    for row, counts in zip(rows, counts_BN.astype(int)):
        t, p = np.repeat(truth, counts), np.repeat(probabilities, counts, axis=0)
        predicted = p.argmax(axis=1)
        recall = [np.mean(predicted[t == k] == k) for k in np.unique(t)]
        auroc = np.nan
        if len(np.unique(t)) == n_classes:
            auroc = sk.roc_auc_score(t, p[:, 1]) if n_classes == 2 else sk.roc_auc_score(t, p, multi_class="ovr")
        f1 = sk.f1_score(t, predicted, labels=range(n_classes), average=None, zero_division=np.nan)
        expected = [
            np.mean(recall),
            sk.f1_score(t, predicted, average="macro"),
            auroc,
            sk.log_loss(t, p, labels=range(n_classes)),
            brute_force_ece(t, p, bins),
            *f1,
        ]
        assert row == pytest.approx(np.array(expected), nan_ok=True)


@settings(max_examples=25)
@given(st.integers(2, 5), st.integers(1, 40), st.integers(0, 10**6))
def test_intervals_hold_the_estimate(n_classes, n, seed):
    truth, probabilities = simulate(n, n_classes, seed)
    got = measure(truth, probabilities, bootstrap=50)
    scores = [got[name] for name in SUMMARY]
    scores += [row[measure] for row in got["classes"] for measure in ("precision", "recall", "f1")]
    for score in scores:
        if score["value"] is None:
            assert (score["low"], score["high"]) == (None, None)
        else:
            assert 0 <= score["low"] <= score["value"] <= score["high"]
            assert score["high"] <= 1 or score is got["log_loss"]
    json.dumps(got, allow_nan=False)


@pytest.mark.parametrize("n_classes", [2, 4])
def test_a_perfect_classifier(n_classes):
    truth = np.arange(40) % n_classes
    got = measure(truth, one_hot(truth, n_classes), bootstrap=100)
    for name in ("accuracy", "balanced_accuracy", "f1", "auroc"):
        assert (got[name]["value"], got[name]["high"]) == (1, 1)
    assert got["accuracy"]["low"] == pytest.approx(1 - 1 / (1 + 40 / 1.959964**2))  # Wilson's: 40 rows are no proof
    for name in ("log_loss", "ece"):
        assert list(got[name].values()) == pytest.approx([0, 0, 0], abs=1e-15)


def test_a_classifier_that_always_says_the_same():
    got = measure([0] * 30 + [1] * 10, [[0.9, 0.1]] * 40, bootstrap=100)
    assert (got["accuracy"]["value"], got["balanced_accuracy"]["value"], got["auroc"]["value"]) == (0.75, 0.5, 0.5)
    assert got["f1"]["value"] == pytest.approx((2 * 30 / 70 + 0) / 2)
    assert got["ece"]["value"] == pytest.approx(0.15)
    assert got["classes"][1]["precision"] == {"value": None, "low": None, "high": None}
    assert got["classes"][1]["recall"]["value"] == 0
    assert got["log_loss"]["value"] == pytest.approx(-(30 * math.log(0.9) + 10 * math.log(0.1)) / 40)
    assert "precision/spam" not in flat(got)


@settings(max_examples=20)
@given(st.permutations(range(4)), st.integers(0, 1000))
def test_the_order_of_the_classes_changes_nothing(order, seed):
    truth, probabilities = simulate(50, 4, seed)
    order = np.array(order)
    before, after = measure(truth, probabilities), measure(np.argsort(order)[truth], probabilities[:, order])
    for name in SUMMARY:
        assert after[name]["value"] == (None if before[name]["value"] is None else pytest.approx(before[name]["value"]))
    assert (np.array(after["confusion"]) == np.array(before["confusion"])[np.ix_(order, order)]).all()


def test_a_calibrated_classifier_has_a_small_calibration_error_and_a_boastful_one_has_not():
    truth, probabilities = simulate(40_000, 3)
    assert measure(truth, probabilities)["ece"]["value"] < 0.01
    boastful = probabilities**3 / (probabilities**3).sum(axis=1, keepdims=True)
    got = measure(truth, boastful)
    assert got["ece"]["value"] > 0.1
    assert got["accuracy"] == measure(truth, probabilities)["accuracy"]
    used = [bin for bin in got["calibration"] if bin["rows"] > 500]
    assert all(bin["accuracy"] < bin["confidence"] for bin in used)
    assert sum(bin["rows"] for bin in got["calibration"]) == 40_000


@pytest.mark.parametrize("confidence", [0.6, 0.8, 1.0])
def test_a_confidence_on_an_edge_belongs_to_the_bin_below_it(confidence):
    (used,) = [b for b in measure([0], [[confidence, 1 - confidence]], bins=5)["calibration"] if b["rows"]]
    assert used["high"] == pytest.approx(confidence)


def test_a_class_that_is_absent():
    truth, probabilities = simulate(200, 3)
    keep = truth != 2
    got, predicted = measure(truth[keep], probabilities[keep], bootstrap=50), probabilities[keep].argmax(axis=1)
    assert got["auroc"] == {"value": None, "low": None, "high": None}
    assert got["classes"][2]["recall"]["value"] is None
    assert (got["classes"][2]["support"], got["classes"][2]["precision"]["value"]) == (0, 0)
    recalls = [np.mean(predicted[truth[keep] == k] == k) for k in (0, 1)]
    assert got["balanced_accuracy"]["value"] == pytest.approx(np.mean(recalls))
    assert got["f1"]["value"] == pytest.approx(sk.f1_score(truth[keep], predicted, average="macro"))
    assert "auroc" not in flat(got)
    never = measure([0, 1, 0], [[0.6, 0.4, 0], [0.3, 0.7, 0], [0.9, 0.1, 0]])  # and nobody predicts it
    assert never["f1"]["value"] == 1
    assert never["classes"][2]["f1"]["value"] is None


def test_one_row():
    got = measure([1], [[0.3, 0.7]], bootstrap=20)
    assert (got["rows"], got["accuracy"]["value"], got["auroc"]["value"]) == (1, 1, None)
    assert got["ece"]["value"] == pytest.approx(0.3)
    assert "0.2065" in describe(got)  # Wilson's lower end of one hit in one trial


def test_the_same_seed_gives_the_same_intervals_and_more_rows_narrow_them():
    truth, probabilities = simulate(3200, 2)
    few, again = (measure(truth[:200], probabilities[:200], bootstrap=200) for _ in range(2))
    many = measure(truth, probabilities, bootstrap=200)
    assert few == again
    assert few != measure(truth[:200], probabilities[:200], bootstrap=200, seed=2)
    for name in SUMMARY:
        width = few[name]["high"] - few[name]["low"]
        assert (many[name]["high"] - many[name]["low"]) / width == pytest.approx(1 / 4, abs=0.12)


def test_what_a_trained_network_gives_is_taken_and_nonsense_is_not():
    truth, probabilities = simulate(100, 3)
    rounded = probabilities.astype(np.float32)
    assert measure(truth, rounded)["log_loss"]["value"] == pytest.approx(sk.log_loss(truth, probabilities), rel=1e-5)
    broken = probabilities.copy()
    broken[41, 1] = np.nan
    with pytest.raises(UserError, match="row 42 are .*nan.*: the model's weights are no good; choose another checkpoint"):
        measure(truth, broken)
    with pytest.raises(UserError, match="row 42"):
        measure(truth, np.where(np.isnan(broken), np.inf, broken))
    with pytest.raises(ValueError, match="add up to 1"):
        measure(truth, probabilities * 2)
    with pytest.raises(ValueError, match="at least 0"):
        measure([0], [[1.5, -0.5]])
    for wrong in ([0, 3], [-1, 0], [0.0, 1.0]):
        with pytest.raises(ValueError, match="whole numbers from 0 to 2"):
            measure(wrong, probabilities[:2])
    with pytest.raises(ValueError, match=r"they have the shape \(100, 3\)"):
        measure(truth, probabilities, labels=LABELS[:2])
    with pytest.raises(ValueError, match="0 rows"):
        measure([], np.empty((0, 2)))


def test_a_certain_mistake_costs_a_finite_loss():
    got = measure([0, 1], [[0.0, 1.0], [0.0, 1.0]], bootstrap=20)
    assert got["log_loss"]["value"] == pytest.approx(52 * math.log(2) / 2)


def test_flat_holds_finite_numbers_by_the_names_of_a_log():
    truth, probabilities = simulate(100, 2)
    row = flat(measure(truth, probabilities))
    assert {*SUMMARY, "precision/ham", "recall/spam", "f1/spam"} <= row.keys()
    assert all(isinstance(value, float) and math.isfinite(value) for value in row.values())


def test_the_tables_say_what_the_report_holds():
    truth, probabilities = simulate(500, 2)
    got = measure(truth, probabilities, bootstrap=100)
    text = describe(got)
    accuracy = got["accuracy"]
    assert f"accuracy                 {accuracy['value']:.4f} ({accuracy['low']:.4f} to {accuracy['high']:.4f})" in text
    for label, counts in zip(["ham", "spam"], got["confusion"]):
        assert [label, *map(str, counts)] in [line.split() for line in text.splitlines()]
    assert "ECE with 15 bins" in text
    assert "100 resamples" in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize(
    ("difference", "said"),
    [
        ((0.05, 0.01, 0.08), "The model is ahead of the baseline in accuracy by 0.0500 (0.0100 to 0.0800)."),
        (
            (0.02, -0.01, 0.05),
            "The model is ahead of the baseline in accuracy by 0.0200 (-0.0100 to 0.0500), which may be chance.",
        ),
        ((-0.05, -0.08, -0.01), "The baseline is ahead of the model in accuracy by 0.0500 (0.0100 to 0.0800)."),
        ((-0.02, -0.05, 0.01), "The baseline is ahead of the model in accuracy by 0.0200 (-0.0100 to 0.0500), which may be"),
        ((-0.02, None, None), "The baseline is ahead of the model in accuracy by 0.0200."),
        ((0.0, -0.01, 0.01), "The model and the baseline have the same accuracy."),
    ],
)
def test_it_is_said_who_wins(difference, said):
    got = measure(*simulate(50, 2))
    baseline = got | {"accuracy_difference": dict(zip(["value", "low", "high"], difference))}
    assert describe(got, baseline).splitlines()[-1].startswith(said)


def test_a_difference_is_measured_on_the_same_rows():
    truth, probabilities = simulate(400, 3)
    other = probabilities.copy()
    other[:20] = one_hot((truth[:20] + 1) % 3, 3)  # wrong on these, and equal elsewhere
    lost = (probabilities[:20].argmax(axis=1) == truth[:20]).mean() * 20 / 400
    got = accuracy_difference(truth, probabilities, other)
    assert got["value"] == pytest.approx(lost)
    assert lost - 0.03 < got["low"] < lost < got["high"] < lost + 0.03  # far narrower than two intervals of accuracy
    swapped = accuracy_difference(truth, other, probabilities)
    assert [swapped["low"], swapped["high"]] == pytest.approx([-got["high"], -got["low"]])
    assert accuracy_difference(truth, other, other) == {"value": 0, "low": 0, "high": 0}
    assert accuracy_difference(truth, one_hot(truth, 3), one_hot((truth + 1) % 3, 3))["low"] == 1
    assert accuracy_difference(truth, probabilities, other, bootstrap=0)["low"] is None


def test_many_classes_have_no_confusion_matrix_in_the_text():
    truth, probabilities = simulate(300, 40)
    got = measure(truth, probabilities, labels=[f"class {k} " * 20 for k in range(40)])
    assert "predicted\n" in describe(got)
    assert "true \\ predicted" not in describe(got)
    assert np.shape(got["confusion"]) == (40, 40)


def png_size(path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert data[-8:-4] == b"IEND"
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])


@pytest.mark.parametrize(
    "labels", [["ham", "spam"], ["$", "$^$"], ["a", "b", "never there"], [f"class {k}" for k in range(30)]]
)
def test_the_picture_is_a_png(tmp_path, labels):
    n_classes = len(labels)
    truth, probabilities = simulate(200, n_classes)
    if "never there" in labels:
        truth = truth % 2
    path = tmp_path / "new folder" / "picture.png"
    plot_classification(measure(truth, probabilities, labels=labels), path)
    assert png_size(path) == (1320, 600)
    assert [p.name for p in path.parent.iterdir()] == ["picture.png"]


def test_a_picture_that_fails_leaves_the_one_before(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    path, got = tmp_path / "picture.png", measure(*simulate(50, 2))
    plot_classification(got, path)
    before = path.read_bytes()

    def fail(self, file, **options):
        file.write_bytes(b"half a picture")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        plot_classification(got, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["picture.png"]


WORDS = {0: ["meet", "lunch", "home", "later"], 1: ["prize", "win", "cash", "claim"]}


def messages(n: int, seed: int) -> tuple[list[str], list[int]]:
    rng = np.random.default_rng(seed)
    labels = [int(k) for k in rng.integers(0, 2, n)]
    texts = [" ".join(rng.choice([*WORDS[k], "you", "the", "to", "now"], 6)) for k in labels]
    return texts, labels


def test_the_baseline_learns_words_and_says_how_sure_it_is():
    (train, train_labels), (texts, labels) = messages(200, 0), messages(100, 1)
    probabilities = tfidf_baseline(train, train_labels, texts, 2)
    assert probabilities.shape == (100, 2)
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(100))
    assert (probabilities.argmax(axis=1) == labels).mean() > 0.95
    assert (tfidf_baseline(train, train_labels, texts, 2) == probabilities).all()


def test_the_baseline_sees_nothing_of_the_texts_that_it_is_asked_about():
    (train, train_labels), (texts, _) = messages(60, 0), messages(20, 1)
    together = tfidf_baseline(train, train_labels, texts, 2)
    alone = np.concatenate([tfidf_baseline(train, train_labels, [text], 2) for text in texts[:3]])
    assert alone == pytest.approx(together[:3], rel=1e-12)


def test_the_baseline_takes_class_weights_and_absent_and_rare_classes():
    train, labels = messages(40, 0)
    even = tfidf_baseline(train, labels, ["something else"], 2)
    tilted = tfidf_baseline(train, labels, ["something else"], 2, class_weights=[1.0, 50.0])
    assert tilted[0, 1] > even[0, 1] + 0.1
    absent = tfidf_baseline(train, [2 * k for k in labels], train, 3)
    assert (absent[:, 1] == 0).all()
    single = tfidf_baseline([*train, "unique"], [*labels, 2], ["unique"], 3)  # its class cannot be cross-validated
    assert single.sum() == pytest.approx(1)


def test_the_baseline_refuses_what_teaches_nothing():
    with pytest.raises(UserError, match="fewer than two classes; use evaluation.baseline=false"):
        tfidf_baseline(["a", "b"], [1, 1], ["c"], 2)
    with pytest.raises(UserError, match="no words; use evaluation.baseline=false"):
        tfidf_baseline(["!", "?"], [0, 1], ["c"], 2)


def test_the_baseline_on_real_messages(mirror):
    lines = (mirror / "SMSSpamCollection").read_text(encoding="utf-8").split("\n")
    rows = [line.split("\t", 1) for line in lines if line][:2000]
    labels, texts = [int(label == "spam") for label, _ in rows], [text for _, text in rows]
    probabilities = tfidf_baseline(texts[:1400], labels[:1400], texts[1400:], 2)
    assert (probabilities.argmax(axis=1) == labels[1400:]).mean() > 0.97


# -- the evaluation of the command --------------------------------------------------------------------------------------


def corpus(**splits) -> SimpleNamespace:
    rows = {
        split: [SimpleNamespace(text=text, label=label, line=i + 2) for i, (text, label) in enumerate(zip(*part))]
        for split, part in splits.items()
    }
    return SimpleNamespace(name="mail", labels=["ham", "spam"], splits={"train": [], "val": [], "test": []} | rows)


def by_words(texts) -> np.ndarray:
    """A classifier that counts the words of spam."""
    counts = np.array([sum(word in WORDS[1] for word in text.split()) for text in texts])
    spam = (1 + counts) / (4 + counts)
    return np.stack([1 - spam, spam], axis=1)


def evaluation(predict=by_words, **changes) -> Classification:
    options = dict(batch_size=7, bootstrap=50, bins=10, baseline=False, predictions=None, plot=None)
    return Classification(predict, **(options | changes))


def test_an_evaluation_is_the_report_of_its_split():
    texts, labels = messages(100, 1)
    seen = []

    def predict(batch):
        seen.append(len(batch))
        return by_words(batch)

    got = evaluation(predict).evaluate(corpus(train=messages(10, 0), test=(texts, labels)), "test")
    assert got.pop("evaluation") == "classification"
    assert got.pop("baseline") is None
    assert got == report(np.array(labels), by_words(texts), labels=["ham", "spam"], bins=10, bootstrap=50)
    assert seen == [7] * 14 + [2]
    assert evaluation(batch_size=1000).evaluate(corpus(test=(texts, labels)), "test") == got | {
        "evaluation": "classification",
        "baseline": None,
    }


@pytest.mark.parametrize("weights", [None, [1.0, 5.0]])
def test_an_evaluation_has_the_baseline_beside_it_trained_on_the_training_split(weights):
    train, test = messages(100, 0), messages(50, 1)
    measure = evaluation(baseline=True, class_weights=weights)
    got = measure.evaluate(corpus(train=train, test=test), "test")
    guessed = tfidf_baseline(*train, test[0], 2, class_weights=weights)
    difference = got["baseline"].pop("accuracy_difference")
    assert difference == accuracy_difference(np.array(test[1]), by_words(test[0]), guessed, bootstrap=50)
    assert got["baseline"] == report(np.array(test[1]), guessed, labels=["ham", "spam"], bins=10, bootstrap=50)
    got["baseline"]["accuracy_difference"] = difference
    text = measure.describe(got)
    assert "TF-IDF + logistic regression" in text
    assert "ahead of the" in text or "same accuracy" in text
    json.dumps(got, allow_nan=False)


def test_an_evaluation_writes_predictions_and_the_picture(tmp_path):
    texts, labels = ['say "hi", you', "prize cash\nwin claim"], [0, 1]
    files = dict(predictions=str(tmp_path / "rows.csv"), plot=str(tmp_path / "picture.png"))
    evaluation(**files).evaluate(corpus(val=(texts, labels)), "val")
    with open(files["predictions"], newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows] == texts
    assert [(row["label"], row["predicted"]) for row in rows] == [("ham", "ham"), ("spam", "spam")]
    expected = by_words(texts)
    for row, (ham, spam) in zip(rows, expected):
        assert [float(row["probability ham"]), float(row["probability spam"])] == pytest.approx([ham, spam], rel=1e-5)
    assert png_size(tmp_path / "picture.png") == (1320, 600)


def test_an_evaluation_refuses_an_empty_split_and_files_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match="split=val: data=mail has no rows there"):
        evaluation().evaluate(corpus(), "val")
    (tmp_path / "file").write_text("")
    for name in ("predictions", "plot"):
        with pytest.raises(UserError, match=f"evaluation.{name}=.*cannot be written"):
            evaluation(**{name: str(tmp_path / "file" / "x")}).evaluate(corpus(val=messages(9, 0)), "val")
        with pytest.raises(ConfigError, match=f"{name}=.*is a folder"):
            ClassificationConfig(**{name: str(tmp_path)}).check_available()
    ClassificationConfig(plot=str(tmp_path / "new.png")).check_available()


def test_every_number_of_the_summary_has_a_name():
    assert classification.SUMMARY.keys() <= measure([0, 1], [[0.6, 0.4], [0.2, 0.8]]).keys()
