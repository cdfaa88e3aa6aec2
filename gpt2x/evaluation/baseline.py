"""What a classifier has to beat: a logistic regression on the words of a text, which is trained in seconds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpt2x.errors import UserError

NAME = "TF-IDF + logistic regression"
_STRENGTHS = [0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0]  # C, the inverse of the regularization
_FOLDS = 5


def tfidf_baseline(
    train_texts: Sequence[str],
    train_labels: Sequence[int],
    texts: Sequence[str],
    n_classes: int,
    *,
    class_weights: Sequence[float] | None = None,
    seed: int = 1,
) -> np.ndarray:
    """The probabilities (N, n_classes) of `texts`, learned from the training split alone.

    Words and pairs of words (single characters such as "u" are words), in lower case, weighted by 1 + ln(count) and
    the inverse document frequency. How much the logistic regression is regularized is chosen by the log loss in
    cross-validation, five folds or as many as the rarest class has rows. `class_weights` (n_classes,) multiply the
    loss of each class. A class that is absent from the training split gets the probability 0.
    Raises UserError if the training split has fewer than two classes, or no words.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    labels = np.asarray(train_labels)
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2:
        raise UserError("evaluation.baseline: the training split has fewer than two classes; use evaluation.baseline=false")
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    try:
        words = vectorizer.fit_transform(train_texts)
    except ValueError as error:  # scikit-learn's way to say that there are none
        raise UserError("evaluation.baseline: the training split has no words; use evaluation.baseline=false") from error
    weights = None if class_weights is None else {int(k): float(class_weights[k]) for k in classes}
    model = LogisticRegression(class_weight=weights, max_iter=1000)
    folds = min(_FOLDS, int(counts.min()))
    if folds > 1:  # a class with a single row cannot be in both parts; then scikit-learn's own C stands
        split = StratifiedKFold(folds, shuffle=True, random_state=seed)
        model = GridSearchCV(model, {"C": _STRENGTHS}, scoring="neg_log_loss", cv=split)
    model.fit(words, labels)
    probabilities = np.zeros((len(texts), n_classes))
    probabilities[:, classes] = model.predict_proba(vectorizer.transform(texts))
    return probabilities
