"""From tissue to grey levels: a convolution model of B-mode ultrasound on the beam grid.

Scatterers are convolved with a separable point spread function (Bamber and Dickinson, 1980), which yields fully
developed speckle (Wagner et al., 1983); attenuation, specular interfaces, reverberation, clutter, electronic noise and
log compression follow, as in ray-based simulators (Burger et al., 2013). Arrays are (samples, lines) float32; a complex
baseband field is (2, samples, lines), real and imaginary part. Levels are decibels of amplitude.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d

from anaus_bench.simulator.geometry import Array, Resampling

DECIBEL = np.float32(math.log(10) / 20)  # exp(DECIBEL * x) is the amplitude of x decibels


@dataclass(frozen=True)
class Tissue:
    """What the beams meet at one moment; all arrays (samples, lines).

    Attributes:
        labels: uint8 ids of the structures, 0 = none.
        level: Mean echo level in dB.
        attenuation: dB per imaging depth beyond what the machine's time gain compensates; negative enhances.
        density: Share of scatterers present, in (0, 1]; below about 0.2 speckle is no longer fully developed.
        specular: Amplitude of interfaces, at least 0, with their angle to the beam accounted for.
    """

    labels: NDArray[np.uint8]
    level: Array
    attenuation: Array
    density: Array
    specular: Array

    def seen(self, place: Resampling) -> Tissue:
        """This sheet of tissue at the positions of `place`; labels and density keep their values."""
        return Tissue(
            labels=place.nearest(self.labels),
            level=place.linear(self.level),
            attenuation=place.linear(self.attenuation),
            density=place.nearest(self.density),
            specular=place.linear(self.specular),
        )


@dataclass(frozen=True)
class Scanner:
    """Settings of a probe and machine.

    Attributes:
        axial_sigma: Of the point spread function's amplitude, in samples.
        focal_sigma, far_sigma: Its lateral widths at the focus and far from it, in lines.
        focus: Depth of the focus in [0, 1].
        echo: Amplitude of the first reverberation, in [0, 1); the k-th has its k-th power.
        echo_depth: Distance between reverberations, in imaging depths.
        haze: Clutter of side lobes and multiple scattering, in dB.
        noise: Electronic noise at the bottom, after time gain, in dB.
        time_gain: (samples,) error of the time gain in dB.
        contact: (lines,) coupling of each line in dB.
        dynamic_range: Decibels between black and white.
        gamma: Exponent of the grey curve.
        smoothing: Width of the machine's speckle reduction, in samples; 0 for none.
    """

    axial_sigma: float
    focal_sigma: float
    far_sigma: float
    focus: float
    echo: float
    echo_depth: float
    haze: float
    noise: float
    time_gain: Array
    contact: Array
    dynamic_range: float
    gamma: float
    smoothing: float


def scatterers(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    """(3, rows, columns): a complex field of unit mean square (two parts), and a rank in [0, 1) that thins it."""
    field = np.empty((3, *shape), dtype=np.float32)
    rng.standard_normal(dtype=np.float32, out=field[:2])
    field[:2] *= np.float32(math.sqrt(0.5))
    rng.random(dtype=np.float32, out=field[2])
    return field


def received(tissue: Tissue, field: Array, scanner: Scanner, rng: np.random.Generator) -> Array:
    """Envelope (samples, lines) of the echoes of `tissue` with scatterers `field` (3, samples, lines)."""
    signal = blur(echoes(tissue, field), scanner)
    signal *= decibel(shadow(tissue.attenuation))
    reverberate(signal, scanner)
    signal *= decibel(scanner.time_gain[:, None] + scanner.contact)
    add_clutter(signal, scanner, rng)
    return np.asarray(np.sqrt(signal[0] ** 2 + signal[1] ** 2), dtype=np.float32)


def echoes(tissue: Tissue, field: Array) -> Array:
    """(2, samples, lines): scatterers of the tissue's level (at any density) plus interfaces."""
    amplitude = decibel(tissue.level)
    amplitude *= (field[2] < tissue.density) / np.sqrt(tissue.density)
    signal = field[:2] * amplitude
    signal[0] += tissue.specular
    return signal


def blur(signal: Array, scanner: Scanner) -> Array:
    """`signal` (2, samples, lines) convolved with the point spread function; mean squares are kept at every depth."""
    signal = correlate1d(signal, gaussian(scanner.axial_sigma), axis=1, mode="reflect")
    near, far = gaussian(scanner.focal_sigma), gaussian(scanner.far_sigma)
    depth = np.linspace(0, 1, signal.shape[1], dtype=np.float32)
    weight = 1 - np.exp(-((depth - np.float32(scanner.focus)) ** 2) / np.float32(0.1))
    first, second = np.sqrt(1 - weight), np.sqrt(weight)
    pad = (len(far) - len(near)) // 2
    correlation = np.float32(np.dot(near, far[pad : pad + len(near)]))  # both blurs see the same scatterers
    scale = 1 / np.sqrt(1 + 2 * first * second * correlation)
    return np.asarray(
        correlate1d(signal, near, axis=2, mode="reflect") * (first * scale)[:, None]
        + correlate1d(signal, far, axis=2, mode="reflect") * (second * scale)[:, None],
        dtype=np.float32,
    )


def gaussian(sigma: float) -> Array:
    """Gaussian kernel of unit energy (sum of squares 1), float32."""
    reach = math.ceil(3.5 * sigma)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return np.asarray(kernel / np.sqrt(np.sum(kernel**2)), dtype=np.float32)


def decibel(level: Array) -> Array:
    """Amplitude of a level in dB."""
    return np.asarray(np.exp(level * DECIBEL), dtype=np.float32)


def shadow(attenuation: Array) -> Array:
    """Level in dB that is left at each sample after the attenuation (dB per imaging depth) above it."""
    return np.asarray(np.cumsum(attenuation, axis=0) * np.float32(-1 / len(attenuation)), dtype=np.float32)


def reverberate(signal: Array, scanner: Scanner) -> None:
    """Adds delayed copies: out(z) = sum over k >= 0 of echo^k in(z - k d); in place."""
    delay = max(1, round(scanner.echo_depth * signal.shape[1]))
    for start in range(delay, signal.shape[1], delay):  # each block adds the finished block above it
        block = signal[:, start : start + delay]
        block += np.float32(scanner.echo) * signal[:, start - delay : start - delay + block.shape[1]]


def add_clutter(signal: Array, scanner: Scanner, rng: np.random.Generator) -> None:
    """Adds haze and electronic noise, which time gain raises with depth; in place."""
    depth = np.linspace(0, 1, signal.shape[1], dtype=np.float32)
    level = decibel(np.float32(scanner.noise) - 30 * (1 - depth)) + decibel(np.float32(scanner.haze) - 10 * depth)
    noise = rng.standard_normal(signal.shape, dtype=np.float32)
    noise[:, :, 1:] += noise[:, :, :-1]  # neighbouring lines share receive elements
    signal += noise * (level * np.float32(0.5))[:, None]


def compress(envelope: Array, scanner: Scanner, gain: float) -> Array:
    """Grey levels (samples, lines) in [0, 255]: 0 dB minus `gain` is white, `dynamic_range` below it is black."""
    level = np.log(np.maximum(envelope, np.float32(1e-6))) / DECIBEL
    grey = np.clip(1 + (level + np.float32(gain)) / np.float32(scanner.dynamic_range), 0, 1)
    grey **= np.float32(scanner.gamma)
    if scanner.smoothing:
        kernel = gaussian(scanner.smoothing)
        kernel = kernel / kernel.sum()
        grey = correlate1d(correlate1d(grey, kernel, axis=0), kernel, axis=1)
    return np.asarray(255 * grey, dtype=np.float32)


def gain_for(envelope: Array, scanner: Scanner, mean_grey: float) -> float:
    """Gain in dB at which the mean grey level of `envelope` is `mean_grey`, as an operator would set it (bisection)."""
    coarse = envelope[::3, ::3]
    low, high = -40.0, 60.0
    for _ in range(12):
        middle = (low + high) / 2
        if float(compress(coarse, scanner, middle).mean()) < mean_grey:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], correlation: tuple[float, float]) -> Array:
    """Gaussian noise (rows, columns) of zero mean and unit variance.

    Args:
        rng: Source of randomness.
        shape: Rows and columns.
        correlation: Width (sigma of the smoothing Gaussian) along rows and columns, as a share of the shape.
    """
    down, across = _spread(shape[0], correlation[0]), _spread(shape[1], correlation[1])
    coarse = rng.standard_normal((down.shape[1], across.shape[1]), dtype=np.float32)
    # In double precision, so that the order of summation, which differs between machines, is lost in the rounding.
    return np.asarray(down @ coarse.astype(np.float64) @ across.T, dtype=np.float32)


@lru_cache(maxsize=256)
def _spread(length: int, correlation: float) -> NDArray[np.float64]:
    """(length, knots): unit-energy Gaussian weights of knots one sigma apart."""
    sigma = correlation * length
    knots = np.arange(-4 * sigma, length + 4 * sigma, sigma)
    weights = np.exp(-0.5 * ((np.arange(length)[:, None] - knots) / sigma) ** 2)
    return np.asarray(weights / np.sqrt(np.sum(weights**2, axis=1, keepdims=True)), dtype=np.float64)
