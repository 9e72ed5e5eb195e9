"""Lesions: rippled ellipses that take the place of the tissue around, as masses of the breast or thyroid nodules."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from anaus_bench.simulator.geometry import Array
from anaus_bench.simulator.physics import Tissue, smooth_noise
from anaus_bench.simulator.shapes import step


@dataclass(frozen=True)
class Lesion:
    """One lesion.

    Attributes:
        z, x: Centre.
        width: Half axis across.
        height: Half axis along the beam, before the tilt.
        tilt: Rotation in radians.
        ripple: Amplitudes and phases of the outline's waves: radius times 1 + sum of a_k cos(k phi + p_k), k from 2.
        level: Echo level relative to the tissue around, in dB.
        texture: Standard deviation of the level inside, in dB.
        margin: Width of the transition at the border, as a share of the radius.
        rim: Amplitude of the capsule as an interface.
        halo: Level added around the border, in dB.
        attenuation: dB per imaging depth; negative enhances what lies behind.
        edge_shadow: Loss behind the lateral borders, in dB.
        spicules: Number of spicules; 0 for a smooth border.
        calcifications: Number of microcalcifications.
    """

    z: float
    x: float
    width: float
    height: float
    tilt: float
    ripple: tuple[tuple[float, float], ...]
    level: float
    texture: float
    margin: float
    rim: float
    halo: float
    attenuation: float
    edge_shadow: float
    spicules: int
    calcifications: int


def ripple(rng: np.random.Generator, amplitude: float, highest: int) -> tuple[tuple[float, float], ...]:
    """Waves of orders 2 to `highest` whose amplitudes fall with the order."""
    orders = range(2, highest + 1)
    return tuple((amplitude * rng.normal() / order**0.8, rng.uniform(0, 2 * math.pi)) for order in orders)


def with_lesion(tissue: Tissue, lesion: Lesion, number: int, z: Array, x: Array, rng: np.random.Generator) -> Tissue:
    """`tissue` in which `lesion` takes the place of what was there, with label `number`."""
    radius, angle = _polar(lesion, z, x)  # radius 1 is the outline
    inside = radius < 1
    around = np.float32(np.mean(tissue.level[np.abs(radius - 1.4) < 0.3]))

    texture = smooth_noise(rng, radius.shape, (0.03, 0.035)) * np.float32(lesion.texture)
    border = radius
    halo = np.exp(-(((radius - 1.25) / 0.28) ** 2)) * np.float32(lesion.halo)
    if lesion.spicules:
        ray = np.cos(lesion.spicules * angle + 4 * np.sin(2 * angle + lesion.tilt)) ** 7
        reach = np.exp(-np.clip(radius - 1, 0, None) / 0.35)
        border = radius - np.float32(0.3) * np.clip(ray, 0, 1) * reach  # dark spicules leave the mass
    share = step((1 - border) / np.float32(lesion.margin))
    level = (tissue.level + halo) * (1 - share) + (around + np.float32(lesion.level) + texture) * share

    rim = np.exp(-(((radius - 1) * min(lesion.width, lesion.height) / 0.006) ** 2))
    specular = tissue.specular * (1 - share) + rim * np.abs(np.sin(angle)) ** 6 * np.float32(lesion.rim)
    if lesion.calcifications:
        rows, columns = np.nonzero(radius < 0.8)
        chosen = rng.choice(len(rows), min(lesion.calcifications, len(rows)), replace=False)
        specular[rows[chosen], columns[chosen]] += rng.uniform(0.6, 2.0, len(chosen)).astype(np.float32)

    attenuation = tissue.attenuation * (1 - share) + np.float32(lesion.attenuation) * share
    if lesion.edge_shadow:
        side = np.exp(-(((np.abs(x - lesion.x) - lesion.width) / 0.018) ** 2))
        tangent = np.exp(-(((z - lesion.z) / 0.05) ** 2)) / np.float32(0.05 * math.sqrt(math.pi))
        attenuation = attenuation + np.float32(lesion.edge_shadow) * side * tangent
    return Tissue(
        labels=np.where(inside, np.uint8(number), tissue.labels),
        level=level.astype(np.float32),
        attenuation=attenuation.astype(np.float32),
        density=np.where(inside, np.float32(1), tissue.density),
        specular=specular.astype(np.float32),
    )


def _polar(lesion: Lesion, z: Array, x: Array) -> tuple[Array, Array]:
    """Radius (1 on the outline) and angle (0 sideways, positive downwards) about a lesion's centre."""
    cosine, sine = np.float32(math.cos(lesion.tilt)), np.float32(math.sin(lesion.tilt))
    down, across = z - np.float32(lesion.z), x - np.float32(lesion.x)
    along = (across * cosine + down * sine) / np.float32(lesion.width)
    beam = (down * cosine - across * sine) / np.float32(lesion.height)
    angle = np.arctan2(beam, along)
    return outline(lesion.ripple, np.hypot(along, beam), angle), angle.astype(np.float32)


def outline(waves: tuple[tuple[float, float], ...], radius: Array, angle: Array) -> Array:
    """`radius` divided by the rippled outline's, 1 + sum of a_k cos(k phi + p_k), k from 2: 1 is the outline."""
    ripples = np.ones_like(angle)
    for order, (amplitude, phase) in enumerate(waves, start=2):
        ripples += np.float32(amplitude) * np.cos(order * angle + np.float32(phase))
    return np.asarray(radius / ripples, dtype=np.float32)
