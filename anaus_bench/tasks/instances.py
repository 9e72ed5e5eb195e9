"""How segmentation predictions are stored: one JSON file per fold, masks as run lengths at the image's own size.

A mask is COCO's uncompressed RLE, `{"size": [height, width], "counts": [...]}`: lengths of alternating runs of zeros
and ones in column-major order, starting with zeros. `pycocotools.mask.frPyObjects` reads it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pydantic
from numpy.typing import NDArray

from anaus_bench.machine.artifacts import damaged, read_json

FILE_NAME = "predictions.json"
MOST_PIXELS = 2**28  # of an image


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

    Raises:
        ValueError: They are not N each, or do not fit the image.
    """

    image_id: str
    height: int
    width: int
    boxes: list[list[float]]
    scores: list[float]
    labels: list[int]
    masks: list[dict[str, list[int]]]

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 1 or self.height * self.width > MOST_PIXELS:
            raise ValueError(f"an image of {self.height} x {self.width} pixels")
        counts = {len(part) for part in (self.boxes, self.scores, self.labels, self.masks)}
        if len(counts) > 1 or any(len(box) != 4 for box in self.boxes):
            raise ValueError(f"boxes, scores, labels and masks of {self.image_id!r} differ in number")
        if not all(0 <= score <= 1 for score in self.scores) or sorted(self.scores, reverse=True) != self.scores:
            raise ValueError(f"scores of {self.image_id!r} must fall from at most 1 to at least 0")
        for mask in self.masks:
            runs = mask.get("counts", [])
            whole = sum(runs) == self.height * self.width and all(run >= 0 for run in runs)
            if mask.get("size") != [self.height, self.width] or not whole:
                raise ValueError(f"a mask of {self.image_id!r} is not of {self.height} x {self.width} pixels")

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
    images = read_json(path, _File).images
    by_image = {instances.image_id: instances for instances in images}
    if len(by_image) < len(images):
        raise damaged(path, f"{len(images)} predictions of {len(by_image)} images")
    return by_image


class _File(pydantic.BaseModel):
    """`predictions.json`."""

    model_config = pydantic.ConfigDict(extra="forbid")

    format: Literal[1]
    images: list[Instances]


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
