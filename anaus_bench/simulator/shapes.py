"""What anatomies are drawn with: soft steps, thin interfaces, undulating borders, slow motions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from anaus_bench.simulator.geometry import Array
from anaus_bench.simulator.physics import DECIBEL, smooth_noise


@dataclass(frozen=True)
class Oscillation:
    """A motion of the tissue: amplitude as a share of the picture, phase in radians, period in frames."""

    amplitude: float
    phase: float
    period: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Oscillation:
        """Amplitude and speed of a hand-held probe."""
        return cls(rng.uniform(0.006, 0.02), rng.uniform(0, 2 * math.pi), rng.uniform(12, 30))

    def at(self, time: float) -> float:
        """Shift at `time`, as a share of the picture."""
        return self.amplitude * math.sin(2 * math.pi * time / self.period + self.phase)


def step(value: Array) -> Array:
    """Rises smoothly from 0 at -1 to 1 at 1."""
    ramp = np.clip(value * np.float32(0.5) + np.float32(0.5), 0, 1)
    return np.asarray(ramp * ramp * (3 - 2 * ramp), dtype=np.float32)


def ridges(field: Array, width: float, sharpness: float) -> Array:
    """1 on the zero level of `field`, falling within `width` samples; times |cos(beam, normal)|^sharpness."""
    down, across = np.gradient(field)
    steep = np.sqrt(down**2 + across**2) + np.float32(1e-9)
    line = np.exp(-((field / (steep * np.float32(width))) ** 2))
    return np.asarray(line * (np.abs(down) / steep) ** np.float32(sharpness), dtype=np.float32)


def undulation(rng: np.random.Generator, length: int, depth: float, amplitude: float) -> Array:
    """(length,) an undulating depth."""
    waves = smooth_noise(rng, (1, length), (1.0, 0.16)) + np.float32(0.4) * smooth_noise(rng, (1, length), (1.0, 0.05))
    return np.asarray(np.float32(depth) + np.float32(amplitude) * waves[0], dtype=np.float32)


def bump(value: Array) -> Array:
    """1 at 0, falling smoothly to 0 at -1 and 1."""
    return step(1 - 2 * np.abs(value))


def louder(*levels: Array) -> Array:
    """Level in dB of the sum of the powers of several levels."""
    powers = sum(np.exp(2 * DECIBEL * level) for level in levels)
    return np.asarray(np.log(powers) / (2 * DECIBEL), dtype=np.float32)
