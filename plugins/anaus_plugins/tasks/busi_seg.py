"""Breast lesion segmentation on BUSI."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import Sample
from anaus_bench.tasks.segmentation import DICE, HAUSDORFF, PPV, SENSITIVITY, SegmentationSettings, SegmentationTask

NORMAL = 2
"""Class id of images without a lesion, after benign and malignant."""


class BUSISegmentationSettings(SegmentationSettings):
    """Which images of BUSI."""

    include_normal: bool = Field(False, description="also train and test on the images without a lesion (133 of 780)")


class BUSISegmentation(SegmentationTask[BUSISegmentationSettings]):
    """Benign and malignant images (647); those without a lesion, whose masks are empty, on request."""

    name = "busi-seg"
    dataset = "busi"
    settings_class = BUSISegmentationSettings
    metrics = (DICE, HAUSDORFF, PPV, SENSITIVITY)
    split_settings = ("folds", "fold_seed", "include_normal")

    def select(self, samples: Sequence[Sample]) -> list[Sample]:
        """Images with a lesion, and with `include_normal` all."""
        return [sample for sample in samples if self.settings.include_normal or sample.label != NORMAL]


@hookimpl
def anaus_tasks() -> list[type[BUSISegmentation]]:
    """The task of this module."""
    return [BUSISegmentation]
