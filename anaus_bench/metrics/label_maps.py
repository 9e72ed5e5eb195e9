"""How good label maps are: against ground truth where there is one, and by themselves.

A label map (H, W) uint8 gives every pixel one region; the truth (H, W) uint8 gives structure ids, 0 = none. Shares and
scores are in [0, 1]. Read them together: the best IoU and the achievable accuracy rise with the number of regions, and
one region is perfectly stable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

TOLERANCE = 2 / 256
"""Distance at which two boundary pixels still match, as a share of the longer side of the image: 2 pixels at 256."""

GAIN_STEP = 13
"""Grey levels that +3 dB of receive gain add to a log-compressed image of 60 dB dynamic range: 255 * 3 / 60."""

Row = dict[str, float]


def score_masks(
    label_maps: NDArray[np.uint8], truth: NDArray[np.uint8] | None, boxes: NDArray[np.floating]
) -> list[Row]:
    """One row of scores per image.

    `regions`, `single_region` (1 where the whole image is one region, as where a source finds nothing; else 0),
    `coverage` (share of pixels with another id than 0) and `largest` (share of the largest region) always. Where the
    image has a structure, also the means over its structures of `best_iou` and `pieces`, with `best_iou_<id>` of each,
    and `boundary_recall`, `boundary_precision`, `under_segmentation`, `achievable_accuracy`.
    `boundary_precision` is left out where the label map has one region: it has no boundary.

    Args:
        label_maps: (N, H, W) uint8.
        truth: (N, H, W) uint8 structure ids, or None.
        boxes: (N, 4) valid boxes (top, left, height, width) in pixels; what is outside is not scored.
    """
    tolerance = TOLERANCE * max(label_maps.shape[1:])
    rows = []
    for number, (top, left, height, width) in enumerate(boxes.astype(int)):
        inside = number, slice(top, top + height), slice(left, left + width)
        row = region_scores(label_maps[inside])
        if truth is not None and truth[inside].any():
            row |= truth_scores(label_maps[inside], truth[inside], tolerance)
        rows.append(row)
    return rows


def summarise(rows: Sequence[Mapping[str, float]]) -> Row:
    """Mean of each score over the images that have it, and how many `images` there are, `with_structures` of them."""
    names = dict.fromkeys(name for row in rows for name in row)
    means = {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}
    counts = {"images": float(len(rows)), "with_structures": float(sum("best_iou" in row for row in rows))}
    return counts | means


def region_scores(label_map: NDArray[np.uint8]) -> Row:
    """Scores of one label map (H, W) that need no truth."""
    areas = np.bincount(label_map.ravel())
    regions = np.count_nonzero(areas)
    return {
        "regions": float(regions),
        "single_region": float(regions == 1),
        "coverage": float(1 - areas[0] / label_map.size),
        "largest": float(areas.max() / label_map.size),
    }


def truth_scores(label_map: NDArray[np.uint8], truth: NDArray[np.uint8], tolerance: float) -> Row:
    """Scores of one label map (H, W) against a truth (H, W) with at least one structure; `tolerance` in pixels."""
    table = overlaps(label_map, truth)
    best = best_ious(table)
    recall, precision = boundary_scores(label_map, truth, tolerance)
    row = {
        "best_iou": float(np.mean(list(best.values()))),
        "pieces": float(np.mean(list(pieces(table).values()))),
        "boundary_recall": recall,
        "under_segmentation": under_segmentation(table),
        "achievable_accuracy": achievable_accuracy(table),
    }
    if precision is not None:
        row["boundary_precision"] = precision
    return row | {f"best_iou_{structure}": iou for structure, iou in best.items()}


def overlaps(label_map: NDArray[np.uint8], truth: NDArray[np.uint8]) -> NDArray[np.int64]:
    """(R, T) int64: pixels with region r in one map (H, W) and id t in the other, for all ids up to the largest."""
    regions, structures = int(label_map.max()) + 1, int(truth.max()) + 1
    pairs = label_map.ravel().astype(np.int64) * structures + truth.ravel()
    return np.bincount(pairs, minlength=regions * structures).reshape(regions, structures)


def best_ious(table: NDArray[np.int64]) -> dict[int, float]:
    """Structure id -> largest IoU with any one region, for the structures that exist in a table of overlaps (R, T)."""
    ious = _ious(table).max(axis=0)
    return {structure: float(ious[structure]) for structure in _structures(table)}


def pieces(table: NDArray[np.int64]) -> dict[int, int]:
    """Structure id -> number of regions that lie in it with more than half their pixels, from overlaps (R, T).

    1 is ideal, more is over-segmentation, and 0 a structure that is swallowed by a larger region.
    """
    inside = 2 * table > table.sum(axis=1, keepdims=True)
    return {structure: int(np.count_nonzero(inside[:, structure])) for structure in _structures(table)}


def under_segmentation(table: NDArray[np.int64]) -> float:
    """Share of pixels that leak over the boundaries of the truth; 0 is best, from overlaps (R, T).

    Neubert and Protzel, Superpixel benchmark and comparison, 2012: each region adds the smaller of its parts inside
    and outside of each id of the truth that it meets, the background being one of them.
    """
    outside = table.sum(axis=1, keepdims=True) - table
    return float(np.minimum(table, outside).sum() / table.sum())


def achievable_accuracy(table: NDArray[np.int64]) -> float:
    """Pixel accuracy if every region took the id of the truth it overlaps most, from overlaps (R, T).

    Achievable segmentation accuracy of Liu et al., Entropy rate superpixel segmentation, CVPR 2011; the background is
    one of the ids.
    """
    return float(table.max(axis=1).sum() / table.sum())


def boundaries(label_map: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(H, W) bool: pixels whose right or lower neighbour has another id."""
    edges = np.zeros(label_map.shape, dtype=bool)
    edges[:, :-1] |= label_map[:, 1:] != label_map[:, :-1]
    edges[:-1] |= label_map[1:] != label_map[:-1]
    return edges


def boundary_scores(
    label_map: NDArray[np.uint8], truth: NDArray[np.uint8], tolerance: float
) -> tuple[float, float | None]:
    """Shares of the truth's boundary pixels near the label map's (recall) and the reverse (precision).

    Near is a Euclidean distance of at most `tolerance` pixels; pixels may match more than once. Recall is 1 where the
    truth has no boundary, and precision None where the label map has none.
    """
    ours, true = boundaries(label_map), boundaries(truth)
    recall = _share_near(true, ours, tolerance) if true.any() else 1.0
    precision = _share_near(ours, true, tolerance) if ours.any() else None
    return recall, precision


# ---- stability -------------------------------------------------------------------------------------------------------


def stability(
    segment: Callable[[NDArray[np.uint8]], NDArray[np.uint8]], images: NDArray[np.uint8], boxes: NDArray[np.floating]
) -> list[Row]:
    """How far label maps stay the same when the image is mirrored or its gain is raised; one row per image.

    For each change: `<change>_vi`, the variation of information in bits (0 = the same partition), and
    `<change>_covering`, the mean of both segmentation coverings (1 = the same).

    Args:
        segment: Label maps (N, H, W) uint8 of images (N, H, W) uint8.
        images: (N, H, W) uint8.
        boxes: (N, 4) valid boxes (top, left, height, width) in pixels; what is outside is not compared.
    """
    before = segment(images)
    after = {
        "mirror": segment(np.ascontiguousarray(images[:, :, ::-1]))[:, :, ::-1],
        "gain": segment(raise_gain(images)),
    }
    rows = []
    for number, (top, left, height, width) in enumerate(boxes.astype(int)):
        inside = number, slice(top, top + height), slice(left, left + width)
        row: Row = {}
        for change, label_maps in after.items():
            table = overlaps(before[inside], label_maps[inside])
            row[f"{change}_vi"] = variation_of_information(table)
            row[f"{change}_covering"] = (covering(table) + covering(table.T)) / 2
        rows.append(row)
    return rows


def raise_gain(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images uint8 of any shape with 3 dB more receive gain: a constant on grey levels, but black stays black."""
    return np.where(images > 0, np.minimum(images, 255 - GAIN_STEP) + GAIN_STEP, 0).astype(np.uint8)


def variation_of_information(table: NDArray[np.int64]) -> float:
    """H(A|B) + H(B|A) in bits of two partitions, from their overlaps (R, T). Meila, J. Multivariate Analysis 2007."""
    joint = table / table.sum()
    return float(2 * _entropy(joint) - _entropy(joint.sum(axis=0)) - _entropy(joint.sum(axis=1)))


def covering(table: NDArray[np.int64]) -> float:
    """Mean best IoU of the first partition's regions, weighted by their area, from overlaps (R, T).

    Segmentation covering of Arbelaez et al., Contour detection and hierarchical image segmentation, TPAMI 2011.
    """
    return float(_ious(table).max(axis=1) @ table.sum(axis=1) / table.sum())


def _ious(table: NDArray[np.int64]) -> NDArray[np.float64]:
    union = table.sum(axis=1, keepdims=True) + table.sum(axis=0) - table
    ious: NDArray[np.float64] = table / np.maximum(union, 1)
    return ious


def _structures(table: NDArray[np.int64]) -> list[int]:
    return [int(structure) for structure in np.flatnonzero(table.sum(axis=0)) if structure > 0]


def _entropy(shares: NDArray[np.float64]) -> float:
    positive = shares[shares > 0]
    return float(-(positive * np.log2(positive)).sum())


def _share_near(pixels: NDArray[np.bool_], others: NDArray[np.bool_], tolerance: float) -> float:
    from scipy.ndimage import distance_transform_edt

    if not others.any():
        return 0.0
    return float((distance_transform_edt(~others)[pixels] <= tolerance).mean())
