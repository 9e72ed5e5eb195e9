"""Recipes of views: where they are cut, and the random operations on their pixels.

Operations are drawn on the CPU and applied to a whole batch on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

BLUR_RADIUS_AT_224 = 11  # kernel of 23 pixels
SOLARISE_THRESHOLD = 128 / 255


class Operation(Protocol):
    """A random change of the pixels of a view; a frozen dataclass of its settings.

    Label maps follow the crop and the flip only, so what moves pixels is for objectives without masks.
    """

    def draw(self, count: int, generator: torch.Generator, size: int) -> Tensor:
        """Parameters (count, ...) on the CPU of views of `size` pixels, a row per image."""

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Images (B, 1, size, size) float32 in [0, 1] after it, each by its row; as many come back, in [0, 1]."""


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


@dataclass(frozen=True)
class Jitter:
    """Brightness and contrast in random order, each clipped, as in torchvision's `ColorJitter`.

    Its saturation and hue, and grayscale, change nothing on gray images: recipes are without them.

    Attributes:
        probability: Of both.
        brightness, contrast: Half-ranges of the factors around 1.
    """

    probability: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4

    def draw(self, count: int, generator: torch.Generator, size: int) -> Tensor:
        """(count, 3) float32: factors of brightness and contrast (1 = none), and 1 where contrast comes first."""
        draws = torch.rand(4, count, generator=generator)
        jittered = draws[0] < self.probability

        def factor(share: Tensor, half_range: float) -> Tensor:
            low = max(0.0, 1 - half_range)
            return torch.where(jittered, low + share * (1 + half_range - low), 1.0)

        factors = [factor(draws[1], self.brightness), factor(draws[2], self.contrast)]
        return torch.stack([*factors, (draws[3] < 0.5).float()], dim=1)

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Blends with black (brightness) and with the image's mean (contrast)."""
        brightness, contrast, order = parameters.T.to(images.device, non_blocking=True)[..., None, None, None]
        contrast_first = order > 0
        for is_contrast in (contrast_first, ~contrast_first):
            factor = torch.where(is_contrast, contrast, brightness)
            anchor = torch.where(is_contrast, images.mean(dim=(1, 2, 3), keepdim=True), 0.0)
            images = (factor * images).add_((1 - factor) * anchor).clamp_(0, 1)
        return images


@dataclass(frozen=True)
class Blur:
    """Gaussian blur with reflected borders.

    Attributes:
        probability: Of a blur.
        sigma: Range of its standard deviation in pixels at 224; it is scaled with the view's size.
    """

    probability: float = 1.0
    sigma: tuple[float, float] = (0.1, 2.0)

    def draw(self, count: int, generator: torch.Generator, size: int) -> Tensor:
        """(count,) float32: standard deviations in pixels of the view, 0 = none."""
        draws = torch.rand(2, count, generator=generator)
        low, high = self.sigma
        return torch.where(draws[0] < self.probability, (low + draws[1] * (high - low)) * size / 224, 0.0)

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Blurs the images whose standard deviation is not 0."""
        return change_some(images, parameters > 0, parameters, _blur)


@dataclass(frozen=True)
class Solarise:
    """Inverts intensities at or above 128/255 with some probability."""

    probability: float

    def draw(self, count: int, generator: torch.Generator, size: int) -> Tensor:
        """(count,) bool."""
        return torch.rand(count, generator=generator) < self.probability

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Inverts what is bright in the images that are to be solarised."""
        return change_some(images, parameters, parameters, _solarise)


def change_some(
    images: Tensor, chosen: Tensor, parameters: Tensor, change: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Images of which the `chosen`, (B,) bool on the CPU, are changed, each by its row of `parameters`."""
    numbers = chosen.nonzero().flatten()
    if len(numbers) == 0:
        return images
    place = numbers.to(images.device, non_blocking=True)
    return images.index_copy(0, place, change(images[place], parameters[numbers]))


def _blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Cut at a radius of 11 pixels per 224; one row pass, one column pass."""
    count, _, side, _ = images.shape
    radius = max(1, round(BLUR_RADIUS_AT_224 * side / 224))
    taps = torch.arange(-radius, radius + 1)
    kernel = torch.exp(-0.5 * (taps / sigma[:, None]).square())
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).to(images.device, non_blocking=True)[:, None, None]
    padded = F.pad(images, [radius] * 4, mode="reflect").view(1, count, side + 2 * radius, -1)
    with torch.autocast(images.device.type, enabled=False):
        rows = F.conv2d(padded, kernel, groups=count)  # an image is a channel, with a kernel of its own
        return F.conv2d(rows, kernel.transpose(2, 3), groups=count).view(images.shape)


def _solarise(images: Tensor, _: Tensor) -> Tensor:
    return torch.where(images >= SOLARISE_THRESHOLD, 1 - images, images)
