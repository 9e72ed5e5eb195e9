"""Resampling: bilinear tables shared by all arrays of one grid, and scan conversion from beams to pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Scalar = TypeVar("Scalar", bound=np.generic)


class Resampling:
    """Reads arrays of one shape at given positions; indices and weights are computed once.

    Args:
        rows, columns: Positions in samples, of any common shape; they are clipped to the array.
        shape: (rows, columns) of the arrays that will be read.
    """

    def __init__(self, rows: Array, columns: Array, shape: tuple[int, int]) -> None:
        rows = np.clip(rows, 0, shape[0] - 1.001).astype(np.float32)
        columns = np.clip(columns, 0, shape[1] - 1.001).astype(np.float32)
        top, left = rows.astype(np.intp), columns.astype(np.intp)
        self._corner = top * shape[1] + left
        self._below, self._right = rows - top, columns - left
        self._width = shape[1]
        self._nearest = (rows + 0.5).astype(np.intp) * shape[1] + (columns + 0.5).astype(np.intp)

    def linear(self, array: Array) -> Array:
        """Bilinear values, float32, of the positions' shape."""
        flat = array.reshape(-1)
        upper_left, upper_right = flat.take(self._corner), flat.take(self._corner + 1)
        lower_left, lower_right = flat.take(self._corner + self._width), flat.take(self._corner + self._width + 1)
        upper = upper_left + (upper_right - upper_left) * self._right
        lower = lower_left + (lower_right - lower_left) * self._right
        return np.asarray(upper + (lower - upper) * self._below, dtype=np.float32)

    def nearest(self, array: NDArray[Scalar]) -> NDArray[Scalar]:
        """Values of the nearest samples, of the positions' shape."""
        return array.reshape(-1).take(self._nearest)


@dataclass(frozen=True)
class Sheet:
    """A piece of tissue, larger than the beam grid so that it can move under the probe.

    Depth `z` runs from 0 at the probe to 1, `x` across from -0.5 to 0.5; both go on beyond the grid.

    Attributes:
        grid: Samples and lines of the beams.
        margin: Rows and columns on each side beyond the grid.
    """

    grid: tuple[int, int]
    margin: tuple[int, int]

    @classmethod
    def around(cls, grid: tuple[int, int], down: float, across: float) -> Sheet:
        """With margins in shares of the grid."""
        return cls(grid, (round(down * grid[0]), round(across * grid[1])))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.grid[0] + 2 * self.margin[0], self.grid[1] + 2 * self.margin[1]

    @property
    def z(self) -> Array:
        """(rows, 1) depth of each row."""
        rows = np.arange(self.shape[0]) - self.margin[0] + 0.5
        return (rows / self.grid[0]).astype(np.float32)[:, None]

    @property
    def x(self) -> Array:
        """(columns,) position across of each column."""
        columns = np.arange(self.shape[1]) - self.margin[1] + 0.5
        return (columns / self.grid[1] - 0.5).astype(np.float32)

    def positions(self, down: Array | float, across: Array | float) -> tuple[Array, Array]:
        """Rows and columns of the sheet, each (samples, lines) float32, seen after shifts in shares of the grid."""
        rows = np.arange(self.grid[0], dtype=np.float32)[:, None] + np.float32(self.margin[0])
        columns = np.arange(self.grid[1], dtype=np.float32) + np.float32(self.margin[1])
        rows = rows + np.float32(self.grid[0]) * np.asarray(down, dtype=np.float32)
        columns = columns + np.float32(self.grid[1]) * np.asarray(across, dtype=np.float32)
        return np.broadcast_to(rows, self.grid), np.broadcast_to(columns, self.grid)

    def beams(self) -> tuple[Array, Array]:
        """Depth (samples, 1) and position across (lines,) of the beam grid."""
        return self.z[self.margin[0] : self.margin[0] + self.grid[0]], self.x[self.margin[1] :][: self.grid[1]]


@dataclass(frozen=True)
class Geometry:
    """Where the beams of a probe lie.

    Attributes:
        angle: Angle between the outermost beams in degrees; 0 for the parallel beams of a linear probe.
        radius: Distance from the beams' apex to the probe's surface, in units of the imaging depth; 0 for a sector.
    """

    angle: float = 0.0
    radius: float = 0.0

    @property
    def extent(self) -> tuple[float, float]:
        """Height and width, in imaging depths, of the smallest rectangle that holds the beams."""
        if self.angle == 0:
            return 1.0, 1.0
        half = math.radians(self.angle) / 2
        reach = self.radius + 1
        return reach - self.radius * math.cos(half), 2 * reach * math.sin(half)

    def pixel(self, shape: tuple[int, int]) -> tuple[float, float]:
        """Height and width, in imaging depths, of a pixel of a picture of `shape` (rows, columns).

        Parallel beams fill the picture; others keep their proportions.
        """
        height, width = self.extent
        if self.angle == 0:
            return height / shape[0], width / shape[1]
        side = max(height / shape[0], width / shape[1])
        return side, side


def linear() -> Geometry:
    """Parallel beams that fill the picture."""
    return Geometry()


def convex(angle: float, radius: float) -> Geometry:
    """Beams that leave a curved surface; a large radius gives the trapezoid of a linear probe's virtual convex mode."""
    return Geometry(angle, radius)


def sector(angle: float) -> Geometry:
    """Beams that leave one point, as of a phased array."""
    return Geometry(angle, 0.0)


class ScanConversion:
    """From the beam grid (samples, lines) to a picture (rows, columns); outside the beams everything is 0."""

    def __init__(self, geometry: Geometry, grid: tuple[int, int], shape: tuple[int, int]) -> None:
        depth, lateral = _beam_coordinates(geometry, shape)
        self.inside = (depth >= 0) & (depth <= 1) & (np.abs(lateral) <= 0.5)
        self._resampling = Resampling(
            depth[self.inside] * grid[0] - 0.5, (lateral[self.inside] + 0.5) * grid[1] - 0.5, grid
        )

    def picture(self, grey: Array) -> NDArray[np.uint8]:
        """(rows, columns) uint8 of grey levels (samples, lines) in [0, 255]."""
        picture = np.zeros(self.inside.shape, dtype=np.uint8)
        picture[self.inside] = (self._resampling.linear(grey) + 0.5).astype(np.uint8)
        return picture

    def label_map(self, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(rows, columns) uint8 ids of the nearest samples of `labels` (samples, lines)."""
        picture = np.zeros(self.inside.shape, dtype=np.uint8)
        picture[self.inside] = self._resampling.nearest(labels)
        return picture


@lru_cache(maxsize=24)
def scan_conversion(geometry: Geometry, grid: tuple[int, int], shape: tuple[int, int]) -> ScanConversion:
    """The conversion of a geometry, computed once."""
    return ScanConversion(geometry, grid, shape)


def _beam_coordinates(geometry: Geometry, shape: tuple[int, int]) -> tuple[Array, Array]:
    """Of each pixel centre: depth (0 at the probe, 1 at the bottom) and position across the beams (-0.5 to 0.5)."""
    height, width = geometry.pixel(shape)
    down, across = np.meshgrid(
        (np.arange(shape[0]) + 0.5) * height, (np.arange(shape[1]) + 0.5 - shape[1] / 2) * width, indexing="ij"
    )
    if geometry.angle == 0:
        return down.astype(np.float32), across.astype(np.float32)
    half = math.radians(geometry.angle) / 2
    down += geometry.radius * math.cos(half)
    depth = np.hypot(down, across) - geometry.radius
    return depth.astype(np.float32), (np.arctan2(across, down) / (2 * half)).astype(np.float32)
