"""TN3K: thyroid images with nodule masks, of 2,421 patients (Gong et al., 2021 and 2023).

The patients' ids are not published, so near-duplicates are found by perceptual hash and kept together; other images of
one patient may still fall into two folds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from anaus_bench.datasets.images import image_size, read_marked
from anaus_bench.datasets.layout import count_warnings, find_base, fingerprint, is_phantom, list_pairs, start_phantoms
from anaus_bench.datasets.listing import File, first_names, list_files, naming, normal
from anaus_bench.datasets.text import read_json, read_rows
from anaus_bench.errors import CountMismatch, LabelError, LayoutError, UnreadableFile, WrongVersion
from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import Dataset, Index, Picture, Sample
from anaus_bench.settings.base import Settings

PARTS = ("trainval", "test")
FOLDS = 5
TESTED = 614 / 3493
LOOKED_AT = 12  # images whose sizes tell the original from a resized copy


class TN3KSettings(Settings):
    """Which folds are meant."""

    protocol: Literal["published", "cv_all"] = Field(
        "published",
        description="published: the five lists of the publishers over trainval, and a fixed test set of 614 images; "
        "cv_all: folds over all 3,493 images, near-duplicates kept together.",
    )


class TN3K(Dataset[TN3KSettings]):
    """`{trainval,test}-image/0000.jpg` with `{trainval,test}-mask/0000.jpg`."""

    name = "tn3k"
    settings_class = TN3KSettings
    title = "TN3K thyroid nodule segmentation"
    classes = ("benign", "malignant")
    structures = ("nodule",)
    licence = "none stated for the data"
    url = "https://github.com/haifangong/TRFE-Net-for-thyroid-nodule-segmentation"
    how_to_get = (
        "Take the thyroid data set from the link in the README of "
        "https://github.com/haifangong/TRFE-Net-for-thyroid-nodule-segmentation and unpack it (all .rar volumes); the "
        "root "
        "is the folder tn3k or the one that holds it."
    )
    expected_count = 3493
    reference = (
        "Gong et al., Thyroid region prior guided attention for ultrasound segmentation of thyroid nodules, "
        "Computers in Biology and Medicine 155, 2023, doi:10.1016/j.compbiomed.2022.106389"
    )

    def scan(self, root: Path) -> Index:
        """One sample of each pair, test images first (natural order of the paths).

        Raises:
            DatasetNotFound, LayoutError: Root or folders missing, no image, or a table of labels that cannot be read.
            DuplicateId, MissingMask, OrphanMask: Images and masks are not pairs.
            LabelError: A label other than 0 and 1.
            WrongVersion: A copy whose images were all resized to one square.
        """
        folders = [f"{part}-{kind}" for part in PARTS for kind in ("image", "mask")]
        base = find_base(self, root, ("tn3k", "Thyroid Dataset/tn3k"), folders)
        warnings: list[str] = []
        samples: list[Sample] = []
        files: list[File] = []
        for part in sorted(PARTS):
            pairs = list_pairs(self, base, base / f"{part}-image", base / f"{part}-mask", (".jpg",))
            self._refuse_resized(base, [image for image, _ in pairs])
            labels = self._labels(base, part, {image.stem for image, _ in pairs}, warnings)
            samples += [
                Sample(image.path, image.path, image.path, (mask.path,), label=labels.get(image.stem))
                for image, mask in pairs
            ]
            files += [file for pair in pairs for file in pair]
        unlabelled = [sample.path for sample in samples if sample.label is None]
        if unlabelled and len(unlabelled) < len(samples):
            warnings.append(f"{self.name}: {len(unlabelled)} images have no class label: {first_names(unlabelled)}")
        files += [file for file in list_files(self, base, base, (".csv", ".json")) if not file.folder]
        phantom = is_phantom(root, base)
        warnings += count_warnings(self, len(samples), phantom)
        return Index(base, tuple(samples), fingerprint(base, files), phantom, tuple(warnings))

    def read(self, index: Index, sample: Sample) -> Picture:
        """Image and all nodules (the masks are JPEG, so that their edges are gray).

        Raises:
            DataError: As `read_marked`.
        """
        return read_marked(self, index, sample)

    def groups(self, index: Index) -> tuple[str, ...]:
        """The first sample of each image's near-duplicates (256-bit perceptual hash, at most 40 bits differ)."""
        from anaus_bench.datasets.near_duplicates import duplicate_groups

        return duplicate_groups(self, index)

    def published_folds(self, index: Index) -> list[int] | None:
        """Fold of each sample from `tn3k-trainval-fold{0..4}.json`, -1 for the fixed test set; None with `cv_all`.

        A list holds positions in the trainval images in numeric order.

        Raises:
            LayoutError: A list is missing or damaged.
            CountMismatch: The lists do not deal each trainval image into one fold.
        """
        if self.settings.protocol == "cv_all":
            return None
        trainval = [number for number, sample in enumerate(index.samples) if sample.path.startswith("trainval")]
        folds = [-1] * len(index.samples)
        dealt: list[int] = []
        for fold in range(FOLDS):
            held_out = self._positions(index.root, fold)
            dealt += held_out
            for position in held_out:
                if 0 <= position < len(trainval):
                    folds[trainval[position]] = fold
        if sorted(dealt) != list(range(len(trainval))):
            raise CountMismatch(
                f"{self.name}: the fold lists in {str(index.root)!r} deal out {len(dealt)} positions "
                f"({len(set(dealt))} different ones), but there are {len(trainval)} trainval images; use the whole "
                "data set, "
                f"or --set data.{self.name}.protocol=cv_all"
            )
        return folds

    def write_phantoms(self, root: Path, count: int, size: int, seed: int) -> None:
        """`count` patients (at least two), one in three malignant, as JPEG of quality 75 to 95 and different sizes."""
        from anaus_bench.simulator.phantoms import clips

        start_phantoms(self, root, size, seed)
        count = max(count, 2)
        tested = max(1, round(TESTED * count))
        numbers = [*range(count - tested), *range(tested)]
        kinds = ["malignant" if patient % 3 == 2 else "benign" for patient in range(count)]
        tables: dict[str, list[str]] = {part: [] for part in PARTS}
        for part in PARTS:
            for kind in ("image", "mask"):
                (root / f"{part}-{kind}").mkdir()
        made = clips("thyroid", self.name, kinds, frames=1, size=size, seed=seed)
        for patient, (number, clip) in enumerate(zip(numbers, made, strict=True)):
            part = "trainval" if patient < count - tested else "test"
            nodules = [position for position, name in enumerate(clip.structures, start=1) if name == "nodule"]
            mask = np.isin(clip.labels[0], nodules)
            _write_pair(root, part, number, clip.images[0], mask, patient)
            tables[part].append(f"{number:04d}.jpg,{int(clip.kind == 'malignant')}\n")
        for part in PARTS:
            (root / f"label4{part}.csv").write_text("".join(tables[part]), encoding="utf-8")
        positions = range(count - tested)
        for fold in range(FOLDS):
            lists = {
                "train": [position for position in positions if position % FOLDS != fold],
                "val": [position for position in positions if position % FOLDS == fold],
            }
            (root / f"tn3k-trainval-fold{fold}.json").write_text(json.dumps(lists), encoding="utf-8")

    def _labels(self, base: Path, part: str, stems: set[str], warnings: list[str]) -> dict[str, int]:
        """Class by the image's stem, from `label4trainval.csv` or `label4test.csv`; empty if the table is missing."""
        path = base / f"label4{part}.csv"
        if not path.is_file():
            warnings.append(f"{self.name}: {path.name!r} is missing in {str(base)!r}; its images have no class label")
            return {}
        labels: dict[str, int] = {}
        with naming(self, base):
            rows = [(row[0], row[-1].removesuffix(".0")) for row in read_rows(path, root=base) if len(row) > 1]
        for name, value in rows[1:] if rows and not any(map(str.isdigit, rows[0][0])) else rows:  # a heading
            if value not in ("0", "1"):
                raise LabelError(
                    f"{self.name}: {str(path)!r} gives {name!r} the label {value!r}; known: 0 (benign), 1 (malignant)"
                )
            stem = normal(name.rpartition(".")[0] or name)
            if labels.setdefault(stem, int(value)) != int(value):
                raise LabelError(f"{self.name}: {str(path)!r} gives {name!r} two labels; keep one row")
        if not stems & set(labels):
            raise LayoutError(
                f"{self.name}: {str(path)!r} names no image of {part}-image/: {first_names(list(labels)) or 'no row'}; "
                "expected rows such as '0000.jpg,1': use the official file"
            )
        return labels

    def _refuse_resized(self, base: Path, images: list[File]) -> None:
        """The original's images differ in size; copies made for a network are all one square."""
        looked_at = images[:: max(1, len(images) // LOOKED_AT)][:LOOKED_AT]
        with naming(self, base):
            sizes = {image_size(base / file.path) for file in looked_at}
        if len(looked_at) >= LOOKED_AT // 2 and len(sizes) == 1:
            (width, height) = sizes.pop()
            if width == height:
                raise WrongVersion(
                    f"{self.name}: all images in {str(base)!r} have {width} x {height} pixels, a resized copy; "
                    "needed: the "
                    f"original, whose sizes differ (mean 412 x 337); {self.how_to_get}"
                )

    def _positions(self, root: Path, fold: int) -> list[int]:
        path = root / f"tn3k-trainval-fold{fold}.json"
        other = f"take other folds with --set data.{self.name}.protocol=cv_all"
        try:
            lists = read_json(path, root=root)
        except UnreadableFile as error:
            raise LayoutError(f"{self.name}: {error}, or {other}") from error
        positions = lists.get("val") if isinstance(lists, dict) else None
        if not isinstance(positions, list) or not all(type(position) is int for position in positions):
            raise LayoutError(
                f"{self.name}: {str(path)!r} holds no list 'val' of whole numbers; copy it again, or {other}"
            )
        return positions


def _write_pair(
    root: Path, part: str, number: int, image: NDArray[np.uint8], mask: NDArray[np.bool_], patient: int
) -> None:
    """Cuts up to a tenth off two borders, as long as no part of the mask goes, and writes both."""
    from PIL import Image

    height, width = mask.shape
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top = min(patient * 7 % 11 * height // 110, rows[0])
    right = max(width - patient * 5 % 13 * width // 130, columns[-1] + 1)
    for kind, array in (("image", image), ("mask", mask)):
        cut = Image.fromarray(array[top:, :right]).convert("L")
        cut.save(root / f"{part}-{kind}" / f"{number:04d}.jpg", quality=75 + patient % 21)


@hookimpl
def anaus_datasets() -> list[type[TN3K]]:
    """TN3K."""
    return [TN3K]
