"""Felzenszwalb-Huttenlocher segmentation (IJCV 2004), the mask source of DetCon (Henaff et al. 2021) on ImageNet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import PartitionSource
from anaus_bench.settings.base import Settings

if TYPE_CHECKING:
    from numpy.typing import NDArray

REFERENCE_SIDE = 512
"""Side in pixels of the picture that `scale` and `min_size` refer to."""


class FelzenszwalbSettings(Settings):
    """Defaults are DetCon's, read for a picture of 512 x 512 pixels and rescaled by area to others."""

    scale: float = Field(
        1000.0, gt=0, description="Preference for large regions, in pixels of a 512 x 512 picture (DetCon)."
    )
    min_size: int = Field(1000, ge=1, description="Least area of a region, in pixels of a 512 x 512 picture (DetCon).")
    sigma: float = Field(
        0.8, ge=0, description="Gaussian smoothing before, in pixels of the image (skimage's default)."
    )


class Felzenszwalb(PartitionSource[FelzenszwalbSettings]):
    """Felzenszwalb and Huttenlocher's graph segmentation, as DetCon uses it.

    Greedy merging of a pixel graph; ids by decreasing area, black margins are one region.
    """

    name = "felzenszwalb"
    settings_class = FelzenszwalbSettings
    reference = (
        "Felzenszwalb and Huttenlocher, Efficient graph-based image segmentation, IJCV 2004, "
        "doi:10.1023/B:VISI.0000022288.19776.77; settings of Henaff et al. 2021, arXiv:2103.10957"
    )

    def partition(self, picture: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Merged regions; of more than 256 the small ones are absorbed."""
        from skimage.segmentation import felzenszwalb

        share = picture.size / REFERENCE_SIDE**2
        regions: NDArray[np.int64] = felzenszwalb(
            # As DetCon's input: over three equal channels an edge weighs sqrt(3) times its grey difference.
            np.repeat(picture[..., None], 3, axis=2),
            scale=self.settings.scale * share,
            sigma=self.settings.sigma,
            min_size=round(self.settings.min_size * share),
        )
        return regions


@hookimpl
def anaus_mask_sources() -> list[type[PartitionSource[Any]]]:
    """Felzenszwalb-Huttenlocher."""
    return [Felzenszwalb]
