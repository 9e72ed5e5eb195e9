"""Near-duplicate images by perceptual hash: the same view saved twice, cropped a little, or marked.

A hash holds the signs, about their median, of the 16 x 16 lowest frequencies of the cosine transform of the image
reduced to 64 x 64 (Zauner, 2010, "Implementation and benchmarking of perceptual image hash functions").
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 16
REDUCED = 64


def perceptual_hash(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(32,) uint8: the 256 packed bits of an image (H, W) uint8."""
    reduced = Image.fromarray(image).resize((REDUCED, REDUCED), Image.Resampling.LANCZOS)
    basis = _cosines()
    spectrum = basis @ np.asarray(reduced, dtype=np.float64) @ basis.T
    return np.packbits(spectrum > np.median(spectrum))


def near_duplicate_groups(hashes: NDArray[np.uint8], distance: int) -> list[int]:
    """Group number of each image: images are of one group if a chain of pairs links them.

    Args:
        hashes: (N, 32) uint8 perceptual hashes.
        distance: Largest number of differing bits of a pair.

    Returns:
        N numbers, from 0 in order of first appearance.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first, second = close_pairs(hashes, distance)
    links = coo_array((np.ones(len(first), dtype=bool), (first, second)), shape=(len(hashes), len(hashes)))
    _, component = connected_components(links, directed=False)
    _, appearance, group = np.unique(component, return_index=True, return_inverse=True)
    return [int(number) for number in np.argsort(np.argsort(appearance))[group]]


def close_pairs(
    hashes: NDArray[np.uint8], distance: int, block: int = 1024
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Positions i < j of all pairs whose hashes differ in at most `distance` bits; `block` rows at a time."""
    signs = np.unpackbits(hashes, axis=1).astype(np.float32) * 2 - 1
    least = signs.shape[1] - 2 * distance  # a product of signs is the bits that agree minus those that differ
    firsts, seconds = [], []
    for start in range(0, len(signs), block):
        rows, columns = np.nonzero(signs[start : start + block] @ signs[start:].T >= least)
        upper = columns > rows
        firsts.append(rows[upper] + start)
        seconds.append(columns[upper] + start)
    if not firsts:
        return np.empty(0, dtype=np.intp), np.empty(0, dtype=np.intp)
    return np.concatenate(firsts), np.concatenate(seconds)


@lru_cache(maxsize=1)
def _cosines() -> NDArray[np.float64]:
    """(SIDE, REDUCED) rows of the orthonormal cosine transform of type II."""
    frequency, position = np.arange(SIDE)[:, None], np.arange(REDUCED)
    basis = np.cos(math.pi * frequency * (position + 0.5) / REDUCED) * math.sqrt(2 / REDUCED)
    basis[0] /= math.sqrt(2)
    return basis
