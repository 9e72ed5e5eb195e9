"""Label maps: connected regions and contiguous ids."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def contiguous(ids: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Any shape; the same regions with the ids 0, 1, ... in the order of the old ids."""
    inverse = np.unique(ids, return_inverse=True)[1]
    return inverse.reshape(ids.shape).astype(np.uint8)


def split_components(ids: NDArray[np.uint8], min_area: float, most: int) -> NDArray[np.uint8]:
    """Splits the classes of a map into their 8-connected components.

    Args:
        ids: (H, W) uint8 classes, 0 = background.
        min_area: Components with fewer pixels become background.
        most: Number of components that are kept, the largest.

    Returns:
        (H, W) uint8: 0 = background, then the components by decreasing area (ties in raster order). If there is no
        background, the ids start from 0 all the same.
    """
    from skimage.measure import label

    parts = label(ids, background=0, connectivity=2)  # type: ignore[no-untyped-call]
    areas = np.bincount(parts.ravel())
    order = 1 + np.argsort(-areas[1:], kind="stable")
    kept = order[areas[order] >= min_area][:most]
    table = np.zeros(len(areas), dtype=np.uint8)
    table[kept] = np.arange(1, len(kept) + 1)
    regions: NDArray[np.uint8] = table[parts]
    return regions if regions.min() == 0 else regions - np.uint8(1)
