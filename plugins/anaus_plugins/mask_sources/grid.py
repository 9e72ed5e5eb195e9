"""Square cells: the control that shows what masks that follow the image add to any masks of their number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import PartitionSource
from anaus_bench.settings.base import Settings

if TYPE_CHECKING:
    from numpy.typing import NDArray


class GridSettings(Settings):
    """By default as many cells as DetCon draws masks (16)."""

    cells: int = Field(4, ge=1, le=15, description="Number of cells along each side of the picture.")


class Grid(PartitionSource[GridSettings]):
    """Equal rectangles: the control that knows nothing of the image.

    `cells` x `cells` equal rectangles of every picture, up to a pixel; black margins are one region.
    """

    name = "grid"
    settings_class = GridSettings

    def partition(self, picture: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Cells; a picture of fewer pixels than cells has fewer."""
        row, column = (np.arange(side) * self.settings.cells // side for side in picture.shape)
        cells: NDArray[np.int64] = row[:, None] * self.settings.cells + column
        return cells


@hookimpl
def anaus_mask_sources() -> list[type[PartitionSource[Any]]]:
    """Square cells."""
    return [Grid]
