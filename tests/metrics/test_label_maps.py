"""Scores of label maps, against slow loops and cases worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from anaus_bench.metrics.label_maps import (
    achievable_accuracy,
    best_ious,
    boundaries,
    boundary_scores,
    covering,
    overlaps,
    pieces,
    raise_gain,
    score_masks,
    stability,
    summarise,
    under_segmentation,
    variation_of_information,
)

Map = NDArray[np.uint8]


@pytest.fixture
def label_map() -> Map:
    return np.random.default_rng(0).integers(0, 5, (12, 9), dtype=np.uint8)


@pytest.fixture
def truth() -> Map:
    return np.random.default_rng(1).integers(0, 3, (12, 9), dtype=np.uint8)


def whole_box(maps: Map) -> NDArray[np.float32]:
    return np.tile(np.array([0, 0, *maps.shape[1:]], dtype=np.float32), (len(maps), 1))


def blocks(side: int, cells: int) -> Map:
    index = np.arange(side) * cells // side
    return (index[:, None] * cells + index).astype(np.uint8)


def test_best_iou_is_the_largest_over_all_regions(label_map: Map, truth: Map) -> None:
    expected = {}
    for structure in (1, 2):
        ious = []
        for region in range(5):
            both = sum(a == region and b == structure for a, b in zip(label_map.flat, truth.flat, strict=True))
            either = sum(a == region or b == structure for a, b in zip(label_map.flat, truth.flat, strict=True))
            ious.append(both / either)
        expected[structure] = max(ious)

    assert best_ious(overlaps(label_map, truth)) == pytest.approx(expected)


def test_structures_that_are_absent_are_not_scored(label_map: Map) -> None:
    truth = np.zeros_like(label_map)
    truth[:3] = 2

    assert set(best_ious(overlaps(label_map, truth))) == {2}
    assert set(pieces(overlaps(label_map, truth))) == {2}


def test_under_segmentation_and_achievable_accuracy_match_loops_over_pixels(label_map: Map, truth: Map) -> None:
    leak = correct = 0
    for region in range(5):
        members = [b for a, b in zip(label_map.flat, truth.flat, strict=True) if a == region]
        counts = [members.count(structure) for structure in range(3)]
        leak += sum(min(count, len(members) - count) for count in counts)
        correct += max(counts)
    table = overlaps(label_map, truth)

    assert under_segmentation(table) == pytest.approx(leak / truth.size)
    assert achievable_accuracy(table) == pytest.approx(correct / truth.size)


def test_boundary_scores_match_a_loop_over_pairs_of_boundary_pixels(label_map: Map, truth: Map) -> None:
    label_map[:, :6], truth[4:] = 0, 0  # leaves boundaries that are far from each other
    ours, true = (np.argwhere(boundaries(one)) for one in (label_map, truth))

    def share(pixels: NDArray[np.intp], others: NDArray[np.intp]) -> float:
        return float(np.mean([min(math.dist(a, b) for b in others) <= 2 for a in pixels]))

    recall, precision = boundary_scores(label_map, truth, tolerance=2)

    assert recall == pytest.approx(share(true, ours))
    assert precision == pytest.approx(share(ours, true))
    assert 0 < recall < 1


def test_a_boundary_pixel_is_one_whose_right_or_lower_neighbour_differs(label_map: Map) -> None:
    height, width = label_map.shape
    expected = np.zeros((height, width), dtype=bool)
    for y in range(height):
        for x in range(width):
            right = x + 1 < width and label_map[y, x + 1] != label_map[y, x]
            below = y + 1 < height and label_map[y + 1, x] != label_map[y, x]
            expected[y, x] = right or below

    assert (boundaries(label_map) == expected).all()


def test_the_truth_itself_is_a_perfect_label_map() -> None:
    truth = np.zeros((1, 32, 32), dtype=np.uint8)
    truth[0, 4:12, 4:12], truth[0, 20:30, 10:30] = 1, 2

    (row,) = score_masks(truth, truth, whole_box(truth))

    assert row["under_segmentation"] == 0
    for name in ("best_iou", "best_iou_1", "best_iou_2", "pieces", "boundary_recall", "boundary_precision"):
        assert row[name] == 1
    assert row["achievable_accuracy"] == 1


def test_one_region_swallows_structures_and_has_no_boundary() -> None:
    truth = np.zeros((1, 10, 10), dtype=np.uint8)
    truth[0, :2, :5] = 1

    (row,) = score_masks(np.zeros_like(truth), truth, whole_box(truth))

    assert row["regions"] == row["single_region"] == 1
    assert row["coverage"] == 0
    assert row["pieces"] == 0
    assert row["best_iou"] == pytest.approx(0.1)
    assert row["boundary_recall"] == 0
    assert "boundary_precision" not in row


def test_splitting_a_structure_counts_its_pieces() -> None:
    truth = np.zeros((16, 16), dtype=np.uint8)
    truth[:8, :8] = 1

    assert pieces(overlaps(blocks(16, 4), truth)) == {1: 4}


def test_images_without_structures_have_only_the_scores_that_need_no_truth() -> None:
    maps = np.stack([blocks(16, 2), blocks(16, 4)])
    truth = np.zeros_like(maps)
    truth[1, :8, :8] = 1

    without, with_structure = score_masks(maps, truth, whole_box(maps))

    assert set(without) == {"regions", "single_region", "coverage", "largest"}
    assert "best_iou_1" in with_structure
    assert [row.keys() for row in score_masks(maps, None, whole_box(maps))] == [without.keys()] * 2


def test_what_is_outside_of_the_valid_box_does_not_move_the_scores() -> None:
    truth = np.zeros((1, 16, 16), dtype=np.uint8)
    truth[0, 4:8, 4:8] = 1
    maps = np.zeros_like(truth)
    maps[0, 4:10, 4:8] = 1
    other = maps.copy()
    other[0, :, 12:], other[0, :2] = 7, 3
    box = np.array([[2, 0, 14, 12]], dtype=np.float32)

    assert score_masks(other, truth, box) == score_masks(maps, truth, box)


def test_scores_do_not_depend_on_the_ids_of_the_regions(label_map: Map, truth: Map) -> None:
    swapped = np.array([0, 4, 1, 2, 3], dtype=np.uint8)[label_map]
    box = whole_box(truth[None])

    before, after = (score_masks(one[None], truth[None], box)[0] for one in (label_map, swapped))

    assert after == pytest.approx(before)


def test_summary_averages_over_the_images_that_have_a_score() -> None:
    rows = [{"regions": 1.0, "coverage": 0.0}, {"regions": 3.0, "coverage": 0.5, "best_iou": 0.8}]

    assert summarise(rows) == pytest.approx(
        {"images": 2, "with_structures": 1, "regions": 2, "coverage": 0.25, "best_iou": 0.8}
    )
    assert summarise([]) == {"images": 0, "with_structures": 0}


def test_variation_of_information_matches_conditional_entropies_from_loops(label_map: Map, truth: Map) -> None:
    pairs = list(zip(label_map.flat, truth.flat, strict=True))
    expected = 0.0
    for a, b in set(pairs):
        joint = pairs.count((a, b)) / len(pairs)
        first, second = np.mean(label_map == a), np.mean(truth == b)
        expected -= joint * (math.log2(joint / first) + math.log2(joint / second))

    assert variation_of_information(overlaps(label_map, truth)) == pytest.approx(expected)
    assert variation_of_information(overlaps(truth, label_map)) == pytest.approx(expected)
    assert variation_of_information(overlaps(truth, truth)) == pytest.approx(0, abs=1e-12)


def test_covering_weights_the_best_iou_of_each_region_by_its_area(label_map: Map, truth: Map) -> None:
    expected = 0.0
    for region in range(5):
        inside = label_map == region
        best = max((inside & (truth == b)).sum() / (inside | (truth == b)).sum() for b in range(3))
        expected += inside.mean() * best

    assert covering(overlaps(label_map, truth)) == pytest.approx(expected)
    assert covering(overlaps(truth, truth)) == 1


def test_thresholding_is_stable_when_mirrored_and_not_when_the_gain_is_raised() -> None:
    images = np.random.default_rng(0).integers(100, 128, (2, 8, 8), dtype=np.uint8)

    rows = stability(lambda batch: (batch > 115).astype(np.uint8), images, whole_box(images))

    for row in rows:
        assert row["mirror_vi"] == 0
        assert row["mirror_covering"] == 1
        assert row["gain_vi"] > 0
        assert row["gain_covering"] < 1


def test_a_partition_that_ignores_orientation_is_not_stable_when_mirrored() -> None:
    images = np.ones((1, 8, 8), dtype=np.uint8)
    left = np.zeros((1, 8, 8), dtype=np.uint8)
    left[:, :, :2] = 1

    (row,) = stability(lambda batch: left, images, whole_box(images))

    assert row["mirror_vi"] > 0
    assert row["gain_vi"] == 0


def test_raised_gain_keeps_black_and_saturates() -> None:
    assert raise_gain(np.array([0, 1, 100, 250, 255], dtype=np.uint8)).tolist() == [0, 14, 113, 255, 255]
