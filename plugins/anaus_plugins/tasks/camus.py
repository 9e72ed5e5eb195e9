"""Cardiac structure segmentation on CAMUS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from anaus_bench.hookspecs import hookimpl
from anaus_bench.tasks.segmentation import DICE, HAUSDORFF, PPV, SENSITIVITY, SegmentationSettings, SegmentationTask

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Mask ids of the data set.
STRUCTURES = {"left-ventricle": 1, "myocardium": 2, "left-atrium": 3}


class CAMUSSettings(SegmentationSettings):
    """Which structure of CAMUS."""

    structure: Literal["left-ventricle", "myocardium", "left-atrium"] = Field(
        "left-ventricle", description="which structure is segmented"
    )


class CAMUS(SegmentationTask[CAMUSSettings]):
    """One structure in 19,232 frames of 500 patients, folds of whole patients; not a task of the paper."""

    name = "camus"
    dataset = "camus"
    settings_class = CAMUSSettings
    metrics = (DICE, HAUSDORFF, PPV, SENSITIVITY)

    def foreground(self, mask: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """The chosen structure alone."""
        chosen: NDArray[np.bool_] = mask == STRUCTURES[self.settings.structure]
        return chosen


@hookimpl
def anaus_tasks() -> list[type[CAMUS]]:
    """The task of this module."""
    return [CAMUS]
