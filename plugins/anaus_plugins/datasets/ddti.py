"""DDTI: thyroid nodules of the Digital Database of Thyroid Ultrasound Images (Pedraza et al., 2015).

Two editions are read: the cleaned one of 637 images with masks, whose case numbers are lost, and the original one with
an XML file of polygons for each case.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from anaus_bench.datasets.images import read_marked, read_picture
from anaus_bench.datasets.layout import (
    check_unique,
    count_warnings,
    fingerprint,
    is_phantom,
    list_pairs,
    locate,
    start_phantoms,
)
from anaus_bench.datasets.listing import File, first_names, is_folder, list_files, naming, visible
from anaus_bench.datasets.text import parse_json, read_xml
from anaus_bench.errors import EmptyMask, LayoutError, MissingMask, OrphanMask, UnreadableFile
from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import Dataset, Index, Picture, Sample
from anaus_bench.lazy import Image
from anaus_bench.settings.base import Settings

FOLDERS = (("image", "mask"), ("p_image", "p_mask"))
EDITIONS = ("1_or_data", "2_preprocessed_data/stage1")
WRAPPERS = tuple(
    "/".join(part for part in (outer, inner, edition) if part)
    for outer in ("", "DDTI dataset")
    for inner in ("", "DDTI")
    for edition in (*EDITIONS, "")
    if outer or inner or edition
)
FARTHEST = 1e6  # pixels
Polygon = list[tuple[float, float]]


class DDTI(Dataset[Settings]):
    """`image/0000.PNG` with `mask/0000.PNG`, or `<case>_<image>.jpg` with `<case>.xml`."""

    name = "ddti"
    title = "DDTI thyroid nodules"
    structures = ("nodule",)
    licence = "open access, no licence text"
    url = "https://github.com/haifangong/TRFE-Net-for-thyroid-nodule-segmentation"
    how_to_get = (
        "Take the thyroid data set from the link in the README of "
        "https://github.com/haifangong/TRFE-Net-for-thyroid-nodule-segmentation, unpack it and the DDTI.zip inside; "
        "the root "
        "is the folder that holds image/ and mask/, or the one above it."
    )
    expected_count = 637
    reference = "Pedraza et al., An open access thyroid ultrasound image database, SIPAIM 2015, doi:10.1117/12.2073532"

    def scan(self, root: Path) -> Index:
        """One sample of each pair, or of each image with a polygon.

        Raises:
            DatasetNotFound, LayoutError: Root or folders missing, no image, or names that are not the official ones.
            DuplicateId, MissingMask, OrphanMask: Images and masks (or XML files) are not pairs.
            UnreadableFile: An XML file cannot be read.
        """
        base = locate(
            self,
            root,
            WRAPPERS,
            lambda folder: (
                _pair_folders(folder) is not None or any(path.suffix == ".xml" for path in visible(self, folder))
            ),
            "the folders image and mask (or p_image and p_mask; or .jpg and .xml files)",
        )
        folders = _pair_folders(base)
        phantom = is_phantom(root, base)
        if folders is None:
            return self._original(base, phantom)
        pairs = list_pairs(self, base, base / folders[0], base / folders[1], (".png",))
        samples = tuple(Sample(image.path, image.path, image.path, (mask.path,)) for image, mask in pairs)
        files = [file for pair in pairs for file in pair]
        return Index(base, samples, fingerprint(base, files), phantom, count_warnings(self, len(samples), phantom))

    def read(self, index: Index, sample: Sample) -> Picture:
        """Image and nodules: what the mask marks, or the polygons filled.

        Raises:
            DataError: As `read_marked`.
        """
        from PIL import ImageDraw

        if not sample.mask_paths[0].endswith(".xml"):
            return read_marked(self, index, sample)
        with naming(self, index.root):
            picture = read_picture(index.root, sample.path, ())
            image = picture.image
            polygons = _read_polygons(index.root / sample.mask_paths[0])[_number(sample.path)]
            mask = Image.new("L", (image.shape[1], image.shape[0]))
            for polygon in polygons:
                ImageDraw.Draw(mask).polygon(polygon, fill=1, outline=1)
            filled = np.array(mask, dtype=np.uint8)
            if not filled.any():
                raise EmptyMask(f"the polygons of {sample.path!r} lie outside of the image; copy both files again")
            return Picture(image, filled, picture.remarks)

    def groups(self, index: Index) -> tuple[str, ...]:
        """The case where it is known, else the first sample of each image's near-duplicates (40 of 256 bits)."""
        from anaus_bench.datasets.near_duplicates import duplicate_groups

        if all(sample.patient_id is not None for sample in index.samples):
            return super().groups(index)
        return duplicate_groups(self, index)

    def write_phantoms(self, root: Path, count: int, size: int, seed: int) -> None:
        """`count` patients with nodules, in the edition of 637 images."""
        from anaus_bench.simulator.phantoms import clips

        start_phantoms(self, root, size, seed)
        base = root / EDITIONS[0]
        for folder in FOLDERS[0]:
            (base / folder).mkdir(parents=True)
        kinds = ["malignant" if patient % 3 == 2 else "benign" for patient in range(count)]
        rows = ["ID,CATE\n"]
        for number, clip in enumerate(clips("thyroid", self.name, kinds, frames=1, size=size, seed=seed)):
            nodules = [position for position, name in enumerate(clip.structures, start=1) if name == "nodule"]
            mask = np.isin(clip.labels[0], nodules).astype(np.uint8) * 255
            for folder, array in zip(FOLDERS[0], (clip.images[0], mask), strict=True):
                Image.fromarray(array).save(base / folder / f"{number:04d}.PNG", compress_level=1)
            rows.append(f"{number:04d}.PNG,{int(clip.kind == 'malignant')}\n")
        (base / "category.csv").write_text("".join(rows), encoding="utf-8")

    def _original(self, base: Path, phantom: bool) -> Index:
        """The original edition; images without a polygon are left out, and said so."""
        images = list_files(self, base, base, (".jpg", ".jpeg"))
        cases = list_files(self, base, base, (".xml",))
        check_unique(self, base, images)
        case_of = {file.stem: file for file in cases}
        strange = [file.path for file in images if not re.fullmatch(r"\d+_\d+", file.stem)]
        if strange or not images:
            raise LayoutError(
                f"{self.name}: {str(base)!r} holds {len(images)} .jpg files, of which {len(strange)} are not named as "
                f"'<case>_<image>.jpg': {first_names(strange)}; use the official files"
            )
        alone = [file.path for file in images if _case_number(file.path) not in case_of]
        if alone:
            raise MissingMask(
                f"{self.name}: {len(alone)} of {len(images)} images in {str(base)!r} have no XML file of their case: "
                f"{first_names(alone)}; {self.how_to_get}"
            )
        numbers = {_case_number(file.path) for file in images}
        orphans = [file.path for file in cases if file.stem not in numbers]
        if orphans:
            raise OrphanMask(
                f"{self.name}: {len(orphans)} XML files without an image in {str(base)!r}: {first_names(orphans)}; "
                "add the images or remove the XML files"
            )
        with naming(self, base):
            polygons = {stem: _read_polygons(base / file.path) for stem, file in case_of.items()}
        samples, unmarked = [], []
        for file in images:
            case = _case_number(file.path)
            if not polygons[case].get(_number(file.path)):
                unmarked.append(file.path)
                continue
            samples.append(
                Sample(file.path, f"case {case}", file.path, (case_of[case].path,), patient_id=f"case {case}")
            )
        if not samples:
            raise MissingMask(f"{self.name}: no image in {str(base)!r} has a polygon; {self.how_to_get}")
        warnings = [f"{self.name}: the original edition, not the cleaned one of {self.expected_count} images"]
        if unmarked:
            warnings.append(
                f"{self.name}: {len(unmarked)} images have no polygon and are left out: {first_names(unmarked)}"
            )
        return Index(base, tuple(samples), fingerprint(base, [*images, *cases]), phantom, tuple(warnings))


def _pair_folders(folder: Path) -> tuple[str, str] | None:
    return next((pair for pair in FOLDERS if all(is_folder(folder / name) for name in pair)), None)


def _case_number(path: str) -> str:
    return File(path, 0).stem.partition("_")[0]


def _number(path: str) -> str:
    return File(path, 0).stem.rpartition("_")[2]


def _read_polygons(path: Path) -> dict[str, list[Polygon]]:
    """The polygons of each image of a case.

    Each `<mark>` holds the number of an `<image>` and, in `<svg>`, JSON text such as
    `[{"points": [{"x": 1, "y": 2}, ...]}, ...]`.

    Raises:
        DataError: Not XML, too large, with entities, or polygons that are not as above.
    """
    polygons: dict[str, list[Polygon]] = {}
    for mark in read_xml(path).iter("mark"):
        text = (mark.findtext("svg") or "").strip()
        try:
            found = [
                [(float(point["x"]), float(point["y"])) for point in shape["points"]]
                for shape in (parse_json(text, path) if text else [])
                if isinstance(shape, dict) and len(shape.get("points", ())) >= 3
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise UnreadableFile(
                f"{str(path)!r} holds a mark whose points have no numbers x and y; copy or download it again"
            ) from error
        if not all(abs(value) < FARTHEST for polygon in found for point in polygon for value in point):
            raise UnreadableFile(f"{str(path)!r} holds points that lie in no image, or are no numbers; copy it again")
        polygons.setdefault((mark.findtext("image") or "").strip(), []).extend(found)
    return polygons


@hookimpl
def anaus_datasets() -> list[type[DDTI]]:
    """DDTI."""
    return [DDTI]
