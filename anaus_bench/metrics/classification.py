"""Metrics of classification: pure functions on labels and probabilities."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def confusion_matrix(truth: NDArray[np.integer], predicted: NDArray[np.integer], num_classes: int) -> NDArray[np.int64]:
    """(C, C) int64: entry (i, j) counts images of class i predicted as class j."""
    flat = np.bincount(truth * num_classes + predicted, minlength=num_classes**2)
    return flat.reshape(num_classes, num_classes).astype(np.int64)


def per_class(confusion: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Recall, precision and F1 of each class, (C,) each.

    All are nan for a class that is absent from the truth; the precision of a class that is present but never predicted
    is 0.
    """
    correct = np.diag(confusion).astype(np.float64)
    actual, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    present = actual > 0
    recall, precision, f1 = (np.full(len(confusion), np.nan) for _ in range(3))
    recall[present] = correct[present] / actual[present]
    precision[present] = correct[present] / np.maximum(predicted[present], 1)
    f1[present] = 2 * correct[present] / (actual + predicted)[present]
    return {"recall": recall, "precision": precision, "f1": f1}


def classification_scores(truth: NDArray[np.integer], probabilities: NDArray[np.floating]) -> dict[str, float]:
    """Metrics of a set of images; the prediction is the most probable class.

    `f1` (mean of the classes' F1), `balanced_accuracy` and `auroc` (one class against the rest) are means over the
    classes that are present in the truth; `auroc` is nan when there is only one. `ece` has 15 bins of the top
    probability.

    Args:
        truth: (N,) class ids, N > 0.
        probabilities: (N, C), each row sums to 1.

    Returns:
        `accuracy`, `f1`, `balanced_accuracy`, `auroc`, `mcc` and `ece`.
    """
    from sklearn.metrics import roc_auc_score

    predicted = probabilities.argmax(axis=1)
    confusion = confusion_matrix(truth, predicted, probabilities.shape[1])
    classes = per_class(confusion)
    present = np.flatnonzero(confusion.sum(axis=1))
    one_against_rest = [roc_auc_score(truth == k, probabilities[:, k]) for k in present if len(present) > 1]
    return {
        "accuracy": float(np.trace(confusion) / confusion.sum()),
        "f1": float(np.nanmean(classes["f1"])),
        "balanced_accuracy": float(np.nanmean(classes["recall"])),
        "auroc": float(np.mean(one_against_rest)) if one_against_rest else math.nan,
        "mcc": matthews_correlation(confusion),
        "ece": expected_calibration_error(truth, probabilities),
    }


def matthews_correlation(confusion: NDArray[np.int64]) -> float:
    """Matthews correlation of C classes in [-1, 1]; 0 where truth or prediction is one class only.

    Gorodkin 2004 (doi:10.1016/j.compbiolchem.2004.09.006).
    """
    counts = confusion.astype(np.float64)
    actual, predicted, total = counts.sum(axis=1), counts.sum(axis=0), counts.sum()
    spread = (total**2 - predicted @ predicted) * (total**2 - actual @ actual)
    return float((np.trace(counts) * total - predicted @ actual) / math.sqrt(spread)) if spread else 0.0


def expected_calibration_error(
    truth: NDArray[np.integer], probabilities: NDArray[np.floating], bins: int = 15
) -> float:
    """Mean distance between confidence and accuracy over equal bins of the top probability, weighted by their size.

    Naeini et al. 2015; Guo et al. 2017 (arXiv:1706.04599), Eq. 3. Bins are open on the left.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = probabilities.argmax(axis=1) == truth
    which = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(which, weights=confidence - correct, minlength=bins)
    return float(np.abs(gaps).sum() / len(truth))
