"""Recipes of views, and what was drawn for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from anaus_bench.corpus.randaugment import Operations


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
        frame: Which of its item's images it is cut from.
        square: Cut the largest square at a random place, whatever area and ratio.
        gamma: Half-range of the exponent of intensities around 1; 0 = none.
        translate: Largest shift per axis as a share of the side, with reflected borders.
        operations: Rounds of RandAugment, after the blur and solarisation.
        cutout: Side of a gray square at a random place as a share of the view's; it may reach over the border.
        overlap: Least share of its crop that the first view's must cover, else it is drawn again, ten times in all.

    Label maps follow the crop and the flip only, so the last three are for objectives without masks.
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
    frame: int = 0
    square: bool = False
    gamma: float = 0.0
    translate: float = 0.0
    operations: int = 0
    cutout: float = 0.0
    overlap: float = 0.0


@dataclass(frozen=True)
class Crop:
    """Where a view was cut, on the CPU.

    Attributes:
        box: (B, 4) float32 whole numbers (top, left, height, width) in packed source pixels, un-flipped.
        flip: (B,) bool, whether the cut was mirrored left to right.
    """

    box: Tensor
    flip: Tensor

    def part(self, rows: slice) -> Crop:
        """Those of some rows."""
        return Crop(self.box[rows], self.flip[rows])


@dataclass(frozen=True)
class Photometry:
    """One draw of photometric parameters, each (B,) on the CPU, identity where not applied.

    Attributes:
        brightness, contrast: Factors (1 = none).
        contrast_first: Bool, the random order of the two.
        sigma: Standard deviation of the blur in pixels of the view (0 = none).
        solarise: Bool.
        gamma: Exponents, or None.
        shift: (B, 2) int64 pixels down and right, or None.
        operations: RandAugment, or None.
        hole: (B, 4) int64 (top, left, bottom, right) of the cutout, or None.
    """

    brightness: Tensor
    contrast: Tensor
    contrast_first: Tensor
    sigma: Tensor
    solarise: Tensor
    gamma: Tensor | None = None
    shift: Tensor | None = None
    operations: Operations | None = None
    hole: Tensor | None = None

    def part(self, rows: slice) -> Photometry:
        """Those of some rows."""
        values: dict[str, Any] = {name: value[rows] for name, value in vars(self).items() if isinstance(value, Tensor)}
        return Photometry(**values, operations=self.operations and self.operations.part(rows))
