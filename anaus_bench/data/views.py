"""Batched views on the device: all augmentation of a step as a function of (seed, step).

A step draws one parameter table on the CPU (so that the draw is the same on every device), then crops, flips, jitters,
blurs, solarises and normalises the whole batch at once. Label maps follow the same crop and flip, by nearest neighbour.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class View:
    """The recipe of one view.

    Attributes:
        size: Side of the view in pixels.
        crop_area: Range of the crop's share of the valid area.
        crop_ratio: Range of width / height, drawn log-uniformly.
        interpolation: `bicubic` or `bilinear`, antialiased; label maps always nearest.
        flip: Probability of a horizontal flip.
        jitter: Probability of the colour jitter.
        brightness, contrast, saturation, hue: Half-ranges of its factors, as in torchvision's `ColorJitter`.
        grayscale: Probability of grayscale. On gray images saturation, hue and grayscale change nothing.
        blur: Probability of a Gaussian blur with `blur_sigma` (pixels at 224; scaled with `size`).
        solarise: Probability of inverting intensities at or above 128/255.
        mean, std: Normalisation of the three channels.
    """

    size: int = 224
    crop_area: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bicubic"
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grayscale: float = 0.2
    blur: float = 1.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarise: float = 0.0
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Crop:
    """Where a view was cut: boxes (B, 4) float32 (top, left, height, width) in packed source pixels, un-flipped; flip (B,) bool."""

    box: Tensor
    flip: Tensor


@dataclass(frozen=True)
class Photometry:
    """One draw of photometric parameters, each (B,), identity where not applied.

    Attributes:
        brightness, contrast: Factors (1 = none).
        contrast_first: Bool, the random order of the two.
        sigma: Standard deviation of the blur in pixels of the view (0 = none).
        solarise: Bool.
    """

    brightness: Tensor
    contrast: Tensor
    contrast_first: Tensor
    sigma: Tensor
    solarise: Tensor


@dataclass(frozen=True)
class Batch:
    """What an objective is given for one step.

    Attributes:
        views: V tensors (B, 3, size, size) float32, normalised.
        label_maps: V tensors (B, size, size) uint8, or empty without masks.
        crops: V crops.
        photometry: V photometric draws.
        recipes: V recipes.
        source: (B, 1, S, S) uint8 packed images, so that an objective can cut its own crop.
        source_masks: (B, S, S) uint8 packed label maps, or None.
        indices: (B,) int64 positions in the corpus.
        labels: (B,) int64 class labels, -1 = none.
        step: Number of the step, from 0.
        seed: Seed of this step; draw further randomness from a generator seeded with it.
    """

    views: tuple[Tensor, ...]
    label_maps: tuple[Tensor, ...]
    crops: tuple[Crop, ...]
    photometry: tuple[Photometry, ...]
    recipes: tuple[View, ...]
    source: Tensor
    source_masks: Tensor | None
    indices: Tensor
    labels: Tensor
    step: int
    seed: int

