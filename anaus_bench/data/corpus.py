"""The packed corpus: every image decoded once, letterboxed to one size, in a memory-mapped array.

Folder: `images.npy` (N, S, S) uint8, `truth.npy` (N, S, S) uint8 if any data set has masks, `index.json`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True)
class Entry:
    """One packed image: where it is from, its class label in the corpus's numbering (-1 = none), and its valid box.

    `box` is (top, left, height, width) in packed pixels: the part that holds the image; the rest is letterbox.
    """

    sample_id: str
    dataset: str
    group_id: str
    label: int
    video_id: str | None
    frame_index: int | None
    patient_id: str | None
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class PackedCorpus:
    """Packed images with their index; the arrays are memory maps.

    Attributes:
        images: (N, S, S) uint8.
        truth: (N, S, S) uint8 structure ids (0 = none, k = `structures[k-1]`), or None.
        entries: One per image.
        structures: Names of all structures of all its data sets.
        annotated: Per data set name, the structure ids that its masks mark; others are unknown there, not absent.
        classes: Names of the class labels.
        phantom: Whether any image is generated.
    """

    images: NDArray[np.uint8]
    truth: NDArray[np.uint8] | None
    entries: tuple[Entry, ...]
    structures: tuple[str, ...]
    annotated: dict[str, tuple[int, ...]]
    classes: tuple[str, ...]
    phantom: bool

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def size(self) -> int:
        """Side of the packed images in pixels."""
        return int(self.images.shape[1])

    def take(self, rows: NDArray[np.int64]) -> PackedCorpus:
        """The images of these rows, copied into memory."""
        truth = None if self.truth is None else self.truth[rows]
        entries = tuple(self.entries[row] for row in rows)
        return dataclasses.replace(self, images=self.images[rows], truth=truth, entries=entries)

    def boxes(self) -> NDArray[np.float32]:
        """(N, 4) float32: the valid boxes (top, left, height, width) in packed pixels."""
        return np.array([entry.box for entry in self.entries], dtype=np.float32).reshape(-1, 4)

    def labels(self) -> NDArray[np.int64]:
        """(N,) int64: class labels, -1 = none."""
        return np.array([entry.label for entry in self.entries], dtype=np.int64)


def letterbox(
    array: NDArray[np.uint8], size: int, *, labels: bool
) -> tuple[NDArray[np.uint8], tuple[int, int, int, int]]:
    """(H, W) resized into (size, size) with its aspect ratio kept, zeros around; and the box it fills.

    Args:
        array: (H, W) uint8.
        size: Side of the result in pixels.
        labels: Whether the values are ids (nearest neighbour) or grey levels (antialiased bilinear).
    """
    height, width = array.shape
    scale = size / max(height, width)
    new = max(1, round(height * scale)), max(1, round(width * scale))
    method = Image.Resampling.NEAREST if labels else Image.Resampling.BILINEAR
    resized = np.asarray(Image.fromarray(array).resize((new[1], new[0]), method))
    top, left = (size - new[0]) // 2, (size - new[1]) // 2
    packed = np.zeros((size, size), dtype=np.uint8)
    packed[top : top + new[0], left : left + new[1]] = resized
    return packed, (top, left, *new)


def write_index(
    folder: Path,
    entries: Sequence[Entry],
    structures: Sequence[str],
    annotated: dict[str, tuple[int, ...]],
    classes: Sequence[str],
    phantom: bool,
) -> None:
    """Writes `index.json` beside the arrays."""
    columns: dict[str, list[Any]] = {name: [] for name in Entry.__dataclass_fields__}
    for entry in entries:
        for name, value in asdict(entry).items():
            columns[name].append(value)
    index = {
        "entries": columns,
        "structures": list(structures),
        "annotated": {name: list(ids) for name, ids in annotated.items()},
        "classes": list(classes),
        "phantom": phantom,
    }
    (folder / "index.json").write_text(json.dumps(index))


def open_corpus(folder: Path) -> PackedCorpus:
    """Opens a packed corpus; the arrays stay on disk until they are read."""
    index = json.loads((folder / "index.json").read_text())
    rows = zip(*index["entries"].values(), strict=True)
    entries = [Entry(**dict(zip(index["entries"], row, strict=True))) for row in rows]
    entries = [dataclasses.replace(entry, box=(*entry.box,)) for entry in entries]  # JSON knows lists alone
    truth = folder / "truth.npy"
    return PackedCorpus(
        images=np.load(folder / "images.npy", mmap_mode="r"),
        truth=np.load(truth, mmap_mode="r") if truth.exists() else None,
        entries=tuple(entries),
        structures=tuple(index["structures"]),
        annotated={name: tuple(ids) for name, ids in index["annotated"].items()},
        classes=tuple(index["classes"]),
        phantom=bool(index["phantom"]),
    )
