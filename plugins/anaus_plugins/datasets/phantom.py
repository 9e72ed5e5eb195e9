"""Generated ultrasound of one anatomy: nothing to download; results on it are marked as such everywhere.

Layout: `images/*.png`, `masks/*.png` of the same names, `index.csv` with the columns image, patient, video, frame and
class, and the marker `PHANTOM.txt`. Of K structures the k-th has the grey level k * (255 // K) in the masks.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from anaus_bench.datasets.images import read_gray
from anaus_bench.datasets.layout import check_pairs, check_unique, find_base, fingerprint, is_phantom, start_phantoms
from anaus_bench.datasets.listing import File, first_names, list_files, naming, natural_key
from anaus_bench.datasets.text import read_table
from anaus_bench.errors import BadMaskValues, EmptyMask, LabelError, LayoutError, SizeMismatch
from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import Dataset, Index, Picture, Sample
from anaus_bench.settings.base import Settings

COLUMNS = ("image", "patient", "video", "frame", "class")
FRAMES = 6  # per patient; fewer where that leaves fewer than LEAST_PATIENTS
LEAST_PATIENTS = 8

Anatomy = Literal["breast", "lung", "thyroid", "heart"]
CLASSES: Mapping[Anatomy, tuple[str, ...]] = {
    "breast": ("benign", "malignant", "normal"),
    "lung": ("covid", "pneumonia", "regular"),
    "thyroid": ("benign", "malignant", "normal"),
    "heart": ("2ch", "4ch", "2ch-infarct", "4ch-infarct"),
}
STRUCTURES: Mapping[Anatomy, tuple[str, ...]] = {
    "breast": ("lesion",),
    "lung": ("pleura", "rib", "a-line", "b-line", "consolidation", "effusion"),
    "thyroid": ("gland", "trachea", "carotid", "nodule"),
    "heart": ("left ventricle", "myocardium", "left atrium"),
}


class PhantomAnatomy(Settings):
    """What is generated."""

    anatomy: Anatomy = Field("breast", description="Body part; it fixes the classes and the structures of the masks.")


class Phantom(Dataset[PhantomAnatomy]):
    """One video of each patient; folds are grouped by patient."""

    name = "phantom"
    settings_class = PhantomAnatomy
    title = "Generated ultrasound of the breast, or with data.phantom.anatomy of lung, thyroid or heart"
    classes = CLASSES["breast"]
    structures = STRUCTURES["breast"]
    licence = "Apache-2.0, as the generator's"
    how_to_get = "Write it with 'anaus-bench data demo phantom -o FOLDER'."
    reference = "convolution model after Bamber and Dickinson, 1980, doi:10.1088/0031-9155/25/3/006"

    def __init__(self, settings: PhantomAnatomy) -> None:
        super().__init__(settings)
        # Of this instance; those of the class are the default's.
        self.classes = CLASSES[settings.anatomy]  # type: ignore[misc]
        self.structures = STRUCTURES[settings.anatomy]  # type: ignore[misc]

    def scan(self, root: Path) -> Index:
        """Samples in the order of their file names.

        Raises:
            LayoutError: No `index.csv`, wrong columns, or files that it does not list or that are not there.
            LabelError: Unknown class.
            MissingMask, OrphanMask: Images and masks are not pairs.
        """
        base = find_base(self, root, (), ("images", "masks"))
        images = list_files(self, root, base / "images", (".png",))
        masks = list_files(self, root, base / "masks", (".png",))
        check_unique(self, root, images + masks)
        check_pairs(self, root, images, masks)
        rows = self._rows(root)
        names = {file.name for file in images}
        if names != set(rows):
            odd = sorted(names ^ set(rows), key=natural_key)
            raise LayoutError(
                f"{self.name}: index.csv and images/ in {str(root)!r} differ in {first_names(odd)}; write it again"
            )
        samples = tuple(self._sample(file, rows[file.name]) for file in images)
        index = File("index.csv", 0)
        return Index(root, samples, fingerprint(root, [*images, *masks, index]), phantom=is_phantom(root))

    def read(self, index: Index, sample: Sample) -> Picture:
        """Image and mask.

        Raises:
            UnreadableFile: A file cannot be decoded.
            SizeMismatch: The mask has another size than the image.
            BadMaskValues: The mask has other grey levels than those of the structures, such as of another anatomy.
            EmptyMask: A breast lesion's class without lesion.
        """
        (path,) = sample.mask_paths
        with naming(self, index.root):
            image, levels = read_gray(index.root / sample.path), read_gray(index.root / path)
        if levels.shape != image.shape:
            raise SizeMismatch(
                f"{self.name}: {path!r} in {str(index.root)!r} has {levels.shape[1]} x {levels.shape[0]} pixels, its "
                f"image {image.shape[1]} x {image.shape[0]}; write it again"
            )
        known = self._levels()
        if odd := sorted(set(np.unique(levels).tolist()) - set(known.tolist())):
            raise BadMaskValues(
                f"{self.name}: {path!r} in {str(index.root)!r} has the grey levels {odd[:5]}; those of "
                f"{self.settings.anatomy} are {known.tolist()}; set data.phantom.anatomy, or write it again"
            )
        if self.settings.anatomy == "breast" and sample.label != self.classes.index("normal") and not levels.any():
            raise EmptyMask(f"{self.name}: the mask {path!r} in {str(index.root)!r} is all zero; write it again")
        return Picture(image, np.searchsorted(known, levels).astype(np.uint8))

    def write_phantoms(self, root: Path, count: int, size: int, seed: int) -> None:
        """`count` images of about `count / 6` patients whose classes take turns."""
        from PIL import Image

        from anaus_bench.simulator.phantoms import clips

        start_phantoms(self, root, size, seed)
        for folder in ("images", "masks"):
            (root / folder).mkdir()
        frames = max(1, min(FRAMES, count // LEAST_PATIENTS))
        kinds = [self.classes[patient % len(self.classes)] for patient in range(-(-count // frames))]
        rows = []
        made = clips(self.settings.anatomy, self.name, kinds, frames=frames, size=size, seed=seed)
        for patient, clip in enumerate(made):
            # A structure of several instances, such as nodules, has one grey level.
            levels = self._levels()[[0, *(1 + self.structures.index(name) for name in clip.structures)]]
            for frame in range(min(frames, count - patient * frames)):
                name = f"patient{patient:04d}_frame{frame:02d}.png"
                Image.fromarray(clip.images[frame]).save(root / "images" / name, compress_level=1)
                Image.fromarray(levels[clip.labels[frame]]).save(root / "masks" / name)
                rows.append((name, f"patient{patient:04d}", f"patient{patient:04d}_video0", frame, kinds[patient]))
        with (root / "index.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([COLUMNS, *rows])

    def _levels(self) -> np.ndarray:
        """(K + 1,) uint8: grey level of no structure and of each of the K structures in the masks."""
        count = len(self.structures)
        return np.arange(count + 1, dtype=np.uint8) * np.uint8(255 // count)

    def _rows(self, root: Path) -> dict[str, dict[str, str]]:
        """Rows of `index.csv` by image."""
        path = root / "index.csv"
        if not path.is_file():
            raise LayoutError(f"{self.name}: 'index.csv' is missing in {str(root)!r}; write the data set again")
        with naming(self, root):
            rows = read_table(path, COLUMNS, root=root)
        by_image = {row["image"]: row for row in rows}
        if len(by_image) < len(rows):
            raise LayoutError(f"{self.name}: {str(path)!r} lists an image twice; write the data set again")
        return by_image

    def _sample(self, file: File, row: dict[str, str]) -> Sample:
        if row["class"] not in self.classes:
            raise LabelError(
                f"{self.name}: {file.name!r} has the class {row['class']!r}; known: {', '.join(self.classes)}"
            )
        if not (row["frame"] or "").isdecimal():
            raise LayoutError(
                f"{self.name}: {file.name!r} has the frame {row['frame']!r} in index.csv; expected a number"
            )
        return Sample(
            sample_id=file.path,
            group_id=row["patient"],
            path=file.path,
            mask_paths=(f"masks/{file.name}",),
            label=self.classes.index(row["class"]),
            video_id=row["video"],
            frame_index=int(row["frame"]),
            patient_id=row["patient"],
        )


@hookimpl
def anaus_datasets() -> list[type[Phantom]]:
    """The generated data set."""
    return [Phantom]
