"""How segmentation predictions are stored: one JSON file per fold, masks as run lengths at the image's own size.

A mask is COCO's uncompressed RLE, `{"size": [height, width], "counts": [...]}`: lengths of alternating runs of zeros
and ones in column-major order, starting with zeros. `pycocotools.mask.frPyObjects` reads it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anaus_bench.errors import StoreError

FILE_NAME = "predictions.json"


@dataclass(frozen=True)
class Instances:
    """Detections in one image, by falling score.

    Attributes:
        image_id: Sample id.
        height, width: Size of the image in pixels.
        boxes: N boxes (x0, y0, x1, y1) in pixels of the image.
        scores: N scores in [0, 1].
        labels: N class ids from 1.
        masks: N run-length encoded masks, thresholded at 0.5.
    """

    image_id: str
    height: int
    width: int
    boxes: list[list[float]]
    scores: list[float]
    labels: list[int]
    masks: list[dict[str, list[int]]]

    def merged(self, rule: str, threshold: float) -> NDArray[np.bool_]:
        """One mask (height, width): `union` of those with a score >= `threshold`, or `top1`, the best at any score."""
        mask = np.zeros((self.height, self.width), dtype=np.bool_)
        for encoded in self.masks[: self.kept(rule, threshold)]:
            mask |= decode_rle(encoded)
        return mask

    def kept(self, rule: str, threshold: float) -> int:
        """How many instances `merged` takes, counted from the best."""
        if rule == "top1":
            return min(1, len(self.scores))
        return sum(score >= threshold for score in self.scores)


def encode_rle(mask: NDArray[np.bool_]) -> dict[str, list[int]]:
    """Run lengths of a mask (H, W)."""
    flat = mask.ravel(order="F")
    bounds = [0, *(np.flatnonzero(flat[1:] != flat[:-1]) + 1).tolist(), flat.size]
    counts = np.diff(bounds).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[:1].any() else counts}


def decode_rle(encoded: Mapping[str, Sequence[int]]) -> NDArray[np.bool_]:
    """The mask (H, W) of its run lengths."""
    height, width = encoded["size"]
    counts = encoded["counts"]
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(height, width, order="F")


def write_predictions(folder: Path, predictions: Sequence[Instances]) -> None:
    """Writes the predictions of a fold's held-out images."""
    content = {"format": 1, "images": [asdict(instances) for instances in predictions]}
    (folder / FILE_NAME).write_text(json.dumps(content))


def read_predictions(folder: Path) -> dict[str, Instances]:
    """Image id -> its detections.

    Raises:
        StoreError: The file is absent or not of this format.
    """
    path = folder / FILE_NAME
    try:
        images = json.loads(path.read_text())["images"]
        return {item["image_id"]: Instances(**item) for item in images}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{path} holds no predictions ({error}); remove its stage from the store and run it again"
        ) from error


def components(mask: NDArray[np.bool_], min_area: int) -> tuple[NDArray[np.int32], int]:
    """8-connected components of at least `min_area` pixels as ids from 1 (H, W), and how many were dropped."""
    from scipy.ndimage import label

    labels, count = label(mask, structure=np.ones((3, 3)))
    kept = np.bincount(labels.ravel(), minlength=count + 1) >= min_area
    kept[0] = False
    ids = np.where(kept, np.cumsum(kept), 0).astype(np.int32)
    return ids[labels], count - int(kept.sum())


def with_boxes(labels: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The label map and its boxes (N, 4) float32 (x0, y0, x1, y1), where x1 and y1 lie one past the last pixel."""
    from scipy.ndimage import find_objects

    boxes = [(cols.start, rows.start, cols.stop, rows.stop) for rows, cols in find_objects(labels)]
    return labels, np.array(boxes, dtype=np.float32).reshape(-1, 4)
