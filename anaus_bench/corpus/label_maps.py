"""Label maps from what mask sources find: partitions with arbitrary ids, and overlapping proposals with scores.

A label map is (H, W) uint8: every pixel has exactly one id, ids are contiguous from 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

MAX_REGIONS = 256
"""As many ids as a uint8 label map can hold."""


def partition_images(images: Tensor, partition: Callable[[NDArray[np.uint8]], NDArray[np.integer]]) -> Tensor:
    """Label maps (B, H, W) uint8 of images (B, 1, H, W) uint8, on their device; ids by decreasing area.

    Args:
        images: Letterboxed or not; all that is outside of `picture_box` becomes one region of its own.
        partition: Regions of one picture (h, w), ids arbitrary but not negative.
    """

    def one(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        inside = picture_box(image)
        regions = np.full(image.shape, -1, dtype=np.int64)
        regions[inside] = partition(image[inside])
        return label_by_area(regions)

    return map_images(images, one)


def map_images(images: Tensor, segment: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]) -> Tensor:
    """Label maps (B, H, W) uint8 of images (B, 1, H, W) uint8, on their device, from a function of one image (H, W)."""
    import torch

    maps = torch.empty_like(images[:, 0], device="cpu")
    for label_map, image in zip(maps, images[:, 0].cpu().numpy(), strict=True):
        label_map.copy_(torch.from_numpy(segment(image)))
    return maps.to(images.device)


def picture_box(image: NDArray[np.uint8]) -> tuple[slice, slice]:
    """Rows and columns of an image (H, W) without its black margins, letterbox or not; all of it if it is black."""
    rows, columns = np.flatnonzero(image.any(axis=1)), np.flatnonzero(image.any(axis=0))
    if len(rows) == 0:
        return slice(0, image.shape[0]), slice(0, image.shape[1])
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def label_by_area(partition: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Label map of a partition (H, W): ids by decreasing area, equal areas by their old ids.

    Of more than 256 regions the largest 256 are kept; the pixels of the others join the nearest kept region.
    """
    _, regions, areas = np.unique(partition, return_inverse=True, return_counts=True)
    rank = np.empty(len(areas), dtype=np.intp)
    rank[np.argsort(-areas, kind="stable")] = np.arange(len(areas))
    ranked = rank[regions.reshape(partition.shape)]
    if len(areas) > MAX_REGIONS:
        ranked = _fill_from_nearest(ranked, ranked >= MAX_REGIONS)
    label_map: NDArray[np.uint8] = ranked.astype(np.uint8)
    return label_map


def paint_proposals(
    masks: NDArray[np.bool_],
    scores: NDArray[np.floating],
    *,
    max_regions: int = 15,
    min_area: float = 0.001,
    max_area: float = 0.95,
) -> NDArray[np.uint8]:
    """Label map of overlapping proposals: the best ones, painted from the largest to the smallest.

    Smaller proposals are painted over larger ones, so that nested structures survive. Id 0 is what no proposal covers,
    then ids by decreasing visible area; where the proposals cover everything, the largest gets id 0.

    Args:
        masks: (P, H, W) bool.
        scores: (P,), higher is better.
        max_regions: Number of proposals to paint, at most 255.
        min_area: Least share of the image of a proposal, and of what stays visible of it.
        max_area: Largest share of the image of a proposal.
    """
    height, width = masks.shape[1:]
    areas = np.count_nonzero(masks, axis=(1, 2))
    sized = (areas >= min_area * height * width) & (areas <= max_area * height * width)
    by_score = np.argsort(-scores, kind="stable")
    best = by_score[sized[by_score]][:max_regions]
    painted = np.zeros((height, width), dtype=np.uint8)
    for number, index in enumerate(best[np.argsort(-areas[best], kind="stable")], start=1):
        painted[masks[index]] = number
    visible = np.bincount(painted.ravel(), minlength=max_regions + 1)
    kept = np.flatnonzero(visible[1:] >= max(1, min_area * height * width)) + 1
    kept = kept[np.argsort(-visible[kept], kind="stable")]
    ids = np.zeros(max_regions + 1, dtype=np.uint8)
    ids[kept] = np.arange(1, len(kept) + 1)
    labels: NDArray[np.uint8] = ids[painted]
    return labels if labels.min() == 0 else labels - np.uint8(1)


def _fill_from_nearest(labels: NDArray[np.intp], holes: NDArray[np.bool_]) -> NDArray[np.intp]:
    from scipy.ndimage import distance_transform_edt

    rows, columns = distance_transform_edt(holes, return_distances=False, return_indices=True)
    filled: NDArray[np.intp] = labels[rows, columns]
    return filled


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
