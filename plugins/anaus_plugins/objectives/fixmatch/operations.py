"""The shift of FixMatch's views and the gray square of its strong ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CUTOUT_GRAY = 127 / 255


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
