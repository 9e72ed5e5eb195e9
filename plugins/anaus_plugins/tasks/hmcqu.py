"""Left ventricular wall segmentation on HMC-QU."""

from __future__ import annotations

from anaus_bench.hookspecs import hookimpl
from anaus_bench.tasks.segmentation import DICE, HAUSDORFF, PPV, SENSITIVITY, SegmentationSettings, SegmentationTask


class HMCQU(SegmentationTask[SegmentationSettings]):
    """2,349 frames of 109 echocardiograms, folds of whole videos; the wall of the left ventricle."""

    name = "hmcqu"
    dataset = "hmcqu"
    metrics = (DICE, HAUSDORFF, PPV, SENSITIVITY)


@hookimpl
def anaus_tasks() -> list[type[HMCQU]]:
    """The task of this module."""
    return [HMCQU]
