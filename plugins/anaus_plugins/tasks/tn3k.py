"""Thyroid nodule segmentation on TN3K."""

from __future__ import annotations

from anaus_bench.hookspecs import hookimpl
from anaus_bench.tasks.segmentation import DICE, HAUSDORFF, PPV, SENSITIVITY, SegmentationSettings, SegmentationTask


class TN3K(SegmentationTask[SegmentationSettings]):
    """Five published folds of 2,879 images and a fixed test set of 614; nodules."""

    name = "tn3k"
    dataset = "tn3k"
    metrics = (DICE, HAUSDORFF, PPV, SENSITIVITY)


@hookimpl
def anaus_tasks() -> list[type[TN3K]]:
    """The task of this module."""
    return [TN3K]
