"""Segmentation and classification metrics against their definitions written as slow loops."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from anaus_bench import metrics

EMPTY = np.zeros((12, 16), dtype=bool)


def blob(rows: slice, columns: slice, shape: tuple[int, int] = (12, 16)) -> NDArray[np.bool_]:
    mask = np.zeros(shape, dtype=bool)
    mask[rows, columns] = True
    return mask


def random_masks(seed: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    generator = np.random.default_rng(seed)
    shape = generator.integers(5, 14, size=2)
    first, second = (generator.random(shape) < generator.uniform(0.1, 0.9) for _ in range(2))
    first[0, 0] = second[-1, -1] = True
    return first, second


def surface_by_loop(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    height, width = mask.shape

    def inside(row: int, column: int) -> bool:
        return 0 <= row < height and 0 <= column < width and bool(mask[row, column])

    return [
        (r, c)
        for r, c in itertools.product(range(height), range(width))
        if mask[r, c] and not all(inside(r + dr, c + dc) for dr, dc in ((-1, 0), (1, 0), (0, -1), (0, 1)))
    ]


def distances_by_loop(truth: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> list[list[float]]:
    first, second = surface_by_loop(truth), surface_by_loop(predicted)
    return [[min(math.dist(p, q) for q in to) for p in start] for start, to in ((first, second), (second, first))]


@pytest.mark.parametrize("seed", range(20))
def test_overlap_equals_its_definition_counted_pixel_by_pixel(seed: int) -> None:
    truth, predicted = random_masks(seed)
    tp = sum(bool(t and p) for t, p in zip(truth.flat, predicted.flat, strict=True))
    fp = sum(bool(p and not t) for t, p in zip(truth.flat, predicted.flat, strict=True))
    fn = sum(bool(t and not p) for t, p in zip(truth.flat, predicted.flat, strict=True))

    assert metrics.pixel_counts(truth, predicted) == (tp, fp, fn)
    assert metrics.overlap(tp, fp, fn) == pytest.approx(
        {
            "ppv": tp / (tp + fp),
            "sensitivity": tp / (tp + fn),
            "dice": 2 * tp / (2 * tp + fp + fn),
            "iou": tp / (tp + fp + fn),
        }
    )


@pytest.mark.parametrize("seed", range(20))
def test_hausdorff_equals_the_largest_of_all_nearest_surface_distances(seed: int) -> None:
    truth, predicted = random_masks(seed)
    directed = distances_by_loop(truth, predicted)

    distance, distance_95, penalised = metrics.hausdorff(truth, predicted)

    assert distance == pytest.approx(max(max(directed[0]), max(directed[1])), abs=1e-9)
    assert distance_95 == pytest.approx(np.percentile([*directed[0], *directed[1]], 95), abs=1e-9)
    assert not penalised


def test_surface_includes_pixels_on_the_image_border_and_around_holes() -> None:
    mask = np.ones((5, 5), dtype=bool)
    assert metrics.surface(mask).sum() == 16

    mask[2, 2] = False
    assert metrics.surface(mask)[1:4, 1:4].sum() == 4


def test_hausdorff_of_a_ring_and_a_disk_is_between_surfaces_not_filled_areas() -> None:
    rows, columns = np.ogrid[:41, :41]
    radius = np.hypot(rows - 20, columns - 20)
    disk, ring = radius <= 18, (radius <= 18) & (radius > 6)

    # From the hole's edge (radius 6..7) to the common outer surface (radius about 18).
    assert metrics.hausdorff(disk, ring)[0] == pytest.approx(11.5, abs=1.0)


def test_hausdorff_is_symmetric_and_equals_a_shift() -> None:
    first, second = blob(slice(2, 6), slice(2, 6)), blob(slice(2, 6), slice(7, 11))

    assert metrics.hausdorff(first, second) == metrics.hausdorff(second, first) == (5.0, 5.0, False)


def test_both_masks_empty_is_a_perfect_score() -> None:
    scores = metrics.segmentation_scores(EMPTY, EMPTY)

    assert [scores[key] for key in ("ppv", "sensitivity", "dice", "iou")] == [1.0] * 4
    assert scores["hausdorff"] == scores["hd95"] == scores["hausdorff_native"] == 0.0
    assert scores["hd_penalised"] is False


@pytest.mark.parametrize("predicted_is_empty", [True, False])
def test_one_empty_mask_scores_zero_and_the_diagonal(predicted_is_empty: bool) -> None:
    masks = (blob(slice(2, 6), slice(2, 6)), EMPTY)
    scores = metrics.segmentation_scores(*(masks if predicted_is_empty else masks[::-1]))

    assert [scores[key] for key in ("ppv", "sensitivity", "dice", "iou")] == [0.0] * 4
    assert scores["hausdorff"] == scores["hd95"] == pytest.approx(256 * math.sqrt(2))
    assert scores["hausdorff_native"] == pytest.approx(20.0)
    assert scores["hd_penalised"] is True


def test_hausdorff_is_measured_at_256_and_native_size() -> None:
    first, second = (
        blob(slice(8, 24), slice(start, start + 16), shape=(64, 128)) for start in (16, 48)
    )  # 32 px apart in 128

    scores = metrics.segmentation_scores(first, second)

    assert scores["hausdorff_native"] == 32.0
    assert scores["hausdorff"] == 64.0


@pytest.mark.parametrize("seed", range(5))
def test_nearest_resizing_takes_the_pixel_under_each_centre(seed: int) -> None:
    mask, _ = random_masks(seed)
    resized = metrics.resize_nearest(mask, 7, 11)

    for row, column in itertools.product(range(7), range(11)):
        source = int((row + 0.5) * mask.shape[0] / 7), int((column + 0.5) * mask.shape[1] / 11)
        assert resized[row, column] == mask[source]


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
    expected = {"accuracy": 1 / 2, "f1": 2 / 3, "balanced_accuracy": 1 / 2, "mcc": 0.0, "ece": 0.45}
    assert scores == pytest.approx(expected)


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
