"""Classification: stored class probabilities are scored against the labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from anaus_bench.interfaces import Case, Fold, Metric, Scores, Task
from anaus_bench.metrics import classification as metrics
from anaus_bench.settings.task import TaskSettings
from anaus_bench.tasks.predicted import read_predicted
from anaus_bench.tasks.probabilities import (
    FILE_NAME,
    Probabilities,
    missing_prediction,
    read_probabilities,
)

ACCURACY = Metric("accuracy", "Acc.")
MACRO_F1 = Metric("f1", "F1")

TaskSettingsT = TypeVar("TaskSettingsT", bound=TaskSettings)


class ClassificationTask(Task[TaskSettingsT]):
    """Scores the class probabilities of the held-out images."""

    protocol = "finetune"
    settings_class: ClassVar[type[TaskSettings]] = TaskSettings

    def score(self, folds: Sequence[tuple[Fold, Path]]) -> Scores:
        """Metrics per fold and over the images of all folds together; `*_group` from the mean probabilities of a group.

        Values per class are `recall_<class>`, `precision_<class>` and `f1_<class>`, nan where the class is absent.

        Raises:
            StoreError: A held-out image has no prediction.
        """
        classes = folds[0][0].classes
        rows: list[dict[str, Any]] = []
        tables: list[Probabilities] = []
        for fold, folder in folds:
            table = read_probabilities(folder / FILE_NAME, fold)
            tables.append(table)
            rows += table.rows(fold)
        together = Probabilities.joined(tables)
        pooled = together.scores(classes)
        pooled |= {f"{key}_group": value for key, value in together.by_group().scores(classes).items()}
        absent = sum(len(classes) - len(np.unique(table.truth)) for table in tables)
        return Scores(rows, [table.scores(classes) for table in tables], pooled, self._notes(together, classes, absent))

    def draw(self, case: Case, predictions: Path) -> tuple[None, None, str]:
        """No masks; the true class, and the predicted one with its probability."""
        path = predictions / FILE_NAME
        row = read_predicted(path).get(case.sample.sample_id)
        if row is None:
            raise missing_prediction(path, case)
        probabilities = row.probabilities
        best = max(probabilities, key=probabilities.__getitem__)
        true = list(probabilities)[row.y_true]
        return None, None, f"{true}, predicted {best} ({probabilities[best]:.2f})"

    def _notes(self, table: Probabilities, classes: Sequence[str], absent: int) -> list[str]:
        confusion = metrics.confusion_matrix(table.truth, table.probabilities.argmax(axis=1), len(classes))
        notes = [
            f"{len(table.truth)} images; pooled: all folds' images together (sum of the confusion matrices)",
            "F1: mean of the classes' F1 over the classes present in the truth; ECE: 15 bins of the top probability",
            f"confusion matrix (rows true, columns predicted; {', '.join(classes)}): {confusion.tolist()}",
        ]
        if absent:
            notes.append(f"classes absent from held-out folds: {absent}; they are left out of those folds' means")
        return notes
