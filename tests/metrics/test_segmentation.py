"""Overlap and distances of masks against independent computations and worked cases."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from anaus_bench.metrics import segmentation as metrics

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
