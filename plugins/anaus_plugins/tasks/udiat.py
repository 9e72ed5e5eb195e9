"""Breast lesion segmentation on UDIAT-B."""

from __future__ import annotations

from anaus_bench.hookspecs import hookimpl
from anaus_bench.tasks.segmentation import DICE, HAUSDORFF, PPV, SENSITIVITY, SegmentationSettings, SegmentationTask


class UDIAT(SegmentationTask[SegmentationSettings]):
    """163 images with one lesion each."""

    name = "udiat"
    dataset = "udiat"
    metrics = (DICE, PPV, SENSITIVITY, HAUSDORFF)


@hookimpl
def anaus_tasks() -> list[type[UDIAT]]:
    """The task of this module."""
    return [UDIAT]
