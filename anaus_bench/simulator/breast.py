"""Breast: skin, fat with Cooper's ligaments, fibroglandular tissue, fascia and muscle; benign and malignant lesions.

Everything is drawn once per patient on a sheet a little larger than the picture; a frame reads the sheet where the
compression of the probe and breathing have moved the tissue. Coordinates are shares of the picture: depth `z` from 0 at
the probe to 1, `x` from -0.5 to 0.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from anaus_bench.simulator.geometry import Array, Resampling, Sheet
from anaus_bench.simulator.lesions import Lesion, ripple, with_lesion
from anaus_bench.simulator.physics import Tissue, smooth_noise
from anaus_bench.simulator.shapes import Oscillation, ridges, step, undulation

Kind = Literal["benign", "malignant", "normal"]
KINDS: tuple[Kind, ...] = ("benign", "malignant", "normal")
MARGIN = 0.06  # of the picture, on each side of the sheet
FAT_DENSITY = 0.35  # share of scatterers in fat
TWO_LESIONS = 0.05  # share of lesion patients that have two


class Breast:
    """The anatomy of one patient.

    Args:
        rng: Fixes the patient.
        kind: Which kind of lesion, if any.
        grid: Samples and lines of the beam grid.
    """

    view = "lesion"
    brightness = (82.0, 20.0)

    def __init__(self, rng: np.random.Generator, kind: Kind, grid: tuple[int, int]) -> None:
        self.lesions = draw_lesions(rng, kind)
        self.structures = ("lesion",) * len(self.lesions)
        self.sheet = Sheet.around(grid, MARGIN, MARGIN)
        self._press = Oscillation.draw(rng)
        self._breathing = Oscillation.draw(rng)
        self._rest = self._tissue(rng)

    def at(self, time: float) -> tuple[Tissue, Resampling]:
        """What the beams meet at `time` (frames), and where on the sheet of scatterers each beam sample is."""
        place = Resampling(*self.positions(time), self.sheet.shape)
        return self._rest.seen(place), place

    def positions(self, time: float) -> tuple[Array, Array]:
        """Rows and columns of the sheet, each (samples, lines) float32, that the beam samples show at `time`.

        The probe presses (most at the skin, not at the chest wall) and breathing shifts sideways (most in the depth).
        """
        depth = np.linspace(0, 1, self.sheet.grid[0], dtype=np.float32)[:, None]
        press, breath = np.float32(self._press.at(time)), np.float32(self._breathing.at(time))
        return self.sheet.positions(press * (1 - depth), breath * (0.5 + 0.5 * depth))

    def _tissue(self, rng: np.random.Generator) -> Tissue:
        z, x = self.sheet.z, self.sheet.x
        tissue = layers(rng, z, x)
        for number, lesion in enumerate(self.lesions, start=1):
            tissue = with_lesion(tissue, lesion, number, z, x, rng)
        return tissue


def layers(rng: np.random.Generator, z: Array, x: Array) -> Tissue:
    """Healthy tissue on the sheet with depths `z` (rows, 1) and positions `x` (columns,)."""
    shape = len(z), len(x)
    wave = np.float32(rng.uniform(0.012, 0.045)) * smooth_noise(rng, shape, (0.25, 0.22))
    slope = np.float32(rng.normal(0, 0.05)) * x
    depth = z + (wave + slope) * np.clip((z - np.float32(0.02)) * 6, 0, 1)  # layers are level in this coordinate
    borders = Borders.draw(rng, len(x))
    textures = Textures.draw(rng, shape, depth / (z[-1] - z[0]) * shape[0])

    in_muscle, in_gland = depth > borders.fascia, (depth > borders.fat) & (depth < borders.gland)
    loss = np.where(in_gland, np.float32(rng.uniform(0, 9)), np.float32(rng.uniform(0, 4))) + 2 * textures.patches
    in_fat = (depth > borders.skin) & (depth < borders.fat)
    return Tissue(
        labels=np.zeros(shape, dtype=np.uint8),
        level=_levels(rng, depth, borders, textures),
        attenuation=np.where(in_muscle, np.float32(rng.uniform(15, 60)), loss),
        density=np.where(in_fat, np.float32(FAT_DENSITY), np.float32(1)),
        specular=_interfaces(rng, depth, borders, textures),
    )


@dataclass(frozen=True)
class Borders:
    """Depths at which skin, fat, gland, and the fat behind the gland end: the first a number, the others (columns,)."""

    skin: float
    fat: Array
    gland: Array
    fascia: Array

    @classmethod
    def draw(cls, rng: np.random.Generator, length: int) -> Borders:
        """Borders of one patient."""
        fat = undulation(rng, length, rng.uniform(0.10, 0.34), rng.uniform(0.015, 0.045))
        gland = undulation(rng, length, rng.uniform(0.5, 0.75), 0.03)
        fascia = undulation(rng, length, rng.uniform(0.66, 0.92), 0.008)
        return cls(rng.uniform(0.018, 0.035), fat, np.maximum(gland, fat + np.float32(0.06)), fascia)


@dataclass(frozen=True)
class Textures:
    """Noise fields (rows, columns) of unit variance.

    Attributes:
        lobules, septa: Fat lobules of two sizes, whose borders are Cooper's ligaments.
        strands, streaks: Fibrous tissue, coarse and fine.
        islands: Fat within the gland.
        fibres: Muscle.
        patches: Slow variation of everything.
        rough: What breaks interfaces.
    """

    lobules: Array
    septa: Array
    strands: Array
    streaks: Array
    islands: Array
    fibres: Array
    patches: Array
    rough: Array

    @classmethod
    def draw(cls, rng: np.random.Generator, shape: tuple[int, int], rows: Array) -> Textures:
        """Textures of one patient; those of layered tissue follow the layers, which stand at `rows` before folding."""
        folded = Resampling(rows, np.broadcast_to(np.arange(shape[1], dtype=np.float32), shape), shape)
        return cls(
            lobules=smooth_noise(rng, shape, (0.06, 0.10)),
            septa=smooth_noise(rng, shape, (0.045, 0.07)),
            strands=folded.linear(smooth_noise(rng, shape, (0.016, 0.055))),
            streaks=folded.linear(smooth_noise(rng, shape, (0.0065, 0.05))),
            islands=folded.linear(smooth_noise(rng, shape, (0.035, 0.07))),
            fibres=folded.linear(smooth_noise(rng, shape, (0.007, 0.12))),
            patches=smooth_noise(rng, shape, (0.1, 0.12)),
            rough=smooth_noise(rng, shape, (0.02, 0.028)),
        )


def _levels(rng: np.random.Generator, depth: Array, borders: Borders, textures: Textures) -> Array:
    """Mean echo level in dB of healthy tissue."""
    streaks, islands, fibres = textures.streaks, textures.islands, textures.fibres
    fat = np.float32(rng.uniform(-32, -28)) + np.float32(1.3) * islands + 5 * np.clip(streaks - np.float32(0.9), 0, 2)
    gland = np.float32(rng.uniform(-26, -21)) + 2 * textures.strands
    gland += np.float32(rng.uniform(4, 11)) * np.clip(streaks - np.float32(0.5), 0, 2)
    gland -= 7 * step((islands - np.float32(rng.uniform(0.2, 1.6))) * 3)  # the rest is fat islands
    muscle = np.float32(rng.uniform(-34, -30)) + 2 * fibres
    muscle += np.float32(rng.uniform(6, 13)) * np.clip(fibres - np.float32(0.6), 0, 2)

    share = step((depth - borders.fat) / np.float32(0.015)) * step((borders.gland - depth) / np.float32(0.02))
    level = fat + (gland - fat) * share
    level = np.where(depth > borders.fascia, muscle, level)
    level = np.where(depth < np.float32(borders.skin), np.float32(-24) + fibres, level)
    return np.asarray(level + textures.patches + np.float32(0.8) * textures.rough, dtype=np.float32)


def _interfaces(rng: np.random.Generator, depth: Array, borders: Borders, textures: Textures) -> Array:
    """Specular amplitude of ligaments, strands, the borders of the layers, and the skin."""
    skin = np.float32(borders.skin)
    ligaments = np.float32(rng.uniform(0.08, 0.2)) * ridges(textures.lobules, 0.6, 1)
    ligaments += np.float32(rng.uniform(0.03, 0.12)) * ridges(textures.septa - np.float32(0.5), 0.5, 1)
    strands = np.float32(rng.uniform(0.04, 0.13)) * ridges(textures.strands - np.float32(0.5), 0.5, 1)
    in_fat, in_gland = (depth > skin) & (depth < borders.fat), (depth > borders.fat) & (depth < borders.gland)
    specular = np.where(in_fat, ligaments, 0) + np.where(in_gland, strands, 0)
    for border, strength in ((borders.fat, 0.08), (borders.gland, 0.10), (borders.fascia, 0.26)):
        specular += np.float32(strength * rng.uniform(0.4, 1.3)) * ridges(depth - border, 0.7, 2)
    specular += np.float32(0.12) * ridges(depth - skin, 0.6, 2)
    specular += np.float32(0.2) * ridges(depth - np.float32(0.004), 0.6, 2)  # the probe's face
    fading = np.exp(np.float32(0.9) * textures.rough + np.float32(0.6) * textures.islands - np.float32(0.6))
    return np.asarray(specular * fading, dtype=np.float32)


def draw_lesions(rng: np.random.Generator, kind: Kind) -> tuple[Lesion, ...]:
    """The lesions of a patient, left of each other where there are two."""
    if kind == "normal":
        return ()
    draw = _draw_benign if kind == "benign" else _draw_malignant
    if rng.random() >= TWO_LESIONS:
        return (draw(rng, rng.uniform(-0.22, 0.22), 1.0),)
    return draw(rng, rng.uniform(-0.3, -0.24), 0.75), draw(rng, rng.uniform(0.24, 0.3), 0.75)


def _draw_benign(rng: np.random.Generator, x: float, scale: float) -> Lesion:
    width = scale * rng.uniform(0.07, 0.19)
    cyst = rng.random() < 0.25
    return Lesion(
        z=rng.uniform(0.24, 0.48),
        x=x,
        width=width,
        height=width / rng.uniform(1.25, 2.2),
        tilt=rng.normal(0, 0.15),
        ripple=ripple(rng, rng.uniform(0.01, 0.05), 5),
        level=-30.0 if cyst else rng.uniform(-17, -9),
        texture=0.5 if cyst else rng.uniform(0.8, 2.2),
        margin=rng.uniform(0.03, 0.07),
        rim=rng.uniform(0.03, 0.12),
        halo=rng.uniform(0, 1.5),
        attenuation=rng.uniform(-34, -22) if cyst else rng.uniform(-18, 0),
        edge_shadow=rng.uniform(1, 4.5),
        spicules=0,
        calcifications=0,
    )


def _draw_malignant(rng: np.random.Generator, x: float, scale: float) -> Lesion:
    width = scale * rng.uniform(0.07, 0.16)
    return Lesion(
        z=rng.uniform(0.26, 0.48),
        x=x,
        width=width,
        height=width / rng.uniform(0.7, 1.35),
        tilt=rng.normal(0, 0.3),
        ripple=ripple(rng, rng.uniform(0.12, 0.24), 9),
        level=rng.uniform(-18, -10),
        texture=rng.uniform(2, 4),
        margin=rng.uniform(0.08, 0.2),
        rim=0.0,
        halo=rng.uniform(2, 6),
        attenuation=rng.uniform(5, 60),
        edge_shadow=0.0,
        spicules=int(rng.integers(7, 16)),
        calcifications=int(rng.integers(3, 12)) if rng.random() < 0.3 else 0,
    )
