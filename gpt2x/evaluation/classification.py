"""How good a classifier is: true classes and predicted probabilities come in, a report of plain numbers goes out.

A report is a dict that can be written as JSON, and from which the table, the picture and the rows of a log are made.
The numbers themselves are scikit-learn's where it has them. Intervals say how far they may be off (intervals.py): Wilson's
for what is a share of rows (accuracy, and each class's precision and recall), the bootstrap's for the rest. It draws
within each class, so that every resample has each class as often as the split does.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt2x.errors import UserError
from gpt2x.evaluation.baseline import NAME as BASELINE
from gpt2x.evaluation.baseline import tfidf_baseline
from gpt2x.evaluation.intervals import bootstrap as resampled
from gpt2x.evaluation.intervals import interval, measured, share
from gpt2x.evaluation.output import cut, number, score, table, writing
from gpt2x.files import replacing, write_atomic

if TYPE_CHECKING:
    from gpt2x.data.table import TableCorpus

SUMMARY = {  # what is told of all classes together, and its name in a table
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "f1": "F1, mean of classes",
    "auroc": "AUROC",
    "log_loss": "log loss (nats)",
    "ece": "calibration error (ECE)",
}
_SHOWN_CLASSES = 12  # a confusion matrix of more is for the JSON file and the picture


class Classification:
    """A classifier's evaluation; see ClassificationConfig for the settings.

    `predict` gives the probabilities (N, K) of N texts, for the corpus's labels in their order. `class_weights` (K,) are
    those that the classifier was trained with, for the baseline to be trained with them too; None: all alike.
    """

    def __init__(
        self,
        predict: Callable[[Sequence[str]], np.ndarray],
        *,
        class_weights: Sequence[float] | None = None,
        batch_size: int,
        bootstrap: int,
        bins: int,
        baseline: bool,
        predictions: str | None,
        plot: str | None,
    ):
        self.predict, self.class_weights, self.batch_size = predict, class_weights, batch_size
        self.bootstrap, self.bins, self.baseline = bootstrap, bins, baseline
        self.predictions, self.plot = predictions, plot

    def evaluate(self, corpus: TableCorpus, split: str) -> dict[str, Any]:
        """The report of a split; "baseline" in it holds the baseline's, or None where it is not wanted.

        The baseline's report has "accuracy_difference" too, the model's accuracy less the baseline's. Writes the
        predictions and the picture where they are wanted.
        Raises UserError if the split has no rows, or a probability is not finite, or a file cannot be written.
        """
        rows = corpus.splits[split]
        if not rows:
            raise UserError(f"split={split}: data={corpus.name} has no rows there")
        texts, truth = [row.text for row in rows], np.array([row.label for row in rows])
        probabilities = self._predict(texts)
        settings = {"labels": corpus.labels, "bins": self.bins, "bootstrap": self.bootstrap}
        result = {"evaluation": "classification"} | report(truth, probabilities, **settings) | {"baseline": None}
        if self.baseline:
            train = corpus.splits["train"]
            guessed = tfidf_baseline(
                [row.text for row in train],
                [row.label for row in train],
                texts,
                len(corpus.labels),
                class_weights=self.class_weights,
            )
            difference = accuracy_difference(truth, probabilities, guessed, bootstrap=self.bootstrap)
            result["baseline"] = report(truth, guessed, **settings) | {"accuracy_difference": difference}
        if self.predictions is not None:
            with writing("evaluation.predictions", self.predictions):
                write_atomic(self.predictions, predictions(texts, truth, probabilities, corpus.labels))
        if self.plot is not None:
            with writing("evaluation.plot", self.plot):
                plot_classification(result, self.plot)
        return result

    def describe(self, result: dict[str, Any]) -> str:
        """What `evaluate` gave, as text to print."""
        return describe(result, result["baseline"])

    def _predict(self, texts: list[str]) -> np.ndarray:
        """Texts of about one length are computed together; the probabilities (N, K) are in the order of the texts."""
        from tqdm import tqdm

        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        pieces = []
        with tqdm(total=len(texts), unit="row", desc="evaluating", disable=None) as bar:
            for start in range(0, len(order), self.batch_size):
                batch = [texts[i] for i in order[start : start + self.batch_size]]
                pieces.append(np.asarray(self.predict(batch), dtype=np.float64))
                bar.update(len(batch))
        ordered = np.concatenate(pieces)
        probabilities = np.empty_like(ordered)
        probabilities[order] = ordered
        return probabilities


def report(
    truth: np.ndarray,
    probabilities: np.ndarray,
    *,
    labels: Sequence[str],
    bins: int = 15,
    bootstrap: int = 1000,
    seed: int = 1,
) -> dict[str, Any]:
    """All that is told of probabilities (N, K) for rows whose classes are `truth` (N,), numbers of `labels` (K at least 2).

    The class of the highest probability is the one predicted, the first of several. A number with its 95 % interval is
    {"value", "low", "high"}, with None for what is not defined. `bootstrap` resamples give those intervals that are not
    Wilson's; with 0 they are None.

    rows, labels
    accuracy           share of rows whose class is predicted
    balanced_accuracy  mean of the recall of the classes that are there
    f1                 mean F1 of the classes that are there or were predicted (macro F1)
    auroc              area under the receiver's operating curve: with two classes of the second; with more, the mean of
                       each class against the rest. None where a class is absent
    log_loss           mean of -ln(probability of the true class), in nats, which is at most 36 (2**-52)
    ece                expected calibration error of the predicted class: rows fall into `bins` of equal width by its
                       probability, and each bin's distance between accuracy and mean probability counts by its rows
                       (Guo et al., "On Calibration of Modern Neural Networks", 2017). Noise in it never cancels, so
                       that few rows make even a perfect classifier's larger than 0
    classes            of each: label, support (rows), predicted (rows), precision, recall, f1; precision is None where it
                       was never predicted, recall where it is absent
    confusion          rows of class i that were predicted as j, in row i and column j
    calibration        of each bin: low, high (it holds low < p <= high), rows, confidence (mean p), accuracy
    bootstrap          resamples

    Raises UserError for probabilities that are not finite, and ValueError for what are no classes or probabilities.
    """
    from sklearn.metrics import confusion_matrix, log_loss, precision_recall_fscore_support

    truth, probabilities = _checked(truth, probabilities, len(labels))
    n_rows, n_classes = probabilities.shape
    predicted = probabilities.argmax(axis=1)
    confusion = confusion_matrix(truth, predicted, labels=range(n_classes))
    support, n_predicted, hits = confusion.sum(axis=1), confusion.sum(axis=0), confusion.diagonal()
    _, recall, f1, _ = precision_recall_fscore_support(truth, predicted, labels=range(n_classes), zero_division=np.nan)
    bins_of_rows = calibration(truth, probabilities, bins)
    gaps = [bin["rows"] * abs(bin["accuracy"] - bin["confidence"]) for bin in bins_of_rows if bin["rows"]]
    estimates = {
        "balanced_accuracy": np.nanmean(recall),
        "f1": np.nanmean(f1),
        "auroc": _auroc(truth, probabilities) if support.all() else np.nan,
        "log_loss": log_loss(truth, probabilities, labels=range(n_classes)),
        "ece": sum(gaps) / n_rows,
    } | {f"f1 {k}": f1[k] for k in range(n_classes)}
    draws = np.empty((0, len(estimates)))
    if bootstrap:
        draws = resampled(
            lambda counts_BN: statistics(truth, probabilities, counts_BN, bins), truth, samples=bootstrap, seed=seed
        )
    scores = {
        name: measured(value, *interval(value, draws[:, i], upper=np.inf if name == "log_loss" else 1.0))
        for i, (name, value) in enumerate(estimates.items())
    }
    return {
        "rows": n_rows,
        "labels": list(labels),
        "accuracy": share(hits.sum(), n_rows),
        **{name: scores[name] for name in SUMMARY if name in scores},
        "classes": [
            {
                "label": label,
                "support": int(support[k]),
                "predicted": int(n_predicted[k]),
                "precision": share(hits[k], n_predicted[k]),
                "recall": share(hits[k], support[k]),
                "f1": scores[f"f1 {k}"],
            }
            for k, label in enumerate(labels)
        ],
        "confusion": confusion.tolist(),
        "calibration": bins_of_rows,
        "bootstrap": bootstrap,
    }


def statistics(truth: np.ndarray, probabilities: np.ndarray, counts_BN: np.ndarray, bins: int) -> np.ndarray:
    """What a report gets from the bootstrap, for rows that count `counts_BN` times in each of B resamples: (B, 5 + K).

    Balanced accuracy, mean F1, AUROC, log loss, ECE and each class's F1, defined as in `report`; NaN is what is not.
    """
    n_rows, n_classes = probabilities.shape
    predicted, classes = probabilities.argmax(axis=1), np.arange(n_classes)
    true_NK, predicted_NK = truth[:, None] == classes, predicted[:, None] == classes
    hits_BK = counts_BN @ (true_NK & predicted_NK).astype(float)
    support_BK, predicted_BK = counts_BN @ true_NK.astype(float), counts_BN @ predicted_NK.astype(float)
    confidences = probabilities.max(axis=1)
    gaps_NM = np.zeros((n_rows, bins))
    gaps_NM[np.arange(n_rows), _bin(confidences, bins)] = (predicted == truth) - confidences
    losses = -np.log(np.clip(probabilities[np.arange(n_rows), truth], np.finfo(float).eps, 1.0))
    rows_B = counts_BN.sum(axis=1)
    with np.errstate(invalid="ignore"):  # 0 / 0 is what is not defined
        recall_BK, f1_BK = hits_BK / support_BK, 2 * hits_BK / (support_BK + predicted_BK)
    scored = range(1, 2) if n_classes == 2 else classes
    auroc_B = np.mean([_resampled_auroc(true_NK[:, k], probabilities[:, k], counts_BN) for k in scored], axis=0)
    summary = [
        np.nanmean(recall_BK, axis=1),
        np.nanmean(f1_BK, axis=1),
        auroc_B,
        counts_BN @ losses / rows_B,
        np.abs(counts_BN @ gaps_NM).sum(axis=1) / rows_B,
    ]
    return np.column_stack([*summary, f1_BK])


def accuracy_difference(
    truth: np.ndarray, ours: np.ndarray, theirs: np.ndarray, *, bootstrap: int = 1000, seed: int = 1
) -> dict[str, float | None]:
    """Accuracy of the probabilities `ours` (N, K) less that of `theirs`, with its interval: {"value", "low", "high"}.

    Both are measured on the same resamples, so that what is hard for both does not widen it.
    """
    gains = (ours.argmax(axis=1) == truth).astype(float) - (theirs.argmax(axis=1) == truth)
    draws = np.empty((0, 1))
    if bootstrap:
        draws = resampled(lambda counts_BN: (counts_BN @ gains / len(gains))[:, None], truth, samples=bootstrap, seed=seed)
    return measured(gains.mean(), *interval(gains.mean(), draws[:, 0], lower=-1.0))


def calibration(truth: np.ndarray, probabilities: np.ndarray, bins: int) -> list[dict[str, Any]]:
    """How often the predicted class is right, for rows whose probability of it falls into each of `bins` of equal width."""
    confidences, hits = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    bin_of_row, edges = _bin(confidences, bins), _edges(bins)
    rows = []
    for i in range(bins):
        members = bin_of_row == i
        n_rows = int(members.sum())
        rows.append(
            {
                "low": float(edges[i]),
                "high": float(edges[i + 1]),
                "rows": n_rows,
                "confidence": float(confidences[members].mean()) if n_rows else None,
                "accuracy": float(hits[members].mean()) if n_rows else None,
            }
        )
    return rows


def flat(report: dict[str, Any]) -> dict[str, float]:
    """A report's numbers for one row of a log: the summary, and "precision/LABEL", "recall/LABEL", "f1/LABEL".

    What is not defined is left out.
    """
    values = {name: report[name]["value"] for name in SUMMARY}
    for measure in ("precision", "recall", "f1"):
        values |= {f"{measure}/{row['label']}": row[measure]["value"] for row in report["classes"]}
    return {name: value for name, value in values.items() if value is not None}


def describe(report: dict[str, Any], baseline: dict[str, Any] | None = None) -> str:
    """A report as tables of text, beside the baseline's summary where there is one (as `Classification` has it)."""
    columns = [("model", report), *([(BASELINE, baseline)] if baseline else [])]
    summary = [[f"{report['rows']:,} rows", *(name for name, _ in columns)]]
    summary += [[title, *(score(part[name]) for _, part in columns)] for name, title in SUMMARY.items()]
    names = [cut(label) for label in report["labels"]]
    classes = [["class", "precision", "recall", "F1", "rows", "predicted"]]
    for name, row in zip(names, report["classes"], strict=True):
        cells = [
            score(row["precision"]),
            score(row["recall"]),
            score(row["f1"]),
            f"{row['support']:,}",
            f"{row['predicted']:,}",
        ]
        classes.append([name, *cells])
    parts = [table(summary), table(classes)]
    if len(names) <= _SHOWN_CLASSES:
        confusion = [["true \\ predicted", *names]]
        confusion += [[name, *(f"{n:,}" for n in row)] for name, row in zip(names, report["confusion"], strict=True)]
        parts.append(table(confusion))
    how = f"of {report['bootstrap']:,} resamples within each class" if report["bootstrap"] else "left out: no resamples"
    parts.append(
        "In brackets: 95 % intervals, Wilson's of accuracy, precision and recall, the others "
        f"{how}.\nECE with {len(report['calibration'])} bins of equal width."
    )
    if baseline:
        parts.append(_verdict(baseline["accuracy_difference"]))
    return "\n\n".join(parts)


def plot_classification(report: dict[str, Any], path: str | Path, *, title: str | None = None) -> None:
    """Draw the confusion matrix, with counts and shares of each true class, and the reliability diagram, as one PNG."""
    from matplotlib.figure import Figure  # without pyplot there is no window system to look for

    figure = Figure(figsize=(11, 5), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    _draw_confusion(left, report)
    _draw_reliability(right, report)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def predictions(texts: Sequence[str], truth: np.ndarray, probabilities: np.ndarray, labels: Sequence[str]) -> str:
    """CSV with a row for each text: text, label, predicted, and a column "probability LABEL" for each class."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["text", "label", "predicted", *(f"probability {label}" for label in labels)])
    for text, label, row in zip(texts, truth, probabilities, strict=True):
        writer.writerow([text, labels[label], labels[row.argmax()], *(f"{p:.6g}" for p in row)])
    return file.getvalue()


def _checked(truth: np.ndarray, probabilities: np.ndarray, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Classes and probabilities that make sense, these in float64 with sums of exactly 1, up to rounding."""
    truth, probabilities = np.asarray(truth), np.asarray(probabilities, dtype=np.float64)
    if n_classes < 2 or len(truth) == 0 or probabilities.shape != (len(truth), n_classes):
        problem = f"{len(truth)} rows of {n_classes} classes need as many probabilities, at least 1 row and 2 classes"
        raise ValueError(f"{problem}; they have the shape {probabilities.shape}")
    if not np.issubdtype(truth.dtype, np.integer) or truth.min() < 0 or truth.max() >= n_classes:
        raise ValueError(f"true classes must be whole numbers from 0 to {n_classes - 1}")
    if not np.isfinite(probabilities).all():
        row = int(np.flatnonzero(~np.isfinite(probabilities).all(axis=1))[0])
        problem = f"the probabilities of row {row + 1} are {probabilities[row].tolist()}: the model's weights are no good"
        raise UserError(f"{problem}; choose another checkpoint by which=STEP, or train with a smaller optimizer.lr")
    sums = probabilities.sum(axis=1, keepdims=True)
    if probabilities.min() < 0 or abs(sums - 1).max() > 1e-2:  # bf16 rounds that much
        raise ValueError("probabilities must be at least 0 and add up to 1 in each row")
    return truth, probabilities / sums


def _edges(bins: int) -> np.ndarray:
    return np.linspace(0.0, 1.0, bins + 1)


def _bin(confidences: np.ndarray, bins: int) -> np.ndarray:
    """The bin of each confidence (N,): bin i holds what is above edge i, up to edge i + 1."""
    return np.searchsorted(_edges(bins)[1:-1], confidences, side="left")


def _auroc(truth: np.ndarray, probabilities: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    if probabilities.shape[1] == 2:
        return roc_auc_score(truth, probabilities[:, 1])
    return roc_auc_score(truth, probabilities, multi_class="ovr", average="macro")


def _resampled_auroc(positive: np.ndarray, scores: np.ndarray, counts_BN: np.ndarray) -> np.ndarray:
    """AUROC of B resamples: how often a positive row scores above a negative one, where a tie is half of it."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))  # of the runs of equal scores
    counts_BN, positive = counts_BN[:, order], positive[order]
    positives_BG = np.add.reduceat(counts_BN * positive, starts, axis=1)
    negatives_BG = np.add.reduceat(counts_BN * ~positive, starts, axis=1)
    below_BG = negatives_BG.cumsum(axis=1) - negatives_BG / 2
    with np.errstate(invalid="ignore"):
        return (positives_BG * below_BG).sum(axis=1) / (positives_BG.sum(axis=1) * negatives_BG.sum(axis=1))


def _verdict(difference: dict[str, float | None]) -> str:
    """Who is ahead in accuracy, said outright."""
    value, low, high = difference.values()
    who = "The model is ahead of the baseline" if value > 0 else "The baseline is ahead of the model"
    if value == 0:
        return "The model and the baseline have the same accuracy."
    if low is None:
        return f"{who} in accuracy by {number(abs(value))}."
    low, high = sorted((low, high) if value > 0 else (-low, -high))
    chance = ", which may be chance" if low <= 0 else ""
    return f"{who} in accuracy by {number(abs(value))} ({number(low)} to {number(high)}){chance}."


def _draw_confusion(axes: Any, report: dict[str, Any]) -> None:
    counts = np.array(report["confusion"])
    support = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, support, out=np.zeros(counts.shape), where=support > 0)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [cut(label, 16) for label in report["labels"]]
    plain = {"parse_math": False}  # a label is text, whatever dollar signs are in it
    if len(names) <= _SHOWN_CLASSES:
        axes.set_xticks(range(len(names)), names, rotation=0 if len(names) < 4 else 45, **plain)
        axes.set_yticks(range(len(names)), names, **plain)
        size = 12 if len(names) < 5 else 7
        for (i, j), share in np.ndenumerate(shares):
            color = "white" if share > 0.5 else "black"
            text = f"{counts[i, j]:,}\n{share:.1%}" if support[i, 0] else "0"
            axes.text(j, i, text, ha="center", va="center", color=color, fontsize=size)
    axes.set(title="confusion matrix: rows, share of the true class", xlabel="predicted class", ylabel="true class")


def _draw_reliability(axes: Any, report: dict[str, Any]) -> None:
    bins = report["calibration"]
    used = [bin for bin in bins if bin["rows"]]
    width, lows = bins[0]["high"] - bins[0]["low"], [bin["low"] for bin in used]
    shares = [bin["rows"] / report["rows"] for bin in used]
    axes.bar(lows, [bin["accuracy"] for bin in used], width, align="edge", color="tab:blue", alpha=0.5, label="accuracy")
    axes.bar(lows, shares, width / 4, align="edge", color="tab:gray", label="share of rows")
    confidences, accuracies = [bin["confidence"] for bin in used], [bin["accuracy"] for bin in used]
    axes.plot(confidences, accuracies, "o", color="tab:orange", label="at the mean probability")
    axes.plot([0, 1], [0, 1], "--", color="black", linewidth=0.8, label="calibrated")
    title = f"reliability: ECE {report['ece']['value']:.4f}, {len(bins)} bins, {report['rows']:,} rows"
    axes.set(title=title, xlabel="probability of the predicted class", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
