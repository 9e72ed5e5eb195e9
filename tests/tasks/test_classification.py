"""Stored class probabilities and their scores."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from anaus_bench.errors import StoreError
from anaus_bench.interfaces import Fold
from tests.toy_tasks import CLASSES, SHADES, shade_case


def store(folder: Path, fold: Fold, probabilities: Sequence[Sequence[float]]) -> None:
    """Stores predictions as a protocol does."""
    folder.mkdir(exist_ok=True)
    with (folder / "predictions.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image_id", "group_id", "fold", "y_true", *(f"p_{name}" for name in fold.classes)])
        for case, row in zip(fold.test, probabilities, strict=True):
            writer.writerow([case.sample.sample_id, case.sample.group_id, fold.number, case.sample.label, *row])


def test_scores_are_per_fold_and_of_the_summed_confusion_matrix(tmp_path: Path) -> None:
    folds = [
        Fold(0, (), (shade_case(0), shade_case(1)), CLASSES),
        Fold(1, (), (shade_case(2), shade_case(3), shade_case(4)), CLASSES),
    ]
    store(tmp_path / "0", folds[0], [[0.9, 0.1], [0.4, 0.6]])
    store(tmp_path / "1", folds[1], [[0.2, 0.8], [0.3, 0.7], [0.6, 0.4]])

    scores = SHADES.score([(fold, tmp_path / str(fold.number)) for fold in folds])

    assert [fold["accuracy"] for fold in scores.folds] == pytest.approx([1, 2 / 3])
    assert scores.pooled["accuracy"] == pytest.approx(4 / 5)
    assert scores.pooled["f1"] == pytest.approx((4 / 5 + 4 / 5) / 2)
    assert scores.pooled["recall_dark"] == pytest.approx(2 / 3)
    assert scores.pooled["precision_bright"] == pytest.approx(2 / 3)
    assert [row["accuracy"] for row in scores.rows] == [1, 1, 0, 1, 1]
    assert [row["y_pred"] for row in scores.rows] == [0, 1, 1, 1, 0]
    assert any("[[2, 1], [0, 2]]" in note for note in scores.notes)


def test_group_scores_are_of_the_mean_probabilities(tmp_path: Path) -> None:
    cases = (shade_case(0, 0, "clip"), shade_case(2, 0, "clip"), shade_case(4, 0, "clip"), shade_case(1, 1, "other"))
    fold = Fold(0, (), cases, CLASSES)
    store(tmp_path, fold, [[0.9, 0.1], [0.45, 0.55], [0.45, 0.55], [0.1, 0.9]])

    scores = SHADES.score([(fold, tmp_path)])

    assert scores.pooled["accuracy"] == 0.5
    assert scores.pooled["accuracy_group"] == 1.0


def test_absent_classes_are_left_out_of_means_and_counted(tmp_path: Path) -> None:
    fold = Fold(0, (), (shade_case(0), shade_case(2)), CLASSES)
    store(tmp_path, fold, [[0.9, 0.1], [0.8, 0.2]])

    scores = SHADES.score([(fold, tmp_path)])

    assert scores.folds[0]["f1"] == 1.0
    assert np.isnan(scores.folds[0]["recall_bright"])
    assert any("absent from held-out folds: 1" in note for note in scores.notes)


def test_drawing_names_the_true_and_the_predicted_class(tmp_path: Path) -> None:
    fold = Fold(0, (), (shade_case(0),), CLASSES)
    store(tmp_path, fold, [[0.25, 0.75]])

    assert SHADES.draw(shade_case(0), tmp_path) == (None, None, "dark, predicted bright (0.75)")
    with pytest.raises(StoreError, match=r"no prediction of 'shade 1\.png'"):
        SHADES.draw(shade_case(1), tmp_path)
