"""How class probabilities are stored: one CSV file per fold, a row per image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from anaus_bench.errors import LabelError, StoreError
from anaus_bench.interfaces import Case, Fold
from anaus_bench.machine.artifacts import damaged
from anaus_bench.machine.files import write_rows
from anaus_bench.metrics import classification as metrics
from anaus_bench.tasks.predicted import read_predicted

if TYPE_CHECKING:
    from numpy.typing import NDArray

FILE_NAME = "predictions.csv"


def write_probabilities(folder: Path, fold: Fold, probabilities: NDArray[np.float32]) -> None:
    """Writes the class probabilities (N, C) of the fold's N held-out images."""
    columns = [f"p_{name}" for name in fold.classes]
    rows = [
        {**_identity(case, fold), **dict(zip(columns, row, strict=True))}
        for case, row in zip(fold.test, probabilities.tolist(), strict=True)
    ]
    write_rows(folder / FILE_NAME, rows)


@dataclass(frozen=True)
class Probabilities:
    """Predictions of a set of images (or groups): group ids (N,), truth (N,) int64, probabilities (N, C)."""

    groups: tuple[str, ...]
    truth: NDArray[np.int64]
    probabilities: NDArray[np.float64]

    @classmethod
    def joined(cls, tables: Sequence[Probabilities]) -> Probabilities:
        """All of several tables, one after the other."""
        return cls(
            tuple(group for table in tables for group in table.groups),
            np.concatenate([table.truth for table in tables]),
            np.concatenate([table.probabilities for table in tables]),
        )

    def by_group(self) -> Probabilities:
        """Mean probabilities of the images of one group and class (a patient may have lesions of two classes)."""
        units: dict[tuple[str, int], list[int]] = {}
        for index, key in enumerate(zip(self.groups, self.truth.tolist(), strict=True)):
            units.setdefault(key, []).append(index)
        return Probabilities(
            tuple(group for group, _ in units),
            np.array([truth for _, truth in units], dtype=np.int64),
            np.stack([self.probabilities[indices].mean(axis=0) for indices in units.values()]),
        )

    def scores(self, classes: Sequence[str]) -> dict[str, float]:
        """All metrics, and those of each class under `<metric>_<class>`."""
        values = metrics.classification_scores(self.truth, self.probabilities)
        confusion = metrics.confusion_matrix(self.truth, self.probabilities.argmax(axis=1), len(classes))
        for key, of_classes in metrics.per_class(confusion).items():
            values |= {f"{key}_{name}": value for name, value in zip(classes, of_classes.tolist(), strict=True)}
        return values

    def rows(self, fold: Fold) -> list[dict[str, Any]]:
        """One row per image of the fold; `accuracy` is 1 where the prediction is right."""
        columns = [f"p_{name}" for name in fold.classes]
        rows = []
        for case, probabilities in zip(fold.test, self.probabilities, strict=True):
            identity, predicted = _identity(case, fold), int(probabilities.argmax())
            rows.append(
                {
                    **identity,
                    "y_pred": predicted,
                    "accuracy": float(predicted == identity["y_true"]),
                    **dict(zip(columns, probabilities.tolist(), strict=True)),
                }
            )
        return rows


def _identity(case: Case, fold: Fold) -> dict[str, Any]:
    return {
        "image_id": case.sample.sample_id,
        "group_id": case.sample.group_id,
        "fold": fold.number,
        "y_true": label_of(case, fold.classes),
    }


def label_of(case: Case, classes: Sequence[str]) -> int:
    """The class id of a case.

    Raises:
        LabelError: It has none, or one that is no class.
    """
    label = case.sample.label
    if label is None or not 0 <= label < len(classes):
        raise LabelError(
            f"{case.sample.sample_id} has label {label!r}; classification needs one of 0..{len(classes) - 1} "
            f"({', '.join(classes)})"
        )
    return label


def read_probabilities(path: Path, fold: Fold) -> Probabilities:
    """Predictions of the fold's held-out images, in their order."""
    by_image = read_predicted(path)
    probabilities = []
    for case in fold.test:
        row = by_image.get(case.sample.sample_id)
        if row is None:
            raise missing_prediction(path, case)
        if row.probabilities.keys() != {*fold.classes}:
            raise damaged(path, f"its classes are {', '.join(row.probabilities)}, expected {', '.join(fold.classes)}")
        probabilities.append([row.probabilities[name] for name in fold.classes])
    truth = np.array([label_of(case, fold.classes) for case in fold.test], dtype=np.int64)
    return Probabilities(tuple(case.sample.group_id for case in fold.test), truth, np.array(probabilities))


def missing_prediction(path: Path, case: Case) -> StoreError:
    """The error of a held-out image without a prediction."""
    return StoreError(
        f"{path} holds no prediction of {case.sample.sample_id!r}; it was made from other data: run its stage again"
    )
