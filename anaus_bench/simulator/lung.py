"""Lung between the ribs: chest wall, pleura, and the artefacts of air below it (Lichtenstein, 2014).

Air returns no true echo: below the pleura are its repeats (A-lines), vertical ring-down (B-lines) and haze, unless
fluid or consolidated lung lets the beam pass. Everything is drawn once per patient on a sheet in beam coordinates;
breathing slides what lies from the pleura downwards along the chest wall.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from anaus_bench.simulator.geometry import Array, Resampling, Sheet
from anaus_bench.simulator.physics import Tissue, smooth_noise
from anaus_bench.simulator.shapes import Oscillation, bump, louder, ridges, step, undulation

Kind = Literal["covid", "pneumonia", "regular"]
KINDS: tuple[Kind, ...] = ("covid", "pneumonia", "regular")
STRUCTURES: tuple[str, ...] = ("pleura", "rib", "a-line", "b-line", "consolidation", "effusion")
PLEURA, RIB, A_LINE, B_LINE, CONSOLIDATION, EFFUSION = (np.uint8(number) for number in range(1, 7))
MARGIN = 0.04, 0.13  # of the picture, along the beams and across
A_LINES = 4  # repeats drawn; the bottom of the picture cuts most off
VISIBLE = 0.09  # least amplitude of an A-line that is labelled


@dataclass(frozen=True)
class BLine:
    """Ring-down from one point of the pleura: position, half width (shares of the picture) and level in dB."""

    x: float
    width: float
    level: float


@dataclass(frozen=True)
class Patch:
    """Lung without air: centre, half width and depth below the surface, as shares of the picture."""

    x: float
    width: float
    depth: float


@dataclass(frozen=True)
class Signs:
    """What the lung of one patient shows.

    Attributes:
        echo: Amplitude of an A-line relative to the one above it.
        thickness: Of the pleural line, as a share of the picture.
        roughness: Share by which the thickness varies, and strength of the line's gaps.
        b_lines: Ring-down artefacts.
        patches: Consolidated lung under the pleura.
        effusion: Greatest depth of fluid above the lung, as a share of the picture; 0 for none.
        bronchograms: Level of air bronchograms over consolidated lung, in dB.
    """

    echo: float
    thickness: float
    roughness: float
    b_lines: tuple[BLine, ...] = ()
    patches: tuple[Patch, ...] = ()
    effusion: float = 0.0
    bronchograms: float = 0.0


def draw_signs(rng: np.random.Generator, kind: Kind) -> Signs:
    """Signs of a healthy lung, of viral pneumonia (patchy, at the pleura) or of a bacterial one (one large focus)."""
    if kind == "regular":
        lines = tuple(_b_line(rng, rng.uniform(-0.4, 0.4), 0.014) for _ in range(rng.integers(2)))
        return Signs(rng.uniform(0.35, 0.6), rng.uniform(0.009, 0.014), 0.1, lines)
    if kind == "covid":
        places = rng.permutation(7)[: rng.integers(3, 7)] / 7 - 0.43 + rng.uniform(-0.04, 0.04)
        lines = tuple(_b_line(rng, float(x), 0.022) for x in places)
        if rng.random() < 0.5:  # confluent: white lung
            lines += (BLine(rng.uniform(-0.3, 0.3), rng.uniform(0.05, 0.16), rng.uniform(-21, -15)),)
        over = places[: rng.integers(1, 4)]
        patches = tuple(Patch(x, rng.uniform(0.02, 0.06), rng.uniform(0.015, 0.06)) for x in map(float, over))
        return Signs(rng.uniform(0.2, 0.35), rng.uniform(0.012, 0.022), rng.uniform(0.4, 0.8), lines, patches)
    patch = Patch(rng.uniform(-0.15, 0.15), rng.uniform(0.22, 0.45), rng.uniform(0.2, 0.5))
    edges = (patch.x - 0.8 * patch.width, patch.x + 0.8 * patch.width, patch.x + rng.uniform(-0.1, 0.1))
    lines = tuple(_b_line(rng, x, 0.018) for x in edges[: rng.integers(1, 4)])
    effusion = rng.uniform(0.05, 0.22) if rng.random() < 0.4 else 0.0
    return Signs(
        rng.uniform(0.25, 0.45), rng.uniform(0.009, 0.015), 0.25, lines, (patch,), effusion, rng.uniform(10, 22)
    )


def _b_line(rng: np.random.Generator, x: float, width: float) -> BLine:
    return BLine(x, width * rng.uniform(0.5, 1.3), rng.uniform(-20, -11))


class Lung:
    """The chest wall and lung of one patient.

    Args:
        rng: Fixes the patient.
        kind: Healthy, viral or bacterial pneumonia.
        grid: Samples and lines of the beam grid.
    """

    structures = STRUCTURES
    view = "intercostal"
    brightness = (58.0, 15.0)

    def __init__(self, rng: np.random.Generator, kind: Kind, grid: tuple[int, int]) -> None:
        self.sheet = Sheet.around(grid, *MARGIN)
        self.signs = draw_signs(rng, kind)
        self._sliding = Oscillation(rng.uniform(0.03, 0.11), rng.uniform(0, 2 * math.pi), rng.uniform(22, 45))
        self._lift = Oscillation(rng.uniform(0.002, 0.008), rng.uniform(0, 2 * math.pi), self._sliding.period)
        z, x = self.sheet.z, self.sheet.x
        self.pleura = _pleura(rng, x)  # (columns,) depth
        wall = _chest_wall(rng, self.pleura, z, x)
        self._rest = _below(_lung(rng, self.signs, self.pleura, z, x), wall, z < self.pleura)

    def at(self, time: float) -> tuple[Tissue, Resampling]:
        """What the beams meet at `time` (frames), and where on the sheet of scatterers each beam sample is."""
        place = Resampling(*self.positions(time), self.sheet.shape)
        tissue = self._rest.seen(place)
        behind_bone = np.logical_or.accumulate(tissue.labels == RIB, axis=0) & (tissue.labels != RIB)
        return replace(tissue, labels=np.where(behind_bone, np.uint8(0), tissue.labels)), place

    def positions(self, time: float) -> tuple[Array, Array]:
        """Rows and columns of the sheet, each (samples, lines) float32, that the beam samples show at `time`.

        The lung slides along the pleura: a point keeps its distance from it.
        """
        lift, slide = np.float32(self._lift.at(time)), np.float32(self._sliding.at(time))
        z, x = self.sheet.beams()
        here, there = (np.interp(place, self.sheet.x, self.pleura).astype(np.float32) for place in (x, x + slide))
        in_lung = z + lift >= here
        return self.sheet.positions(lift + (there - here) * in_lung, slide * in_lung)


def _pleura(rng: np.random.Generator, x: Array) -> Array:
    """(columns,) depth of the pleura: nearly parallel to the probe, bent towards it in the middle."""
    depth = rng.uniform(0.12, 0.3)
    bend = np.float32(rng.uniform(-0.05, 0.25)) * x**2 + np.float32(rng.normal(0, 0.025)) * x
    return np.maximum(undulation(rng, len(x), depth, 0.004) + bend, np.float32(0.09)).astype(np.float32)


def _chest_wall(rng: np.random.Generator, pleura: Array, z: Array, x: Array) -> Tissue:
    """Skin, fat, muscle and ribs on the whole sheet; the lung takes its place from the pleura downwards."""
    shape = len(z), len(x)
    depth = z / pleura  # 1 at the pleura
    fibres = smooth_noise(rng, shape, (0.006, 0.16))
    coarse, clouds = smooth_noise(rng, shape, (0.012, 0.09)), smooth_noise(rng, shape, (0.06, 0.08))
    fat = np.float32(rng.uniform(0.25, 0.5)) + np.float32(0.04) * smooth_noise(rng, (1, shape[1]), (1.0, 0.15))
    level = np.where(depth < fat, np.float32(rng.uniform(-31, -26)), np.float32(rng.uniform(-29, -24)))
    level = level + 2 * coarse + 2 * clouds + np.float32(rng.uniform(4, 8)) * np.clip(fibres - np.float32(0.4), 0, 2)
    level = np.where(z < 0.015, np.float32(-16) + 2 * fibres, level)
    breaks = np.exp(np.float32(0.8) * coarse + np.float32(0.5) * clouds - np.float32(0.4))
    specular = np.float32(rng.uniform(0.04, 0.14)) * ridges(fibres - np.float32(0.7), 0.5, 2)
    specular += np.float32(rng.uniform(0.08, 0.25)) * ridges(depth - fat, 0.7, 2)
    specular += np.float32(rng.uniform(0.04, 0.16)) * ridges(depth - np.float32(0.86), 0.6, 2)  # endothoracic fascia
    specular *= breaks
    zeros = np.zeros(shape, dtype=np.float32)
    wall = Tissue(zeros.astype(np.uint8), level, zeros, np.where(depth < fat, np.float32(0.4), zeros + 1), specular)
    for rib in _draw_ribs(rng):
        wall = _with_rib(wall, rib, pleura, z, x)
    return wall


def _draw_ribs(rng: np.random.Generator) -> tuple[tuple[float, float, float], ...]:
    """None, one, or two with the pleura between them (the bat sign): position, half width, depth over the pleura's."""
    count = rng.choice(3, p=(0.35, 0.3, 0.35))
    middle, apart = rng.uniform(-0.08, 0.08), rng.uniform(0.55, 0.8)
    places = {0: (), 1: (rng.choice((-0.3, 0.3)),), 2: (-0.5 * apart, 0.5 * apart)}[int(count)]
    return tuple((middle + place, rng.uniform(0.06, 0.11), rng.uniform(0.5, 0.75)) for place in places)


def _with_rib(wall: Tissue, rib: tuple[float, float, float], pleura: Array, z: Array, x: Array) -> Tissue:
    """`wall` with a rib: a bright arched cap and full shadow."""
    place, width, share = rib
    across = (x - np.float32(place)) / np.float32(width)
    top = np.float32(share) * pleura + np.float32(0.25 * width) * across**2
    thickness = np.float32(0.022)
    bone = (z >= top) & (z < top + thickness) & (np.abs(across) < 1)
    cap = np.exp(-(((z - top) / np.float32(0.004)) ** 2)) * bump(across * np.float32(0.8))
    # The shadow's side edges are soft: 60 dB in the middle of the rib.
    loss = np.float32(60) / thickness * step((1 - np.abs(across)) * 3) * ((z >= top) & (z < top + thickness))
    return Tissue(
        labels=np.where(bone, RIB, wall.labels),
        level=np.where(bone, np.float32(-14) - 12 * np.clip((z - top) / thickness, 0, 1), wall.level),
        attenuation=wall.attenuation + loss,
        density=np.where(bone, np.float32(1), wall.density),
        specular=np.where(bone, np.float32(0), wall.specular)
        + np.float32(0.5) * cap * np.exp(-np.float32(0.3) * across**2),
    )


def _lung(rng: np.random.Generator, signs: Signs, pleura: Array, z: Array, x: Array) -> Tissue:
    """Everything from the pleura downwards, on the whole sheet."""
    shape = len(z), len(x)
    below = z - pleura  # depth under the pleura
    rough = smooth_noise(rng, (1, shape[1]), (1.0, 0.02))[0] + smooth_noise(rng, (1, shape[1]), (1.0, 0.006))[0]
    thickness = np.float32(signs.thickness) * np.clip(1 + np.float32(signs.roughness) * rough, 0.5, 2.2)
    gaps = np.exp(-np.float32(1.2 * signs.roughness) * np.clip(rough - np.float32(0.6), 0, 2.5))
    surface = np.float32(signs.effusion) * bump((x - np.float32(rng.uniform(-0.3, 0.3))) * np.float32(0.9))
    tissue = _air(rng, signs, pleura, z, x)
    tissue = _with_b_lines(rng, tissue, signs, below, x)
    for patch in signs.patches:
        tissue = _with_patch(rng, tissue, patch, signs, below - surface, x)
    if signs.effusion:
        tissue = _with_effusion(tissue, below, surface)
    line = (below >= 0) & (below < thickness)
    return replace(
        tissue,
        labels=np.where(line, PLEURA, tissue.labels),
        level=np.where(line, np.float32(-12) + 20 * np.log10(gaps), tissue.level),
        specular=tissue.specular * ~line
        + np.float32(0.6) * gaps * np.exp(np.float32(0.25) * rough) * ridges(below - thickness / 2, 1.1, 1),
    )


def _air(rng: np.random.Generator, signs: Signs, pleura: Array, z: Array, x: Array) -> Tissue:
    """Haze and A-lines."""
    shape = len(z), len(x)
    streaks = smooth_noise(rng, shape, (0.007, 0.05))
    clouds = smooth_noise(rng, shape, (0.09, 0.08))
    below = np.clip(z - pleura, 0, None)
    columns = smooth_noise(rng, shape, (0.3, 0.02)) + smooth_noise(rng, shape, (0.5, 0.06))
    level = np.float32(rng.uniform(-36, -28)) - np.float32(rng.uniform(8, 24)) * below + 2 * clouds
    level = level + np.float32(rng.uniform(2, 5)) * streaks + np.float32(rng.uniform(1, 3)) * columns
    middle, extent = np.float32(rng.uniform(-0.2, 0.2)), np.float32(rng.uniform(0.15, 0.4))
    perpendicular = np.exp(-(((x - middle) / extent) ** 2)) * np.exp(np.float32(0.5) * columns - np.float32(0.3))
    free = np.prod([1 - bump((x - line.x) / (2 * line.width)) for line in signs.b_lines], axis=0, dtype=np.float32)
    covered = [1 - (np.abs(x - patch.x) < patch.width) for patch in signs.patches]
    free = np.asarray(free * np.prod(covered, axis=0), dtype=np.float32)
    labels = np.zeros(shape, dtype=np.uint8)
    specular = np.zeros(shape, dtype=np.float32)
    for number in range(1, A_LINES):
        amplitude = np.float32(signs.echo**number) * perpendicular * free
        away = z - (number + 1) * pleura
        width = np.float32(0.004 + 0.0015 * number)
        specular += np.float32(0.4) * amplitude * np.exp(-((away / width) ** 2) + np.float32(0.4) * clouds)
        labels[(np.abs(away) < 1.5 * width) & (amplitude > VISIBLE)] = A_LINE
    zeros = np.zeros(shape, dtype=np.float32)
    return Tissue(labels, level, zeros, zeros + 1, specular)


def _with_b_lines(rng: np.random.Generator, air: Tissue, signs: Signs, below: Array, x: Array) -> Tissue:
    """`air` with ring-down that reaches the bottom without fading."""
    level, labels = air.level, air.labels
    for line in signs.b_lines:
        across = np.abs(x - line.x) / np.float32(line.width)
        comet = np.float32(1.8) * np.sin(np.float32(2 * math.pi / rng.uniform(0.012, 0.022)) * below)
        profile = np.float32(line.level) - 5 * across ** (4 if line.width > 0.04 else 2)
        slow = 2 * smooth_noise(rng, below.shape, (0.12, 0.015))
        level = louder(level, np.maximum(profile, np.float32(-90)) + comet + slow)
        labels = np.where((across < 1) & (below > 0), B_LINE, labels)
    return replace(air, labels=labels, level=level)


def _with_patch(rng: np.random.Generator, tissue: Tissue, patch: Patch, signs: Signs, below: Array, x: Array) -> Tissue:
    """`tissue` with consolidated lung from the surface down to a shredded border."""
    shape = tissue.level.shape
    shreds = smooth_noise(rng, shape, (0.03, 0.03)) + np.float32(0.6) * smooth_noise(rng, shape, (0.012, 0.012))
    across = np.clip((x - np.float32(patch.x)) / np.float32(patch.width), -1, 1)
    depth = np.float32(patch.depth) * np.sqrt(1 - across**2)
    border = depth * (1 + np.float32(0.16) * shreds) - below  # positive inside
    inside = (border > 0) & (below >= 0) & (np.abs(across) < 1)
    level = np.float32(rng.uniform(-37, -32)) + np.float32(2) * smooth_noise(rng, shape, (0.04, 0.05))
    airways = smooth_noise(rng, shape, (0.012, 0.02)) + smooth_noise(rng, shape, (0.05, 0.05))
    level += np.float32(signs.bronchograms) * np.clip(airways - np.float32(1.6), 0, 1.2)
    behind = (border <= 0) & (np.abs(across) < 1)
    rays = 4 * smooth_noise(rng, (1, shape[1]), (1.0, 0.02))[0] + 2 * shreds
    # The air behind rings down: bright and uneven at the shreds, fading below.
    ring_down = np.float32(rng.uniform(-15, -10)) - np.minimum(-border * 100, 10) + 16 * border + rays
    return replace(
        tissue,
        labels=np.where(inside, CONSOLIDATION, tissue.labels),
        level=np.where(inside, level, np.where(behind, louder(tissue.level, ring_down), tissue.level)),
        specular=np.where(inside, np.float32(0), tissue.specular),
    )


def _with_effusion(tissue: Tissue, below: Array, surface: Array) -> Tissue:
    """`tissue` with fluid from the pleura down to the lung's `surface`, which is a thin bright line."""
    fluid = (below >= 0) & (below < surface)
    visceral = ridges(below - surface, 0.9, 1) * (surface > 0.01)
    return Tissue(
        labels=np.where(fluid, EFFUSION, tissue.labels),
        level=np.where(fluid, np.float32(-60), tissue.level),
        attenuation=np.where(fluid, np.float32(-14), tissue.attenuation),
        density=tissue.density,
        specular=np.where(fluid, np.float32(0), tissue.specular) + np.float32(0.2) * visceral,
    )


def _below(lung: Tissue, wall: Tissue, above: NDArray[np.bool_]) -> Tissue:
    """`wall` where `above`, `lung` elsewhere."""
    return Tissue(
        labels=np.where(above, wall.labels, lung.labels),
        level=np.where(above, wall.level, lung.level),
        attenuation=np.where(above, wall.attenuation, lung.attenuation),
        density=np.where(above, wall.density, lung.density),
        specular=np.where(above, wall.specular, lung.specular),
    )
