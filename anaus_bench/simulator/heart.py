"""Heart from the apex, two or four chambers, over its cycle.

The sheet holds the heart at end-diastole in beam coordinates. A frame maps each beam sample back to end-diastole: along
the axis of the left ventricle (the base moves towards the apex) and across it (the cavity narrows, the wall thickens).
Lengths are shares of the imaging depth; `along` runs from 0 at the cavity's apex to 1 at the mitral plane.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from anaus_bench.simulator.geometry import Array, Resampling, Sheet
from anaus_bench.simulator.physics import Tissue, smooth_noise
from anaus_bench.simulator.shapes import bump, louder, ridges, step

Kind = Literal["2ch", "4ch", "2ch-infarct", "4ch-infarct"]
KINDS: tuple[Kind, ...] = ("2ch", "4ch", "2ch-infarct", "4ch-infarct")
STRUCTURES: tuple[str, ...] = ("left ventricle", "myocardium", "left atrium")
CAVITY, MYOCARDIUM, ATRIUM = (np.uint8(number) for number in range(1, 4))
WALLS = {"4ch": ("septal", "lateral"), "2ch": ("inferior", "anterior")}  # left and right in the picture
REGIONS = ("apical", "mid", "basal")
BLOOD = np.float32(-52)
WIDEST = 0.6  # `along` where the ventricle is widest
KNOTS = np.linspace(-0.4, 2.4, 1025)  # of the tables over `along`


@dataclass(frozen=True)
class Motion:
    """The beat of a patient.

    Attributes:
        shortening: Share of the ventricle's length lost at end-systole.
        narrowing: Share of its width lost at end-systole where nothing is infarcted.
        thickening: Share by which the wall gains.
        infarct: Region and wall (0 left, 1 right) of an infarct, or None.
        remaining: Share of the motion left there.
    """

    shortening: float
    narrowing: float
    thickening: float
    infarct: tuple[int, int] | None
    remaining: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Motion:
        """An ejection fraction of 35 to 70 % without infarct; which segment of the six would be hit."""
        fraction, shortening = rng.uniform(0.36, 0.7), rng.uniform(0.1, 0.17)
        narrowing = 1 - math.sqrt((1 - fraction) / (1 - shortening))  # volume goes with length times width squared
        segment = int(rng.integers(3)), int(rng.integers(2))
        return cls(shortening, narrowing, rng.uniform(0.2, 0.4), segment, rng.uniform(0, 0.3))

    def share(self, wall: int) -> Array:
        """(knots,) share of the full motion of one wall: fades out beyond apex and base, small in an infarct."""
        along = KNOTS.astype(np.float32)
        share = np.clip((along + np.float32(0.15)) / np.float32(0.3), 0, 1)
        share *= np.clip((np.float32(1.35) - along) / np.float32(0.35), 0, 1)
        if self.infarct is not None and self.infarct[1] == wall:
            middle = (self.infarct[0] + 0.5) / len(REGIONS)
            share *= 1 - np.float32(1 - self.remaining) * bump((along - np.float32(middle)) / np.float32(0.34))
        return np.asarray(share, dtype=np.float32)


@dataclass(frozen=True)
class Ventricle:
    """The left ventricle at end-diastole.

    Attributes:
        apex: Depth and position across of the cavity's apex.
        tilt: Of its axis, in radians.
        length: From apex to mitral plane.
        width: Greatest half width of the cavity.
        wall: Thickness of the myocardium.
    """

    apex: tuple[float, float]
    tilt: float
    length: float
    width: float
    wall: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Ventricle:
        """A ventricle in the middle of the sector."""
        apex = rng.uniform(0.1, 0.17)
        length, tilt = rng.uniform(0.58, 0.68) - apex, rng.uniform(-0.17, 0.17)
        across = rng.uniform(-0.03, 0.03) - 0.3 * length * math.sin(tilt)
        return cls((apex, across), tilt, length, rng.uniform(0.125, 0.172), rng.uniform(0.048, 0.07))

    def cavity(self) -> Array:
        """(knots,) half width of the cavity; beyond the mitral plane it goes on as wide."""
        share = (np.minimum(KNOTS, 1) - WIDEST) / WIDEST
        return np.asarray(self.width * np.sqrt(np.clip(1 - share**2, 0, None)), dtype=np.float32)

    def outer(self) -> Array:
        """(knots,) half width of cavity and wall."""
        share = (np.minimum(KNOTS, 1) - WIDEST) / (WIDEST + self.wall / self.length)
        return np.asarray((self.width + self.wall) * np.sqrt(np.clip(1 - share**2, 0, None)), dtype=np.float32)


class Heart:
    """The heart of one patient in one view.

    Args:
        patient: Fixes the patient: the beat and the ventricle's size.
        section: Fixes what differs between views.
        kind: View, and whether a segment is infarcted.
        grid: Samples and lines of the beam grid.
        angle: Between the outermost beams, in degrees.
        period: Frames of a cycle.
        start: Time of the first end-diastole, in frames.
    """

    structures = STRUCTURES
    brightness = (52.0, 10.0)

    def __init__(
        self,
        patient: np.random.Generator,
        section: np.random.Generator,
        kind: Kind,
        grid: tuple[int, int],
        angle: float,
        period: float,
        start: float = 0.0,
    ) -> None:
        self.view = kind.removesuffix("-infarct")
        self.sheet = Sheet(grid, (0, 0))
        self.period, self.start = period, start
        motion = Motion.draw(patient)
        self.motion = motion if kind.endswith("-infarct") else replace(motion, infarct=None)
        self.ventricle = Ventricle.draw(patient)
        self.angle = math.radians(angle)
        depth, lateral = self.sheet.z, self.sheet.x * np.float32(self.angle)
        self.along, self.across = self._axes(depth * np.cos(lateral), depth * np.sin(lateral))
        self._shares = np.stack([self.motion.share(0), self.motion.share(1)])
        self._rest = _tissue(section, self)

    @property
    def infarct(self) -> str | None:
        """Name of the segment that hardly moves, as "mid septal"."""
        if self.motion.infarct is None:
            return None
        region, wall = self.motion.infarct
        return f"{REGIONS[region]} {WALLS[self.view][wall]}"

    def at(self, time: float) -> tuple[Tissue, Resampling]:
        """What the beams meet at `time` (frames), and where on the sheet of scatterers each beam sample is."""
        place = Resampling(*self.positions(time), self.sheet.shape)
        tissue = self._rest.seen(place)
        return self._with_leaflets(tissue, time), place

    def contraction(self, time: float) -> float:
        """0 at end-diastole, 1 at end-systole, half a cycle later."""
        return math.sin(math.pi * (time - self.start) / self.period) ** 2

    @property
    def ejection_fraction(self) -> float:
        """Share of the volume that is ejected: discs whose diameter is the cavity's width."""
        volumes = []
        for contraction in (0.0, 1.0):
            inner, _ = self.contours(contraction)
            diameter = inner.sum(axis=0)[(KNOTS >= 0) & (KNOTS <= 1)].astype(np.float64)
            volumes.append(float(np.sum(diameter**2)) * self._length(contraction))
        return 1 - volumes[1] / volumes[0]

    def positions(self, time: float) -> tuple[Array, Array]:
        """Rows and columns of the sheet, each (samples, lines) float32, that the beam samples show at `time`."""
        contraction = self.contraction(time)
        along = self._along_at_rest(contraction)
        across = self._across_at_rest(along / np.float32(self.ventricle.length), contraction)
        cosine, sine = np.float32(math.cos(self.ventricle.tilt)), np.float32(math.sin(self.ventricle.tilt))
        down = np.float32(self.ventricle.apex[0]) + along * cosine - across * sine
        right = np.float32(self.ventricle.apex[1]) + along * sine + across * cosine
        samples, lines = self.sheet.grid
        rows = np.sqrt(down * down + right * right) * np.float32(samples) - np.float32(0.5)
        columns = (np.arctan2(right, down) / np.float32(self.angle) + np.float32(0.5)) * np.float32(lines)
        return rows, np.asarray(columns - np.float32(0.5), dtype=np.float32)

    def _axes(self, down: Array, right: Array) -> tuple[Array, Array]:
        """Distances from the apex along the ventricle's axis and across it, to the right."""
        cosine, sine = np.float32(math.cos(self.ventricle.tilt)), np.float32(math.sin(self.ventricle.tilt))
        down, right = down - np.float32(self.ventricle.apex[0]), right - np.float32(self.ventricle.apex[1])
        return down * cosine + right * sine, right * cosine - down * sine

    @staticmethod
    def knot(along: Array) -> NDArray[np.intp]:
        """Index of the nearest of `KNOTS`."""
        knot = (along - np.float32(KNOTS[0])) * np.float32(1 / (KNOTS[1] - KNOTS[0])) + np.float32(0.5)
        return np.asarray(np.clip(knot, 0, len(KNOTS) - 1), dtype=np.intp)

    def _length(self, contraction: float) -> float:
        return self.ventricle.length * (1 - self.motion.shortening * contraction)

    def _along_at_rest(self, contraction: float) -> Array:
        """Where the samples were along the axis: the ventricle shortens, the atrium behind it lengthens."""
        rest, now = self.ventricle.length, self._length(contraction)
        knots = np.array([-1.0, 0.0, now, now + 0.35, 2.0])
        places = np.array([-1.0, 0.0, rest, now + 0.35, 2.0])
        return np.asarray(np.interp(self.along, knots, places), dtype=np.float32)

    def contours(self, contraction: float) -> tuple[Array, Array]:
        """Half widths of the cavity and of the outer border, each (walls, knots) over `along` at rest."""
        cavity, outer = self.ventricle.cavity(), self.ventricle.outer()
        moved = np.float32(contraction) * self._shares
        inner = cavity * (1 - np.float32(self.motion.narrowing) * moved)
        wall = (outer - cavity) * (1 + np.float32(self.motion.thickening) * moved)
        return np.asarray(inner, dtype=np.float32), np.asarray(inner + wall, dtype=np.float32)

    def _across_at_rest(self, along: Array, contraction: float) -> Array:
        """Where the samples were across the axis: linear in the cavity and in the wall, fading out beyond."""
        (inner, outer), (rest_inner, rest_outer) = self.contours(contraction), self.contours(0.0)
        index = self.knot(along) + len(KNOTS) * (self.across > 0)
        distance = np.abs(self.across)
        cavity_now, outer_now = inner.take(index), outer.take(index)
        cavity_rest, outer_rest = rest_inner.take(index), rest_outer.take(index)
        in_wall = np.clip((distance - cavity_now) / np.maximum(outer_now - cavity_now, np.float32(1e-4)), 0, 1)
        in_cavity = np.minimum(distance / np.maximum(cavity_now, np.float32(1e-4)), 1)
        beyond = np.maximum(distance - outer_now, 0)
        rest = in_cavity * cavity_rest + in_wall * (outer_rest - cavity_rest) + beyond
        rest += (outer_now - outer_rest) * (1 - np.exp(beyond * np.float32(-1 / 0.1))) * (beyond > 0)
        return np.asarray(np.copysign(rest, self.across), dtype=np.float32)

    def _with_leaflets(self, tissue: Tissue, time: float) -> Tissue:
        """`tissue` with the mitral leaflets: closed in systole, wide early in diastole and again before its end."""
        phase = (time - self.start) / self.period % 1
        early, late = bump(np.array([(phase - 0.64) / 0.13, (phase - 0.9) / 0.08], dtype=np.float32))
        opening = float(max(early, 0.7 * late))
        contraction = self.contraction(time)
        base, length = int(np.searchsorted(KNOTS, 1)), self._length(contraction)
        first, last = (round(share * len(tissue.level)) for share in self._valve_depths(length))
        specular = tissue.specular.copy()
        window = np.s_[max(first, 0) : last]
        half = self.contours(contraction)[0][:, base]
        for side, width in zip((-1, 1), half, strict=True):
            angle = (0.25 + 1.0 * opening) * (1 if side > 0 else 1.1)
            reach = 1.05 * float(width)
            # From the annulus towards the middle, turned up into the ventricle as the valve opens.
            tip = length - reach * math.sin(angle), side * (float(width) - reach * math.cos(angle))
            leaflet = _distance(self.along[window], self.across[window], (length, side * float(width)), tip)
            specular[window] = np.maximum(
                specular[window], np.float32(0.13) * np.exp(-((leaflet / np.float32(0.0038)) ** 2))
            )
        return replace(tissue, specular=specular)

    def _valve_depths(self, length: float) -> tuple[float, float]:
        middle = self.ventricle.apex[0] + length * math.cos(self.ventricle.tilt)
        return middle - 0.17, middle + 0.08


def _distance(along: Array, across: Array, start: tuple[float, float], end: tuple[float, float]) -> Array:
    """Distance of each point from a line segment."""
    direction = end[0] - start[0], end[1] - start[1]
    scale = 1 / (direction[0] ** 2 + direction[1] ** 2)
    along, across = along - np.float32(start[0]), across - np.float32(start[1])
    share = np.clip((along * np.float32(direction[0]) + across * np.float32(direction[1])) * np.float32(scale), 0, 1)
    return np.hypot(along - share * np.float32(direction[0]), across - share * np.float32(direction[1]))


@dataclass(frozen=True)
class Chamber:
    """An elliptic chamber: centre (distance along the axis from the apex, distance across), and its half axes."""

    along: float
    across: float
    length: float
    width: float

    def radius(self, along: Array, across: Array) -> Array:
        """Distance from the centre, 1 on the border."""
        down = (along - np.float32(self.along)) / np.float32(self.length)
        right = (across - np.float32(self.across)) / np.float32(self.width)
        return np.asarray(np.hypot(down, right), dtype=np.float32)


def _tissue(rng: np.random.Generator, heart: Heart) -> Tissue:
    """The heart at end-diastole and what lies around it, on the sheet."""
    ventricle, shape = heart.ventricle, heart.sheet.shape
    along, across = heart.along, heart.across
    index = heart.knot(along / np.float32(ventricle.length))
    cavity, outer = ventricle.cavity().take(index), ventricle.outer().take(index)
    above = along < ventricle.length  # the mitral plane
    border = np.asarray(np.abs(across) / np.maximum(outer, np.float32(0.004)), dtype=np.float32)  # 1: outer border
    in_cavity = above & (along > 0) & (np.abs(across) < cavity)
    in_wall = above & (border < 1) & ~in_cavity
    atrium = _atrium(rng, ventricle, 0.0)
    in_atrium = (atrium.radius(along, across) < 1) & ~above
    coarse, patches = smooth_noise(rng, shape, (0.02, 0.03)), smooth_noise(rng, shape, (0.07, 0.08))

    level = np.float32(rng.uniform(-42, -34)) + 3 * coarse + 3 * patches
    specular = np.zeros(shape, dtype=np.float32)
    chambers = [atrium]
    if heart.view == "4ch":
        right = _right_ventricle(rng, ventricle, along, across, outer)
        level = np.where(np.abs(right) < 0.12, np.float32(-27) + 2 * coarse, level)  # its free wall
        level = np.where((right < -0.12) & above, BLOOD, level)
        chambers.append(_atrium(rng, ventricle, -float(ventricle.outer()[-1]) - rng.uniform(0.085, 0.11)))
        tricuspid = np.exp(-(((along - np.float32(ventricle.length + 0.01)) / np.float32(0.005)) ** 2))
        specular += np.float32(0.1) * tricuspid * ((right < 0) & (across < 0)) * np.exp(np.float32(0.5) * coarse)
    for chamber in chambers:
        radius = chamber.radius(along, across)
        wall = (radius < 1.14) & ~above
        level = np.where(wall, np.float32(rng.uniform(-30, -25)) + 2 * coarse + 3 * patches, level)
    for chamber in chambers:
        radius = chamber.radius(along, across)
        level = np.where((radius < 1) & ~above, BLOOD, level)
        specular += np.float32(0.06) * ridges(radius - 1, 1.2, 2) * ~above * np.exp(patches - np.float32(0.5))

    facing = _facing(border, heart)
    muscle = _muscle_level(rng, shape, facing, patches)
    level = np.where(in_wall, muscle, np.where(in_cavity, BLOOD, level))
    level = np.where(in_cavity, louder(level, _papillary(rng, ventricle, along, across)), level)
    pericardium = np.exp(-((((border - 1) * outer - np.float32(0.006)) / np.float32(0.006)) ** 2)) * above
    outside = across > 0 if heart.view == "4ch" else np.ones(shape, dtype=bool)
    level = louder(
        level, np.float32(-15) + 20 * np.log10(pericardium * outside * facing + np.float32(1e-4)) + 2 * patches
    )
    specular += np.float32(0.06) * np.exp(patches) * ridges(np.abs(across) - cavity, 1.2, 2) * above * (along > 0)
    annulus = np.hypot(along - np.float32(ventricle.length), np.abs(across) - cavity) / np.float32(0.013)
    level = louder(level, np.float32(-15) - 4 * np.minimum(annulus, 4) ** 2)
    depth = heart.sheet.z
    haze = np.float32(rng.uniform(-24, -17)) - np.float32(rng.uniform(70, 130)) * depth + 2 * coarse + 2 * patches
    zeros = np.zeros(shape, dtype=np.float32)
    return Tissue(
        labels=np.select([in_cavity, in_wall, in_atrium], [CAVITY, MYOCARDIUM, ATRIUM], np.uint8(0)),
        level=louder(level, haze),
        attenuation=zeros + np.float32(rng.uniform(0, 10)),
        density=zeros + 1,
        specular=specular,
    )


def _atrium(rng: np.random.Generator, ventricle: Ventricle, across: float) -> Chamber:
    """Below the valve plane, which cuts the ellipse above its middle."""
    length, width = rng.uniform(0.11, 0.15), rng.uniform(0.115, 0.145)
    return Chamber(ventricle.length + rng.uniform(0.5, 0.65) * length, across, length, width)


def _right_ventricle(
    rng: np.random.Generator, ventricle: Ventricle, along: Array, across: Array, outer: Array
) -> Array:
    """About -1 inside, 0 at the free wall, positive outside: a crescent on the left of the septum."""
    share = np.clip(along / np.float32(ventricle.length), 0, 1.0)
    start = np.float32(rng.uniform(0.15, 0.3))
    width = np.float32(rng.uniform(0.13, 0.19)) * np.sqrt(np.clip((share - start) / (1 - start), 0, 1))
    beyond = -across - outer
    inside = np.maximum((beyond - width) / np.float32(0.09), -beyond / np.float32(0.002))
    return np.where((share > start) & (along < ventricle.length), np.clip(inside, -1, 1), np.float32(1))


def _facing(border: Array, heart: Heart) -> Array:
    """|cos| of the angle between the beam and the normal of the ventricle's border."""
    along_beam, across_beam = np.gradient(border)
    along_beam = along_beam * np.float32(heart.sheet.grid[0])
    across_beam = across_beam * np.float32(heart.sheet.grid[1]) / (np.float32(heart.angle) * heart.sheet.z)
    steep = np.sqrt(along_beam**2 + across_beam**2) + np.float32(1e-6)
    return np.asarray(np.abs(along_beam) / steep, dtype=np.float32)


def _muscle_level(rng: np.random.Generator, shape: tuple[int, int], facing: Array, patches: Array) -> Array:
    """Fibres, and drop-out where the wall lies along the beam."""
    fibres, gaps = smooth_noise(rng, shape, (0.012, 0.03)), smooth_noise(rng, shape, (0.1, 0.08))
    loss = np.float32(rng.uniform(8, 18)) * (1 - facing) * step(np.float32(0.2) + np.float32(0.9) * gaps)
    return np.asarray(np.float32(rng.uniform(-23, -19)) + 2 * fibres + 3 * patches - loss, dtype=np.float32)


def _papillary(rng: np.random.Generator, ventricle: Ventricle, along: Array, across: Array) -> Array:
    """Level of the papillary muscles, which stand in the cavity on both sides."""
    level = np.full(along.shape, BLOOD, dtype=np.float32)
    for side in (-1, 1):
        size = rng.uniform(0.015, 0.028)
        place = rng.uniform(0.45, 0.62) * ventricle.length, side * rng.uniform(0.72, 0.85) * ventricle.width
        radius = Chamber(*place, 2.2 * size, size).radius(along, across)
        level = np.maximum(level, np.float32(rng.uniform(-34, -27)) - 12 * np.maximum(radius - np.float32(0.7), 0))
    return level
