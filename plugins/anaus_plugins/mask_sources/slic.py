"""SLIC superpixels (Achanta et al. 2012), the prior regions of R2O (Gokul et al. 2022)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import PartitionSource
from anaus_bench.settings.base import Settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class SLICSettings(Settings):
    """Defaults are R2O's: 100 superpixels at skimage's compactness."""

    n_segments: int = Field(100, ge=2, le=256, description="Number of superpixels aimed at (R2O).")
    compactness: float = Field(
        10.0,
        gt=0,
        description="Weight of distance in the image against grey level, which counts 0 to 100 as CIELAB's L.",
    )
    sigma: float = Field(0.0, ge=0, description="Gaussian smoothing before, in pixels (skimage's default).")


class SLIC(PartitionSource[SLICSettings]):
    """SLIC superpixels.

    K-means of position and grey level with local search; connected superpixels, black margins are one region.
    """

    name = "slic"
    settings_class = SLICSettings
    reference = (
        "Achanta et al., SLIC superpixels compared to state-of-the-art superpixel methods, TPAMI 2012, "
        "doi:10.1109/TPAMI.2012.120; settings of R2O, Gokul et al. 2022, arXiv:2208.11821"
    )

    def partition(self, picture: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Superpixels."""
        from skimage.segmentation import slic

        superpixels: NDArray[np.int64] = slic(
            picture,
            n_segments=self.settings.n_segments,
            # skimage scales grey images to [0, 1].
            compactness=self.settings.compactness / 100,
            sigma=self.settings.sigma,
            channel_axis=None,
            start_label=0,
        )
        return superpixels


@hookimpl
def anaus_mask_sources() -> list[type[PartitionSource[Any]]]:
    """SLIC superpixels."""
    return [SLIC]
