"""Metrics as pure functions of arrays: segmentation per image, classification per set of images.

Fractions are in [0, 1], distances in pixels. Rules for empty masks and absent classes stand where they apply.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

DISTANCE_SIDE = 256
"""Side in pixels of the square that masks are resized to before distances are taken."""


# ---- segmentation ----------------------------------------------------------------------------------------------------


def pixel_counts(truth: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> tuple[int, int, int]:
    """True positive, false positive and false negative pixels of two masks (H, W)."""
    both = int(np.count_nonzero(truth & predicted))
    return both, int(np.count_nonzero(predicted)) - both, int(np.count_nonzero(truth)) - both


def overlap(tp: int, fp: int, fn: int) -> dict[str, float]:
    """PPV, sensitivity, Dice and IoU from pixel counts of one image, or summed over images.

    All are 1 when truth and prediction are empty, and 0 when exactly one of them is.
    """
    if tp + fp + fn == 0:
        return dict.fromkeys(("ppv", "sensitivity", "dice", "iou"), 1.0)
    return {
        "ppv": tp / (tp + fp) if tp + fp else 0.0,
        "sensitivity": tp / (tp + fn) if tp + fn else 0.0,
        "dice": 2 * tp / (2 * tp + fp + fn),
        "iou": tp / (tp + fp + fn),
    }


def surface(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mask (H, W) minus its erosion by the 4-neighbourhood; outside the image counts as background."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def surface_distances(
    truth: NDArray[np.bool_], predicted: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Euclidean distances from each surface pixel of the prediction to the truth's surface, and the reverse.

    Both masks (H, W) must be non-empty.
    """
    from scipy.ndimage import distance_transform_edt

    box = _bounding_box(truth | predicted)
    # Beyond the box that holds both surfaces nothing can be nearest.
    true_surface, predicted_surface = surface(truth)[box], surface(predicted)[box]
    return (
        distance_transform_edt(~true_surface)[predicted_surface],
        distance_transform_edt(~predicted_surface)[true_surface],
    )


def hausdorff(truth: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> tuple[float, float, bool]:
    """Symmetric Hausdorff distance of the surfaces, its 95th percentile, and whether the value is a penalty.

    HD is the larger of the two directed maxima; HD95 the 95th percentile of both lists of distances joined (MedPy's
    definition). Both are 0 when truth and prediction are empty, and the image's diagonal, as a penalty, when exactly
    one is.
    """
    if not truth.any() and not predicted.any():
        return 0.0, 0.0, False
    if not truth.any() or not predicted.any():
        diagonal = math.hypot(*truth.shape)
        return diagonal, diagonal, True
    joined = np.concatenate(surface_distances(truth, predicted))
    return float(joined.max()), float(np.percentile(joined, 95)), False


def resize_nearest(mask: NDArray[np.bool_], height: int, width: int) -> NDArray[np.bool_]:
    """Mask (H, W) sampled at the pixel centres of a (height, width) grid."""
    rows = (np.arange(height) + 0.5) * mask.shape[0] / height
    columns = (np.arange(width) + 0.5) * mask.shape[1] / width
    return mask[np.ix_(rows.astype(np.intp), columns.astype(np.intp))]


def segmentation_scores(truth: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> dict[str, float | bool]:
    """Metrics of one image from masks (H, W) at its own size.

    Keys: `tp`, `fp`, `fn` (pixels), `ppv`, `sensitivity`, `dice`, `iou`; `hausdorff` and `hd95` with both masks resized
    to 256x256, `hausdorff_native` at the image's own size; `hd_penalised` where `hausdorff` is the diagonal of that
    square because exactly one of the resized masks is empty.
    """
    tp, fp, fn = pixel_counts(truth, predicted)
    resized = (resize_nearest(mask, DISTANCE_SIDE, DISTANCE_SIDE) for mask in (truth, predicted))
    distance, distance_95, penalised = hausdorff(*resized)
    native, _, _ = hausdorff(truth, predicted)
    return {
        "tp": tp,
        "fp": fp,
        "fn": fn,
        **overlap(tp, fp, fn),
        "hausdorff": distance,
        "hd95": distance_95,
        "hausdorff_native": native,
        "hd_penalised": penalised,
    }


def _bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


# ---- classification --------------------------------------------------------------------------------------------------
