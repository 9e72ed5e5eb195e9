"""Thyroid gland segmentation on TG3K."""

from __future__ import annotations

from anaus_bench.hookspecs import hookimpl
from anaus_bench.tasks.segmentation import DICE, HAUSDORFF, PPV, SENSITIVITY, SegmentationSettings, SegmentationTask


class TG3K(SegmentationTask[SegmentationSettings]):
    """3,585 frames of sweeps, folds of whole sweeps; the gland."""

    name = "tg3k"
    dataset = "tg3k"
    metrics = (DICE, HAUSDORFF, PPV, SENSITIVITY)


@hookimpl
def anaus_tasks() -> list[type[TG3K]]:
    """The task of this module."""
    return [TG3K]
