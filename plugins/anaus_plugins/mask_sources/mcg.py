"""MCG-style regions: an ultrametric contour map over three scales, cut into few regions.

Multiscale Combinatorial Grouping (Pont-Tuset et al., TPAMI 2017, arXiv:1503.00848), through higra. As there: the
pyramid, merging by mean contour strength, alignment of the coarser hierarchies on the finest superpixels, their
uniform mean. Unlike there: contours are Sobel magnitudes of a smoothed image instead of a structured forest's, arcs
have no orientation, there is no spectral globalisation, and regions are those of one cut of the hierarchy instead of
combined, ranked proposals.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from anaus_bench.errors import PluginError
from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import PartitionSource
from anaus_bench.lazy import F, torch
from anaus_bench.settings.base import Settings

if TYPE_CHECKING:
    from types import ModuleType

    from numpy.typing import NDArray

SCALES = {"ucm-sobel": (2.0, 1.0, 0.5), "ucm-sobel-single": (1.0,)}
"""Sizes of the image pyramid, finest first."""


class MCGSettings(Settings):
    """Defaults are chosen for ultrasound: smoothing against speckle, no region smaller than a small structure."""

    variant: Literal["ucm-sobel", "ucm-sobel-single"] = Field(
        "ucm-sobel", description="ucm-sobel: at twice, once and half the size (MCG); ucm-sobel-single: once only (SCG)."
    )
    regions: int = Field(
        16, ge=1, le=256, description="Regions of the picture at most; 8 to 16 follow structures, more follow speckle."
    )
    sigma: float = Field(2.0, ge=0, description="Gaussian smoothing before the gradient, in pixels of each scale.")
    min_area: float = Field(0.0038, ge=0, lt=1, description="Least area of a region as a share of the picture.")


class MCG(PartitionSource[MCGSettings]):
    """Multiscale contour hierarchy cut into a few regions (MCG-style).

    A partition: ids by decreasing area, black margins are one region beside those of the cut.
    """

    name = "mcg"
    settings_class = MCGSettings
    reference = (
        "Pont-Tuset et al., Multiscale combinatorial grouping for image segmentation and object proposal generation, "
        "TPAMI 2017, arXiv:1503.00848; Perret et al., Higra: hierarchical graph analysis, SoftwareX 2019"
    )

    def describe(self) -> dict[str, str]:
        """Says that this is not the published MCG."""
        return {"mcg": "MCG-style: UCM from Sobel gradients, no structured forest, no proposals ranking"}

    def partition(self, picture: NDArray[np.uint8]) -> NDArray[np.int64]:
        """The cut of the hierarchy.

        Raises:
            PluginError: higra is not installed.
        """
        hg = _import_higra()
        if picture.min() == picture.max():
            return np.zeros(picture.shape, dtype=np.int64)
        graph = hg.get_4_adjacency_graph(picture.shape)
        strengths = [
            hg.weight_graph(graph, gradient(picture, scale, self.settings.sigma), hg.WeightFunction.mean)
            for scale in SCALES[self.settings.variant]
        ]
        tree, altitudes = _multiscale_hierarchy(hg, graph, strengths)
        if tree.num_leaves() == 1:
            return np.zeros(picture.shape, dtype=np.int64)
        tree, altitudes = hg.filter_small_nodes_from_tree(tree, altitudes, self.settings.min_area * picture.size)
        cut = hg.HorizontalCutExplorer(tree, altitudes).horizontal_cut_from_num_regions(
            self.settings.regions, at_least=False
        )
        regions: NDArray[np.int64] = cut.labelisation_leaves(tree)
        return regions


def gradient(picture: NDArray[np.uint8], scale: float, sigma: float) -> NDArray[np.float64]:
    """Sobel magnitude (H, W) of a picture (H, W) resized by `scale` and smoothed there; resized back."""
    from scipy.ndimage import gaussian_filter, sobel

    height, width = picture.shape
    smooth = gaussian_filter(
        _resize(picture / 255, (max(1, round(height * scale)), max(1, round(width * scale)))), sigma
    )
    return _resize(np.hypot(sobel(smooth, axis=0), sobel(smooth, axis=1)), picture.shape)


def _resize(values: NDArray[np.float64], size: tuple[int, ...]) -> NDArray[np.float64]:
    """Antialiased bilinear."""
    map_ = torch.from_numpy(values)[None, None]
    resized: NDArray[np.float64] = F.interpolate(map_, size=size, mode="bilinear", antialias=True)[0, 0].numpy()
    return resized


def _multiscale_hierarchy(
    hg: ModuleType, graph: Any, strengths: list[NDArray[np.float64]]
) -> tuple[Any, NDArray[np.float64]]:
    """Tree on the finest superpixels and its altitudes: the mean of the hierarchies of all scales.

    As `higra.multiscale_mean_pb_hierarchy`, which fails where a scale has one superpixel only: such a scale has no
    contours and adds nothing to the mean.
    """
    (finest, altitudes), *coarser = (hg.mean_pb_hierarchy(graph, strength) for strength in strengths)
    if not coarser or finest.num_leaves() == 1:
        return finest, altitudes
    superpixels = hg.labelisation_hierarchy_supervertices(finest, altitudes)
    aligned = hg.align_hierarchies(graph, superpixels, [one for one in coarser if one[0].num_leaves() > 1])
    tree, altitudes = hg.mean_pb_hierarchy(graph, sum(aligned, hg.saliency(finest, altitudes)) / len(strengths))
    return tree, altitudes


def _import_higra() -> ModuleType:
    try:
        return importlib.import_module("higra")
    except ImportError:
        raise PluginError(
            "mask source 'mcg' needs the package higra, which is not installed; pip install higra"
        ) from None


@hookimpl
def anaus_mask_sources() -> list[type[PartitionSource[Any]]]:
    """MCG-style regions."""
    return [MCG]
