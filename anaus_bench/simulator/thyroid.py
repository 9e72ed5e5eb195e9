"""Thyroid in transverse section: strap muscles, gland with nodules, trachea, carotid arteries, muscles behind.

Drawn once per patient on a sheet; a sweep along the neck changes the section of the lobes, the hand drifts, and the
arteries pulse.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from anaus_bench.simulator.geometry import Array, Resampling, Sheet
from anaus_bench.simulator.lesions import Lesion, outline, ripple, with_lesion
from anaus_bench.simulator.physics import Tissue, smooth_noise
from anaus_bench.simulator.shapes import Oscillation, ridges, step, undulation

Kind = Literal["benign", "malignant", "normal"]
KINDS: tuple[Kind, ...] = ("benign", "malignant", "normal")
GLAND, TRACHEA, CAROTID, FIRST_NODULE = (np.uint8(number) for number in range(1, 5))
MARGIN = 0.08, 0.12  # of the picture, along the beams and across
TWO_NODULES = 0.12  # share of patients with nodules that have two


@dataclass(frozen=True)
class Ellipse:
    """Centre and half axes, as shares of the picture."""

    z: float
    x: float
    height: float
    width: float

    def radius(self, z: Array, x: Array) -> Array:
        """Distance from the centre, 1 on the ellipse."""
        down, across = (
            (z - np.float32(self.z)) / np.float32(self.height),
            (x - np.float32(self.x)) / np.float32(self.width),
        )
        return np.asarray(np.hypot(down, across), dtype=np.float32)


@dataclass(frozen=True)
class Neck:
    """Where the organs of one patient lie in the section.

    Attributes:
        lobes: One or both lobes of the gland.
        isthmus: The bridge in front of the trachea.
        trachea: Its front half is seen.
        carotids: Beside the lobes.
        muscles: Depth at which the strap muscles begin and end, at the middle of the picture.
    """

    lobes: tuple[Ellipse, ...]
    isthmus: Ellipse
    trachea: Ellipse
    carotids: tuple[Ellipse, ...]
    muscles: tuple[float, float]

    @classmethod
    def draw(cls, rng: np.random.Generator, view: str) -> Neck:
        """Both lobes about the trachea in the view "transverse"; in "lobe" one, larger, beside the trachea."""
        start = rng.uniform(0.05, 0.09)
        end = start + rng.uniform(0.07, 0.12)
        depth = end + rng.uniform(0.0, 0.03)
        if view == "transverse":
            middle, half = rng.uniform(-0.05, 0.05), rng.uniform(0.12, 0.16)
            trachea = Ellipse(depth + half + rng.uniform(0.04, 0.07), middle, half, half * rng.uniform(1.0, 1.15))
            lobes: tuple[Ellipse, ...] = tuple(
                Ellipse(depth + height + 0.01, middle + side * (trachea.width + 0.75 * width), height, width)
                for side in (-1, 1)
                for height, width in [(rng.uniform(0.14, 0.2), rng.uniform(0.1, 0.13))]
            )
            sides: tuple[int, ...] = (-1, 1)
        else:
            side = int(rng.choice((-1, 1)))
            half = rng.uniform(0.17, 0.22)
            trachea = Ellipse(depth + half + 0.05, side * rng.uniform(0.4, 0.5), half, half)
            height, width = rng.uniform(0.17, 0.24), rng.uniform(0.2, 0.27)
            lobes = (
                Ellipse(depth + height + 0.01, side * (abs(trachea.x) - trachea.width - 0.6 * width), height, width),
            )
            sides = (-side,)
        isthmus = Ellipse(trachea.z - trachea.height - 0.012, trachea.x, rng.uniform(0.028, 0.045), trachea.width + 0.1)
        carotids = tuple(cls._carotid(rng, lobe, side) for lobe, side in zip(lobes, sides, strict=True))
        return cls(lobes, isthmus, trachea, carotids, (start, end))

    @staticmethod
    def _carotid(rng: np.random.Generator, lobe: Ellipse, side: int) -> Ellipse:
        radius = rng.uniform(0.055, 0.085)
        place = lobe.x + side * (lobe.width + radius * rng.uniform(0.7, 1.0))
        return Ellipse(lobe.z + rng.uniform(0.0, 0.06), place, radius * rng.uniform(0.9, 1.0), radius)


class Thyroid:
    """The neck of one patient.

    Args:
        rng: Fixes the patient.
        kind: Which kind of nodule, if any.
        grid: Samples and lines of the beam grid.
    """

    brightness = (72.0, 17.0)

    def __init__(self, rng: np.random.Generator, kind: Kind, grid: tuple[int, int]) -> None:
        self.view = str(rng.choice(("lobe", "transverse"), p=(0.65, 0.35)))
        self.sheet = Sheet.around(grid, *MARGIN)
        self.neck = Neck.draw(rng, self.view)
        self.nodules = draw_nodules(rng, kind, self.neck.lobes)
        self.structures = ("gland", "trachea", "carotid", *("nodule" for _ in self.nodules))
        self._drift = Oscillation.draw(rng), Oscillation.draw(rng)
        self._sweep = Oscillation(rng.uniform(0.07, 0.14), math.pi / 2, rng.uniform(60, 120))
        self._pulse = Oscillation(rng.uniform(0.05, 0.12), 0.0, rng.uniform(18, 30))
        z, x = self.sheet.beams()
        self._lobes = [_reach(ellipse, z, x) for ellipse in self.neck.lobes]
        self._arteries = [_reach(ellipse, z, x) for ellipse in self.neck.carotids]
        self._rest = self._tissue(rng)

    def at(self, time: float) -> tuple[Tissue, Resampling]:
        """What the beams meet at `time` (frames), and where on the sheet of scatterers each beam sample is."""
        place = Resampling(*self.positions(time), self.sheet.shape)
        return self._rest.seen(place), place

    def positions(self, time: float) -> tuple[Array, Array]:
        """Rows and columns of the sheet, each (samples, lines) float32, that the beam samples show at `time`.

        The lobes are largest at time 0 and shrink as the sweep leaves their middle.
        """
        down, across = (np.full(self.sheet.grid, drift.at(time), dtype=np.float32) for drift in self._drift)
        section = self._sweep.at(time) - self._sweep.amplitude  # 0 to -2 amplitudes
        for reaches, growth in ((self._lobes, section), (self._arteries, self._pulse.at(time))):
            for along_z, along_x in reaches:
                down += along_z * np.float32(1 / (1 + growth) - 1)
                across += along_x * np.float32(1 / (1 + growth) - 1)
        return self.sheet.positions(down, across)

    def _tissue(self, rng: np.random.Generator) -> Tissue:
        z, x = self.sheet.z, self.sheet.x
        tissue = _surroundings(rng, self.neck, z, x)
        tissue = _with_gland(rng, tissue, self.neck, z, x)
        for number, nodule in enumerate(self.nodules, start=int(FIRST_NODULE)):
            tissue = with_lesion(tissue, nodule, number, z, x, rng)
        for carotid in self.neck.carotids:
            tissue = _with_carotid(rng, tissue, carotid, z, x)
        return _with_trachea(rng, tissue, self.neck.trachea, z, x)


def _reach(ellipse: Ellipse, z: Array, x: Array) -> tuple[Array, Array]:
    """Vector from the centre, whole inside the ellipse and fading out to twice its radius."""
    fading = step((np.float32(1.65) - ellipse.radius(z, x)) / np.float32(0.6))
    return (z - np.float32(ellipse.z)) * fading, (x - np.float32(ellipse.x)) * fading


def draw_nodules(rng: np.random.Generator, kind: Kind, lobes: tuple[Ellipse, ...]) -> tuple[Lesion, ...]:
    """The nodules of a patient, inside the lobes; two lie beside each other or in different lobes."""
    if kind == "normal":
        return ()
    count = 2 if rng.random() < TWO_NODULES else 1
    first = int(rng.integers(len(lobes)))
    return tuple(_draw_nodule(rng, kind, lobes[(first + n) % len(lobes)], n, count // len(lobes)) for n in range(count))


def _draw_nodule(rng: np.random.Generator, kind: Kind, lobe: Ellipse, number: int, sharing: int) -> Lesion:
    """A nodule that leaves a rim of gland; `sharing` of 2 puts the two halves of a lobe to use."""
    malignant = kind == "malignant"
    room = 0.5 if sharing == 2 else 1.0
    width = room * lobe.width * rng.uniform(0.25, 0.6)
    aspect = rng.uniform(0.7, 1.15) if malignant else rng.uniform(1.05, 1.7)  # width over height
    height = min(width / aspect, 0.68 * lobe.height)
    width = height * aspect if malignant else width
    free = max(0.0, 0.8 - math.hypot(width / lobe.width, height / lobe.height))
    x = lobe.x + lobe.width * (free * rng.uniform(-0.7, 0.7) if sharing < 2 else (-0.42, 0.42)[number])
    form = rng.random()
    cyst = not malignant and form < 0.2
    bright = not malignant and form > 0.8
    return Lesion(
        z=lobe.z + lobe.height * free * rng.uniform(-0.7, 0.7),
        x=x,
        width=width,
        height=height,
        tilt=rng.normal(0, 0.15),
        ripple=ripple(rng, rng.uniform(0.07, 0.15) if malignant else rng.uniform(0.01, 0.05), 7 if malignant else 5),
        level=-28.0 if cyst else rng.uniform(3, 6) if bright else rng.uniform(-15, -6),
        texture=6.0 if cyst and rng.random() < 0.6 else rng.uniform(2, 3.5) if malignant else rng.uniform(0.8, 2),
        margin=rng.uniform(0.08, 0.2) if malignant else rng.uniform(0.03, 0.08),
        rim=0.0 if malignant else rng.uniform(0.02, 0.1),
        halo=0.0 if malignant else rng.uniform(-11, -3),
        attenuation=rng.uniform(0, 35) if malignant else -25.0 if cyst else rng.uniform(-12, 2),
        edge_shadow=0.0 if malignant else rng.uniform(0, 3),
        spicules=0,
        calcifications=int(rng.integers(4, 14)) if malignant and rng.random() < 0.5 else 0,
    )


def _surroundings(rng: np.random.Generator, neck: Neck, z: Array, x: Array) -> Tissue:
    """Skin, fat, strap muscles, and behind the gland the muscles of the spine."""
    shape = len(z), len(x)
    fibres, coarse = smooth_noise(rng, shape, (0.007, 0.12)), smooth_noise(rng, shape, (0.02, 0.06))
    patches = smooth_noise(rng, shape, (0.1, 0.1))
    bend = np.float32(0.3) * x**2
    start = undulation(rng, len(x), neck.muscles[0], 0.006) + bend * np.float32(0.3)
    end = undulation(rng, len(x), neck.muscles[1], 0.006) + bend
    deep = undulation(rng, len(x), max(lobe.z + lobe.height for lobe in neck.lobes) + 0.06, 0.012)
    fat = np.float32(rng.uniform(-27, -23)) + 2 * coarse
    strap = np.float32(rng.uniform(-36, -32)) + np.float32(1.5) * coarse + 5 * np.clip(fibres - np.float32(0.9), 0, 2)
    between = np.float32(rng.uniform(-31, -27)) + np.float32(3) * coarse + 4 * np.clip(fibres - np.float32(0.5), 0, 2)
    spine = np.float32(rng.uniform(-37, -32)) + np.float32(2) * coarse + 7 * np.clip(fibres - np.float32(0.7), 0, 2)
    level = np.where(z < start, fat, np.where(z < end, strap, np.where(z < deep, between, spine)))
    level = np.where(z < 0.018, np.float32(-18) + 2 * fibres, level) + patches
    specular = sum(
        np.float32(rng.uniform(0.1, 0.3)) * ridges(z - border, 0.7, 2) for border in (start, end, deep)
    ) * np.exp(np.float32(0.6) * coarse)
    specular = specular + np.where(z < end, np.float32(0.08), np.float32(0.05)) * ridges(
        fibres - np.float32(0.8), 0.5, 2
    )
    zeros = np.zeros(shape, dtype=np.float32)
    return Tissue(
        labels=zeros.astype(np.uint8),
        level=level.astype(np.float32),
        attenuation=np.where(z > deep, np.float32(rng.uniform(10, 30)), zeros),
        density=zeros + 1,
        specular=np.asarray(specular, dtype=np.float32),
    )


def _with_gland(rng: np.random.Generator, tissue: Tissue, neck: Neck, z: Array, x: Array) -> Tissue:
    """`tissue` with lobes and isthmus: fine, bright and homogeneous, in a thin capsule."""
    parts = [outline(ripple(rng, 0.05, 5), *_polar(lobe, z, x)) for lobe in neck.lobes]
    parts.append(neck.isthmus.radius(z, x))
    border = np.minimum.reduce(parts)
    share = step((1 - border) / np.float32(0.05))
    patches = smooth_noise(rng, border.shape, (0.08, 0.08))
    grain = smooth_noise(rng, border.shape, (0.014, 0.016))
    level = np.float32(rng.uniform(-19, -15)) + patches + np.float32(rng.uniform(0.5, 1.5)) * grain
    capsule = np.float32(rng.uniform(0.1, 0.25)) * ridges(border - 1, 0.7, 1) * np.exp(np.float32(0.5) * patches)
    return replace(
        tissue,
        labels=np.where(border < 1, GLAND, tissue.labels),
        level=tissue.level + (level - tissue.level) * share,
        attenuation=tissue.attenuation * (1 - share),
        specular=tissue.specular * (1 - share) + capsule,
    )


def _polar(ellipse: Ellipse, z: Array, x: Array) -> tuple[Array, Array]:
    down, across = (
        (z - np.float32(ellipse.z)) / np.float32(ellipse.height),
        (x - np.float32(ellipse.x)) / np.float32(ellipse.width),
    )
    return np.hypot(down, across), np.arctan2(down, across)


def _with_carotid(rng: np.random.Generator, tissue: Tissue, carotid: Ellipse, z: Array, x: Array) -> Tissue:
    """`tissue` with an artery: no echo inside, bright walls across the beam, enhancement behind."""
    radius = carotid.radius(z, x)
    inside = radius < 1
    wall = np.exp(-(((radius - 1) * carotid.width / np.float32(0.006)) ** 2))
    facing = np.abs(z - np.float32(carotid.z)) / (radius * np.float32(carotid.height) + np.float32(1e-6))
    return Tissue(
        labels=np.where(inside, CAROTID, tissue.labels),
        level=np.where(inside, np.float32(-56), np.maximum(tissue.level, np.float32(-22) - 20 * (1 - wall))),
        attenuation=np.where(inside, np.float32(rng.uniform(-26, -14)), tissue.attenuation),
        density=np.where(inside, np.float32(1), tissue.density),
        specular=np.where(radius < 1.1, np.float32(0), tissue.specular) + np.float32(0.12) * wall * facing**4,
    )


def _with_trachea(rng: np.random.Generator, tissue: Tissue, trachea: Ellipse, z: Array, x: Array) -> Tissue:
    """`tissue` with the windpipe: cartilage, a bright border of air, and its fading repeats over nothing."""
    across = (x - np.float32(trachea.x)) / np.float32(trachea.width)
    arch = np.float32(trachea.z) - np.float32(trachea.height) * np.sqrt(np.clip(1 - across**2, 0, None))
    depth = z - arch  # below the front wall
    beneath = step((1 - np.abs(across)) * 8) * (depth >= 0)
    spacing = np.float32(rng.uniform(0.035, 0.06))
    repeats = np.float32(5) * np.cos(np.float32(2 * math.pi) * depth / spacing) * np.exp(-depth / np.float32(0.1))
    rays = smooth_noise(rng, (len(z), len(x)), (0.1, 0.02))
    air = np.float32(rng.uniform(-27, -21)) - np.float32(rng.uniform(70, 130)) * depth + repeats + 2 * rays
    air = np.clip(air, np.float32(-60), np.float32(-15))
    cartilage = (depth < 0) & (depth > -0.025) & (np.abs(across) < 0.75)
    level = np.where(cartilage, np.minimum(tissue.level, np.float32(-33)), tissue.level)
    facing = np.clip(1 - np.abs(across), 0, 1) ** np.float32(0.7)
    wall = np.exp(-((depth / np.float32(0.006)) ** 2)) * facing
    inside = trachea.radius(z, x) < 1
    return Tissue(
        labels=np.where(inside, TRACHEA, np.where((beneath > 0.5) | cartilage, np.uint8(0), tissue.labels)),
        level=(level + (air - level) * beneath).astype(np.float32),
        attenuation=tissue.attenuation * (1 - beneath),
        density=tissue.density,
        specular=tissue.specular * (1 - beneath) * ~cartilage + np.float32(0.35) * wall,
    )
