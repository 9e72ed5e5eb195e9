"""What FixMatch does to pixels: the shift of all views; RandAugment and the gray square (cutout) of the strong ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from anaus_bench.corpus.view import change_some

CUTOUT_GRAY = 127 / 255
APPLIED = 0.5
ROTATION = 30.0  # degrees
SHEAR = 0.3
TRANSLATION = 0.3  # of the side

Change = Callable[[Tensor, Tensor, Tensor], Tensor]  # of images, by a magnitude and a direction (n, 1, 1, 1)


@dataclass(frozen=True)
class Translate:
    """Shifts by at most a share of the side per axis; what comes in is reflected at the border."""

    share: float

    def draw(self, count: int, generator: torch.Generator, size: int) -> Tensor:
        """(count, 2) int64: pixels down and right."""
        reach = round(self.share * size)
        return torch.randint(-reach, reach + 1, (count, 2), generator=generator)

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Gathers rows, then columns."""
        side = images.shape[-1]
        source = (torch.arange(side) - parameters[:, :, None]).abs()  # (B, 2, side)
        source = torch.where(source > side - 1, 2 * (side - 1) - source, source).to(images.device, non_blocking=True)
        rows = source[:, 0, :, None].expand(-1, -1, side)[:, None]
        columns = source[:, 1, None].expand(-1, side, -1)[:, None]
        return images.gather(2, rows).gather(3, columns)


@dataclass(frozen=True)
class RandAugment:
    """RandAugment (Cubuk et al. 2020, arXiv:1909.13719) in the form that FixMatch uses (App. D), on gray images.

    Per round and image one operation of `POOL` at a random magnitude, applied with probability 1/2. The pool is
    FixMatch's without the colour operation, which changes nothing on gray images.
    """

    rounds: int

    def draw(self, count: int, generator: torch.Generator, size: int) -> Tensor:
        """(count, rounds, 3) float32: place in `POOL`, magnitude in [0, 1), and -1 or 1, the geometric direction."""
        place, applied, magnitude, direction = torch.rand(4, self.rounds, count, generator=generator)
        place = (place * len(POOL)).floor().clamp(max=len(POOL) - 1)
        table = [torch.where(applied < APPLIED, place, 0.0), magnitude, torch.where(direction < 0.5, -1.0, 1.0)]
        return torch.stack(table).permute(2, 1, 0)

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """All rounds; place 0 leaves an image as it is."""
        for table in parameters.unbind(dim=1):  # (B, 3)
            for place, change in enumerate(POOL[1:], start=1):
                images = change_some(images, table[:, 0] == place, table[:, 1:], partial(_operate, change))
        return images


@dataclass(frozen=True)
class CutOut:
    """Puts a gray square at a random place; its side is a share of the view's, and it may reach over the border."""

    share: float

    def draw(self, count: int, generator: torch.Generator, size: int) -> Tensor:
        """(count, 4) int64: top, left, bottom, right."""
        side = round(self.share * size)
        start = torch.randint(0, size, (count, 2), generator=generator) - side // 2
        return torch.cat([start, start + side], dim=1)

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Fills the squares."""
        place = torch.arange(images.shape[-1])
        inside = (place >= parameters[:, :2, None]) & (place < parameters[:, 2:, None])  # (B, 2, H): rows, columns
        inside = inside.to(images.device, non_blocking=True)
        return images.masked_fill((inside[:, 0, :, None] & inside[:, 1, None])[:, None], CUTOUT_GRAY)


def _operate(change: Change, images: Tensor, table: Tensor) -> Tensor:
    amount, sign = table.T.to(images.device, non_blocking=True)[..., None, None, None]  # each (n, 1, 1, 1)
    return change(images, amount, sign).clamp(0, 1)


def _identity(images: Tensor, amount: Tensor, sign: Tensor) -> Tensor:
    return images


def _autocontrast(images: Tensor, amount: Tensor, sign: Tensor) -> Tensor:
    low, high = images.amin(dim=(1, 2, 3), keepdim=True), images.amax(dim=(1, 2, 3), keepdim=True)
    return torch.where(high > low, (images - low) / (high - low).clamp(min=1e-6), images)


def _equalise(images: Tensor, amount: Tensor, sign: Tensor) -> Tensor:
    """Histogram equalisation over 256 levels, as PIL's."""
    levels = (images.flatten(1) * 255).round().long()
    histogram = levels.new_zeros(len(images), 256).scatter_add_(1, levels, torch.ones_like(levels))
    last = histogram.gather(1, levels.amax(dim=1, keepdim=True))  # count of the brightest level that occurs
    step = (levels.shape[1] - last) // 255
    below = histogram.cumsum(dim=1) - histogram
    table = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    equalised = table.gather(1, levels).view_as(images) / 255
    return torch.where((step > 0)[..., None, None], equalised, images)


def _brightness(images: Tensor, amount: Tensor, sign: Tensor) -> Tensor:
    return _factor(amount) * images


def _contrast(images: Tensor, amount: Tensor, sign: Tensor) -> Tensor:
    return torch.lerp(images.mean(dim=(1, 2, 3), keepdim=True).expand_as(images), images, _factor(amount))


def _sharpness(images: Tensor, amount: Tensor, sign: Tensor) -> Tensor:
    """A blend with PIL's smoothed image, whose border stays as it is."""
    kernel = images.new_tensor([[1.0, 1, 1], [1, 5, 1], [1, 1, 1]])[None, None] / 13
    with torch.autocast(images.device.type, enabled=False):
        smooth = images.clone()
        smooth[..., 1:-1, 1:-1] = F.conv2d(images, kernel)
    return torch.lerp(smooth, images, _factor(amount))


def _posterise(images: Tensor, amount: Tensor, sign: Tensor) -> Tensor:
    """Keeps 4 to 7 of the 8 bits."""
    step = 2 ** (4 - (4 * amount).floor())
    return ((images * 255).round() / step).floor() * step / 255


def _solarise(images: Tensor, amount: Tensor, sign: Tensor) -> Tensor:
    """Inverts intensities at or above 1 - amount."""
    return torch.where(images >= 1 - amount, 1 - images, images)


def _rotate(images: Tensor, amount: Tensor, sign: Tensor) -> Tensor:
    angle = (sign * amount * math.radians(ROTATION)).flatten()
    cosine, sine = angle.cos(), angle.sin()
    zero = torch.zeros_like(angle)
    return _affine(images, [[cosine, -sine, zero], [sine, cosine, zero]])


def _shear_x(images: Tensor, amount: Tensor, sign: Tensor) -> Tensor:
    slope = (sign * amount * SHEAR).flatten()
    zero, one = torch.zeros_like(slope), torch.ones_like(slope)
    return _affine(images, [[one, slope, zero], [zero, one, zero]])


def _shear_y(images: Tensor, amount: Tensor, sign: Tensor) -> Tensor:
    slope = (sign * amount * SHEAR).flatten()
    zero, one = torch.zeros_like(slope), torch.ones_like(slope)
    return _affine(images, [[one, zero, zero], [slope, one, zero]])


def _translate_x(images: Tensor, amount: Tensor, sign: Tensor) -> Tensor:
    shift = 2 * (sign * amount * TRANSLATION).flatten()
    zero, one = torch.zeros_like(shift), torch.ones_like(shift)
    return _affine(images, [[one, zero, shift], [zero, one, zero]])


def _translate_y(images: Tensor, amount: Tensor, sign: Tensor) -> Tensor:
    shift = 2 * (sign * amount * TRANSLATION).flatten()
    zero, one = torch.zeros_like(shift), torch.ones_like(shift)
    return _affine(images, [[one, zero, zero], [zero, one, shift]])


def _factor(amount: Tensor) -> Tensor:
    """FixMatch's range of factors, 0.05 to 0.95."""
    return 0.05 + 0.9 * amount


def _affine(images: Tensor, rows: list[list[Tensor]]) -> Tensor:
    """Resamples at the points that the matrix (two rows, in units of half the side) maps to; black outside."""
    matrix = torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)  # (n, 2, 3)
    with torch.autocast(images.device.type, enabled=False):
        grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


POOL: tuple[Change, ...] = (
    _identity,
    _autocontrast,
    _equalise,
    _brightness,
    _contrast,
    _sharpness,
    _posterise,
    _solarise,
    _rotate,
    _shear_x,
    _shear_y,
    _translate_x,
    _translate_y,
)
