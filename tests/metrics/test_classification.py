"""Classification metrics against independent computations and worked cases."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from anaus_bench.metrics import classification as metrics


def predictions(seed: int, classes: int = 3, count: int = 60) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    generator = np.random.default_rng(seed)
    truth = generator.integers(classes, size=count)
    logits = generator.normal(size=(count, classes)) + 1.5 * np.eye(classes)[truth]
    return truth, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


@pytest.mark.parametrize("seed", range(5))
def test_classification_scores_equal_scikit_learn_where_all_classes_are_present(seed: int) -> None:
    from sklearn import metrics as reference

    truth, probabilities = predictions(seed)
    predicted = probabilities.argmax(axis=1)
    scores = metrics.classification_scores(truth, probabilities)
    classes = metrics.per_class(metrics.confusion_matrix(truth, predicted, 3))

    assert scores["accuracy"] == pytest.approx(reference.accuracy_score(truth, predicted))
    assert scores["f1"] == pytest.approx(reference.f1_score(truth, predicted, average="macro"))
    assert scores["balanced_accuracy"] == pytest.approx(reference.balanced_accuracy_score(truth, predicted))
    assert scores["mcc"] == pytest.approx(reference.matthews_corrcoef(truth, predicted))
    assert scores["auroc"] == pytest.approx(reference.roc_auc_score(truth, probabilities, multi_class="ovr"))
    for key, function in (
        ("recall", reference.recall_score),
        ("precision", reference.precision_score),
        ("f1", reference.f1_score),
    ):
        np.testing.assert_allclose(classes[key], function(truth, predicted, average=None))


def test_confusion_matrix_has_truth_in_rows() -> None:
    confusion = metrics.confusion_matrix(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0]), 4)

    assert confusion.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]


def test_means_are_over_the_classes_present_in_the_truth() -> None:
    truth = np.array([0, 0, 1, 1])
    probabilities = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]])

    scores = metrics.classification_scores(truth, probabilities)

    # Class 0: precision 1, recall 1/2; class 1: both 1/2; class 2 is absent.
    assert scores["f1"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert scores["balanced_accuracy"] == pytest.approx(1 / 2)


def test_a_class_never_predicted_has_precision_zero_and_an_absent_one_none() -> None:
    classes = metrics.per_class(metrics.confusion_matrix(np.array([0, 1]), np.array([0, 0]), 3))

    assert classes["precision"][1] == classes["f1"][1] == 0.0
    assert all(np.isnan(values[2]) for values in classes.values())


def test_auroc_is_undefined_when_only_one_class_is_present() -> None:
    scores = metrics.classification_scores(np.array([1, 1]), np.array([[0.3, 0.7], [0.6, 0.4]]))

    assert np.isnan(scores.pop("auroc"))
    assert all(np.isfinite(value) for value in scores.values())


@pytest.mark.parametrize("seed", range(3))
def test_calibration_error_equals_its_definition_bin_by_bin(seed: int) -> None:
    truth, probabilities = predictions(seed, count=200)
    expected = 0.0
    for k in range(15):
        members = [
            (max(p), int(np.argmax(p)) == t)
            for p, t in zip(probabilities, truth, strict=True)
            if k / 15 < max(p) <= (k + 1) / 15
        ]
        if members:
            confidence = sum(c for c, _ in members) / len(members)
            accuracy = sum(right for _, right in members) / len(members)
            expected += len(members) / len(truth) * abs(confidence - accuracy)

    assert metrics.expected_calibration_error(truth, probabilities) == pytest.approx(expected)
