"""Lung classification on POCUS."""

from __future__ import annotations

from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import Metric
from anaus_bench.settings.task import TaskSettings
from anaus_bench.tasks.classification import ACCURACY, MACRO_F1, ClassificationTask


class POCUS(ClassificationTask[TaskSettings]):
    """COVID-19, pneumonia or regular, folds of whole patients; the columns per class are recalls."""

    name = "pocus"
    dataset = "pocus"
    metrics = (
        ACCURACY,
        MACRO_F1,
        Metric("recall_covid19", "COVID"),
        Metric("recall_pneumonia", "Pneu."),
        Metric("recall_regular", "Reg."),
    )


@hookimpl
def anaus_tasks() -> list[type[POCUS]]:
    """The task of this module."""
    return [POCUS]
