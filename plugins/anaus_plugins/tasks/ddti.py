"""Thyroid nodule segmentation on DDTI."""

from __future__ import annotations

from anaus_bench.hookspecs import hookimpl
from anaus_bench.tasks.segmentation import DICE, HAUSDORFF, PPV, SENSITIVITY, SegmentationSettings, SegmentationTask


class DDTI(SegmentationTask[SegmentationSettings]):
    """637 images, folds of near-duplicate groups; nodules."""

    name = "ddti"
    dataset = "ddti"
    metrics = (DICE, HAUSDORFF, PPV, SENSITIVITY)


@hookimpl
def anaus_tasks() -> list[type[DDTI]]:
    """The task of this module."""
    return [DDTI]
