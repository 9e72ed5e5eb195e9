"""Objects of masks, stored detections, and their scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from anaus_bench.errors import StoreError
from anaus_bench.interfaces import Case, Fold, Picture, Sample
from anaus_bench.tasks import instances as stored
from anaus_bench.tasks.instances import components, with_boxes
from tests.toy_tasks import DISCS, disc_case


def store(folder: Path, cases: Sequence[Case], masks: Sequence[Sequence[tuple[float, NDArray[np.bool_]]]]) -> None:
    """Stores for each case detections (score, mask)."""
    images = []
    for case, detections in zip(cases, masks, strict=True):
        height, width = case.read().image.shape
        images.append(
            stored.Instances(
                case.sample.sample_id,
                height,
                width,
                [[0.0, 0.0, 1.0, 1.0] for _ in detections],
                [score for score, _ in detections],
                [1 for _ in detections],
                [stored.encode_rle(mask) for _, mask in detections],
            )
        )
    folder.mkdir(exist_ok=True)
    stored.write_predictions(folder, images)


def test_union_of_the_components_is_the_mask_minus_what_was_dropped() -> None:
    mask = np.random.default_rng(0).random((40, 50)) < 0.35
    labels, dropped = components(mask, min_area=6)

    sizes = [(labels == instance).sum() for instance in range(1, labels.max() + 1)]
    everything, count = components(mask, min_area=1)
    small = [i for i in range(1, everything.max() + 1) if (everything == i).sum() < 6]
    assert min(sizes) >= 6
    assert dropped == len(small) > 0
    assert count == 0
    np.testing.assert_array_equal(labels > 0, mask & ~np.isin(everything, small))


def test_pixels_that_touch_at_a_corner_are_one_object() -> None:
    labels, _ = components(np.eye(4, dtype=bool), min_area=1)

    assert labels.max() == 1


def test_a_box_ends_one_past_the_last_pixel() -> None:
    labels = np.zeros((8, 9), dtype=np.int32)
    labels[3, 4] = 1
    labels[5:7, 0:9] = 2

    _, boxes = with_boxes(labels)

    assert boxes.tolist() == [[4, 3, 5, 4], [0, 5, 9, 7]]


@pytest.mark.parametrize("seed", range(5))
def test_run_lengths_survive_a_round_trip(seed: int) -> None:
    generator = np.random.default_rng(seed)
    mask = generator.random(generator.integers(1, 20, size=2)) < generator.random()

    encoded = stored.encode_rle(mask)

    assert sum(encoded["counts"]) == mask.size
    np.testing.assert_array_equal(stored.decode_rle(json.loads(json.dumps(encoded))), mask)


def test_run_lengths_are_column_major_and_start_with_zeros() -> None:
    mask = np.array([[1, 0, 1], [1, 0, 0]], dtype=bool)

    assert stored.encode_rle(mask) == {"size": [2, 3], "counts": [0, 2, 2, 1, 1]}
    assert stored.encode_rle(~mask) == {"size": [2, 3], "counts": [2, 2, 1, 1]}


def test_union_takes_confident_instances_and_top1_the_best_alone(tmp_path: Path) -> None:
    case = disc_case(0)
    left, right, rest = (np.zeros((64, 80), dtype=bool) for _ in range(3))
    left[:, :10], right[:, 70:], rest[:, 30:40] = True, True, True
    store(tmp_path, [case], [[(0.9, left), (0.5, right), (0.49, rest)]])

    instances = stored.read_predictions(tmp_path)[case.sample.sample_id]

    np.testing.assert_array_equal(instances.merged("union", 0.5), left | right)
    np.testing.assert_array_equal(instances.merged("top1", 0.5), left)
    store(tmp_path, [case], [[(0.1, rest)]])
    unsure = stored.read_predictions(tmp_path)[case.sample.sample_id]
    assert not unsure.merged("union", 0.5).any()
    np.testing.assert_array_equal(unsure.merged("top1", 0.5), rest)


def test_scores_hold_image_means_per_fold_and_summed_pixels_overall(tmp_path: Path) -> None:
    cases = [disc_case(number) for number in range(4)]
    truths = [case.read().mask > 0 for case in cases]  # type: ignore[operator]
    half = truths[1].copy()
    half[: half.shape[0] // 2] = False
    folds = [Fold(0, (), tuple(cases[:2])), Fold(1, (), tuple(cases[2:]))]
    store(tmp_path / "0", cases[:2], [[(0.9, truths[0])], [(0.8, half)]])
    store(tmp_path / "1", cases[2:], [[], [(0.7, truths[3])]])

    scores = DISCS.score([(fold, tmp_path / str(fold.number)) for fold in folds])

    half_dice = 2 * half.sum() / (half.sum() + truths[1].sum())
    assert [row["dice"] for row in scores.rows] == pytest.approx([1, half_dice, 0, 1])
    assert [fold["dice"] for fold in scores.folds] == pytest.approx([(1 + half_dice) / 2, 0.5])
    tp = truths[0].sum() + half.sum() + truths[3].sum()
    fn = truths[1].sum() - half.sum() + truths[2].sum()
    assert scores.pooled["dice"] == pytest.approx(2 * tp / (2 * tp + fn))
    assert scores.pooled["dice_image"] == pytest.approx((2 + half_dice) / 4)
    assert scores.folds[1]["dice_micro"] == pytest.approx(2 * truths[3].sum() / (2 * truths[3].sum() + truths[2].sum()))
    assert [row["hd_penalised"] for row in scores.rows] == [False, False, True, False]
    assert scores.rows[2]["hausdorff"] == pytest.approx(256 * 2**0.5)
    assert scores.pooled["hausdorff_valid"] == pytest.approx(scores.rows[1]["hausdorff"] / 3)
    assert [row["n_pred"] for row in scores.rows] == [1, 1, 0, 1]
    assert any("penalised in 1 images; over the 3 images" in note for note in scores.notes)


def test_small_components_are_scored_and_counted_in_the_notes(tmp_path: Path) -> None:
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[10:30, 10:30], mask[50, 50] = 1, 1
    picture = Picture(np.zeros((64, 64), dtype=np.uint8), mask)
    case = Case(Sample("a", "a", "a"), lambda: picture)
    store(tmp_path, [case], [[(0.9, mask > 0)]])

    scores = DISCS.score([(Fold(0, (), (case,)), tmp_path)])

    assert scores.rows[0]["dice"] == 1
    assert scores.rows[0]["n_gt"] == 1
    assert any(note.startswith("1 mask components below 16 px") for note in scores.notes)


def test_drawing_gives_both_masks_and_the_dice(tmp_path: Path) -> None:
    case = disc_case(0)
    truth = case.read().mask
    assert truth is not None
    store(tmp_path, [case], [[(0.9, truth > 0)]])

    drawn, predicted, caption = DISCS.draw(case, tmp_path)

    np.testing.assert_array_equal(drawn, truth)
    np.testing.assert_array_equal(predicted, truth)
    assert caption == "Dice 1.000"


def test_missing_predictions_are_named(tmp_path: Path) -> None:
    store(tmp_path, [disc_case(0)], [[]])
    task = DISCS

    with pytest.raises(StoreError, match=r"no prediction of 'disc 1\.png'"):
        task.score([(Fold(0, (), (disc_case(1),)), tmp_path)])
    with pytest.raises(StoreError, match=r"predictions\.json is damaged: it is missing"):
        task.score([(Fold(0, (), (disc_case(0),)), tmp_path / "nowhere")])
