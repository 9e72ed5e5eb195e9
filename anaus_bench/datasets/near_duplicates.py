"""Near-duplicate images by perceptual hash: the same view saved twice, cropped a little, or marked.

A hash holds the signs, about their median, of the 16 x 16 lowest frequencies of the cosine transform of the image
reduced to 64 x 64 (Zauner, 2010, "Implementation and benchmarking of perceptual image hash functions").
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anaus_bench.interfaces import Dataset, Index

SIDE = 16
REDUCED = 64
BITS = SIDE * SIDE
NEAR = 40  # differing bits up to which two images count as one view; unrelated ones differ in about 128


def perceptual_hash(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(32,) uint8: the 256 packed bits of an image (H, W) uint8."""
    reduced = Image.fromarray(image).resize((REDUCED, REDUCED), Image.Resampling.LANCZOS)
    basis = _cosines()
    spectrum = basis @ np.asarray(reduced, dtype=np.float64) @ basis.T
    return np.packbits(spectrum > np.median(spectrum))


def image_hashes(dataset: Dataset[Any], index: Index) -> NDArray[np.uint8]:
    """(N, 32) uint8: the hashes of all samples, decoded in their order.

    Raises:
        DataError: As `Dataset.read`.
    """
    hashes = np.empty((len(index.samples), BITS // 8), dtype=np.uint8)
    for row, sample in enumerate(index.samples):
        hashes[row] = perceptual_hash(dataset.read(index, sample).image)
    return hashes


def duplicate_groups(dataset: Dataset[Any], index: Index, distance: int = NEAR) -> tuple[str, ...]:
    """Group of each sample where no patient is known: the first sample of its near-duplicates.

    Raises:
        DataError: As `Dataset.read`.
    """
    first: dict[int, str] = {}
    numbers = near_duplicate_groups(image_hashes(dataset, index), distance)
    return tuple(
        first.setdefault(number, sample.sample_id) for number, sample in zip(numbers, index.samples, strict=True)
    )


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

    distinct, inverse = np.unique(hashes, axis=0, return_inverse=True)
    first, second = close_pairs(distinct, distance)
    links = coo_array((np.ones(len(first), dtype=bool), (first, second)), shape=(len(distinct), len(distinct)))
    _, component = connected_components(links, directed=False)
    _, appearance, group = np.unique(component[inverse.ravel()], return_index=True, return_inverse=True)
    return [int(number) for number in np.argsort(np.argsort(appearance))[group]]


def close_pairs(
    hashes: NDArray[np.uint8], distance: int, block: int = 2048
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Positions i < j of all pairs whose hashes differ in at most `distance` bits; `block` rows at a time."""
    found = list(close_blocks(hashes, hashes, distance, block, ordered=True))
    if not found:
        return np.empty(0, dtype=np.intp), np.empty(0, dtype=np.intp)
    firsts, seconds = zip(*found, strict=True)
    return np.concatenate(firsts), np.concatenate(seconds)


def close_blocks(
    first: NDArray[np.uint8],
    second: NDArray[np.uint8],
    distance: int,
    block: int = 2048,
    *,
    ordered: bool = False,
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Positions (i in `first`, j in `second`) of all pairs that differ in at most `distance` bits, block by block.

    The bits are compared as a matrix product of signs: agreeing bits minus differing ones, exact in float32.

    Args:
        first: (N, 32) uint8 hashes.
        second: (M, 32) uint8 hashes.
        distance: Largest number of differing bits.
        block: Rows and columns compared at a time, which bounds the memory.
        ordered: Only pairs i < j, for a set compared with itself.
    """
    rows, columns = _signs(first), _signs(second)
    least = BITS - 2 * distance
    for top in range(0, len(rows), block):
        for left in range(top if ordered else 0, len(columns), block):
            close = rows[top : top + block] @ columns[left : left + block].T >= least
            if close.any():
                i, j = np.nonzero(close)
                i, j = i + top, j + left
                if ordered:
                    i, j = i[i < j], j[i < j]
                yield i, j


def _signs(hashes: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.unpackbits(hashes, axis=1).astype(np.float32) * 2 - 1


@lru_cache(maxsize=1)
def _cosines() -> NDArray[np.float64]:
    """(SIDE, REDUCED) rows of the orthonormal cosine transform of type II."""
    frequency, position = np.arange(SIDE)[:, None], np.arange(REDUCED)
    basis = np.cos(math.pi * frequency * (position + 0.5) / REDUCED) * math.sqrt(2 / REDUCED)
    basis[0] /= math.sqrt(2)
    return basis
