"""Draws examples of the generated patients: python docs/make_phantom_sheet.py docs/phantoms.png.

One row of each anatomy, four patients in it: the picture, and beside it the same with the outlines of its labels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anaus_bench.simulator.phantoms import KINDS, clips

SIDE = 150  # pixels of one picture
PATIENTS = 4  # in a row
GREYS = 128
COLOURS = ((255, 90, 80), (90, 210, 110), (90, 140, 255), (255, 215, 60), (60, 215, 220), (240, 110, 240))
PALETTE = [(round(255 * grey / (GREYS - 1)),) * 3 for grey in range(GREYS)] + list(COLOURS)


def outlined(image: NDArray[np.uint8], labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W) uint8 places in `PALETTE`: the picture with the inner border of each structure in its colour."""
    padded = np.pad(labels, 1, mode="edge")
    neighbours = padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]
    border = (labels > 0) & np.any([labels != neighbour for neighbour in neighbours], axis=0)
    return np.where(border, GREYS + (labels - 1) % len(COLOURS), image // 2).astype(np.uint8)


def row(anatomy: str, seed: int) -> NDArray[np.uint8]:
    """(SIDE, 2 * PATIENTS * SIDE) uint8 places in `PALETTE`: patients of one anatomy, their kinds in turn."""
    kinds = [KINDS[anatomy][patient % len(KINDS[anatomy])] for patient in range(PATIENTS)]
    cells = []
    for clip in clips(anatomy, "sheet", kinds, frames=1, size=SIDE, seed=seed):
        cells += [clip.images[0] // 2, outlined(clip.images[0], clip.labels[0])]
    return np.concatenate(cells, axis=1)


def main() -> None:
    """Write the sheet as a PNG."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, help="PNG file to write")
    parser.add_argument("--seed", type=int, default=3, help="other patients for another seed")
    arguments = parser.parse_args()
    sheet = Image.fromarray(np.concatenate([row(anatomy, arguments.seed) for anatomy in KINDS], axis=0), mode="P")
    sheet.putpalette([value for colour in PALETTE for value in colour])
    sheet.save(arguments.path, optimize=True)


if __name__ == "__main__":
    main()
