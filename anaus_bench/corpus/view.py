"""Recipes of views, and where they were cut."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from anaus_bench.corpus.operations import Operation


@dataclass(frozen=True)
class View:
    """The recipe of one view: a crop, a flip, and what is then done to the pixels.

    Attributes:
        size: Side of the view in pixels.
        crop_area: Range of the crop's share of the valid area.
        operations: What is done to the pixels, in this order.
        crop_ratio: Range of width / height, drawn log-uniformly.
        interpolation: `bicubic` or `bilinear`, antialiased; label maps always nearest.
        flip: Probability of a horizontal flip.
        mean, std: Normalisation of the three channels.
        frame: Which of its item's images it is cut from.
        square: Cut the largest square at a random place, whatever area and ratio.
        overlap: Least share of its crop that the first view's must cover, else it is drawn again, ten times in all.
    """

    size: int = 224
    crop_area: tuple[float, float] = (0.08, 1.0)
    operations: tuple[Operation, ...] = ()
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bicubic"
    flip: float = 0.5
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    frame: int = 0
    square: bool = False
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
