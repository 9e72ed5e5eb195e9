"""Batched views on the device: all augmentation of a step as a function of (seed, step).

A step draws one parameter table on the CPU (so that the draw is the same on every device), then crops, flips, changes
and normalises the whole batch at once. Label maps follow the same crop and flip, by nearest neighbour.

The images are gray: one channel is computed and `normalise` makes three of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anaus_bench.corpus.draw import draw_crops, draw_photometry, redraw
from anaus_bench.corpus.pixels import normalise, photometric, resample, resample_labels
from anaus_bench.corpus.view import Crop, View
from anaus_bench.seeds import stream


@dataclass(frozen=True)
class Batch:
    """What an objective is given for one step.

    Attributes:
        views: V tensors (B, 3, size, size) float32, normalised.
        label_maps: V tensors (B, size, size) uint8, or empty without masks.
        crops: V crops, on the CPU.
        photometry: V draws, the parameters (B, ...) of each of a view's operations, on the CPU.
        recipes: V recipes.
        source: (B, 1, S, S) uint8 packed images of frame 0, so that an objective can cut its own crop.
        source_masks: (B, S, S) uint8 packed label maps of frame 0, or None.
        indices: (B, M) int64 positions in the corpus of each item's M images.
        labels: (B,) int64 class label of frame 0, -1 = none.
        weights: (B,) float32 number of each item from the sampler, such as its weight, or None.
        step: Number of the step, from 0.
        seed: Seed of this step for whatever an objective draws; the views were drawn from another stream.
        boxes: (B, 4) float32 valid boxes (top, left, height, width) of `source` in pixels, on the CPU; around it is
            letterbox.
    """

    views: tuple[Tensor, ...]
    label_maps: tuple[Tensor, ...]
    crops: tuple[Crop, ...]
    photometry: tuple[tuple[Tensor, ...], ...]
    recipes: tuple[View, ...]
    source: Tensor
    source_masks: Tensor | None
    indices: Tensor
    labels: Tensor
    weights: Tensor | None
    step: int
    seed: int
    boxes: Tensor


def make_batch(
    images: Tensor | NDArray[np.uint8],
    masks: Tensor | NDArray[np.uint8] | None,
    boxes: Tensor | NDArray[np.float32],
    labels: Tensor | NDArray[np.int64],
    indices: Tensor,
    recipes: Sequence[View],
    seed: int,
    step: int,
    device: torch.device | None = None,
    weights: Tensor | None = None,
    part: slice = slice(None),
) -> Batch:
    """The batch of one step, a function of `indices`, `seed` and `step`; of it, the items `part`.

    Args:
        images: (N, S, S) uint8, a tensor on any device or a memory map.
        masks: (N, S, S) uint8 label maps aligned with `images`, or None.
        boxes: (N, 4) valid boxes (top, left, height, width) in packed pixels, on the CPU.
        labels: (N,) int64 class labels, -1 = none.
        indices: (B, M) int64 rows to take, M per item, or (B,), on the CPU.
        recipes: One per view.
        seed: Seed of the run.
        step: Number of the step, from 0.
        device: Where the batch goes; by default where `images` is.
        weights: (B,) float32 weight of each item, or None.
        part: Which of the B items are made; they are those that the whole batch would have in these places.
    """
    if device is None:
        device = images.device if isinstance(images, Tensor) else torch.device("cpu")
    generator = torch.Generator().manual_seed(stream(seed, "views", step))
    indices = indices.reshape(len(indices), -1)
    cpu = torch.device("cpu")
    frames = {number: indices[:, number] for number in {0, *(recipe.frame for recipe in recipes)}}
    valid = {number: _rows(boxes, rows, cpu).float() for number, rows in frames.items()}
    crops = [draw_crops(recipe, valid[recipe.frame], generator) for recipe in recipes]
    for number, recipe in enumerate(recipes):
        if recipe.overlap > 0:
            crops[number] = redraw(recipe, valid[recipe.frame], crops[number], crops[0], generator)
    # All items are drawn, and these are taken, so that a part is that of the whole batch.
    photometry = [draw_photometry(recipe, len(indices), generator, part) for recipe in recipes]
    crops = [crop.part(part) for crop in crops]
    indices, frames = indices[part], {number: rows[part] for number, rows in frames.items()}

    packed = {number: _rows(images, rows, device)[:, None] for number, rows in frames.items()}  # (B, 1, S, S)
    source = {number: rows.float().div_(255) for number, rows in packed.items()}
    maps = {} if masks is None else {number: _rows(masks, rows, device) for number, rows in frames.items()}
    views = tuple(
        normalise(
            photometric(resample(source[recipe.frame], crop, recipe.size, recipe.interpolation), recipe, drawn), recipe
        )
        for recipe, crop, drawn in zip(recipes, crops, photometry, strict=True)
    )
    label_maps = [
        resample_labels(maps[recipe.frame], crop, recipe.size)
        for recipe, crop in zip(recipes, crops, strict=True)
        if maps
    ]
    return Batch(
        views=views,
        label_maps=tuple(label_maps),
        crops=tuple(crops),
        photometry=tuple(photometry),
        recipes=tuple(recipes),
        source=packed[0],
        source_masks=maps.get(0),
        indices=indices,
        labels=_rows(labels, indices[:, 0], device),
        weights=None if weights is None else weights[part].to(device),
        step=step,
        seed=stream(seed, "loss", step),
        boxes=valid[0][part],
    )


def _rows(array: Tensor | NDArray[Any], indices: Tensor, device: torch.device) -> Tensor:
    if isinstance(array, Tensor):
        return array[indices.to(array.device)].to(device, non_blocking=True)
    rows = torch.from_numpy(np.asarray(array[indices.numpy()]))
    return rows.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else rows.to(device)
