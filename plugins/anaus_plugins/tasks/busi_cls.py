"""Breast lesion classification on BUSI."""

from __future__ import annotations

from anaus_bench.hookspecs import hookimpl
from anaus_bench.settings.task import TaskSettings
from anaus_bench.tasks.classification import ACCURACY, MACRO_F1, ClassificationTask


class BUSIClassification(ClassificationTask[TaskSettings]):
    """Benign, malignant or normal, 780 images."""

    name = "busi-cls"
    dataset = "busi"
    metrics = (ACCURACY, MACRO_F1)


@hookimpl
def anaus_tasks() -> list[type[BUSIClassification]]:
    """The task of this module."""
    return [BUSIClassification]
