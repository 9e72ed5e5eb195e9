"""BUSI: breast ultrasound images in three classes with masks (Al-Dhabyani et al., 2020).

The images carry no patient; near-duplicates, some of them across classes, are found by perceptual hash and kept
together in the folds.
"""

from __future__ import annotations

import re
from pathlib import Path

from anaus_bench.datasets.images import read_gray, read_picture
from anaus_bench.datasets.layout import check_root, count_warnings, find_base, fingerprint, is_phantom, start_phantoms
from anaus_bench.datasets.listing import File, first_names, is_folder, list_files, naming, visible
from anaus_bench.errors import EmptyMask, LabelError, LayoutError, MissingMask, OrphanMask, WrongVersion
from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import Dataset, Index, Picture, Sample
from anaus_bench.settings.base import Settings

WRAPPER = "Dataset_BUSI_with_GT"
NAME = re.compile(r"(?P<label>[a-z]+) \((?P<number>\d+)\)(?P<mask>_mask(_\d+)?)?\.png", re.IGNORECASE)
NEAR_DUPLICATE = 40  # differing bits of 256
SHARES = (437, 210, 133)  # images of each class in the original


class BUSI(Dataset[Settings]):
    """`benign (1).png` with `benign (1)_mask.png`, and `_mask_1.png`, ... where there are more lesions."""

    name = "busi"
    title = "Breast ultrasound images (BUSI)"
    classes = ("benign", "malignant", "normal")
    structures = ("lesion",)
    licence = "CC BY 4.0"
    url = "https://scholar.cu.edu.eg/?q=afahmy/pages/dataset"
    how_to_get = (
        "Download Dataset_BUSI.zip from https://scholar.cu.edu.eg/?q=afahmy/pages/dataset and unpack it; "
        f"the root is the folder {WRAPPER} or the one that holds it."
    )
    expected_count = 780
    reference = (
        "Al-Dhabyani et al., Dataset of breast ultrasound images, Data in Brief 28, 2020, doi:10.1016/j.dib.2019.104863"
    )

    def scan(self, root: Path) -> Index:
        """One sample of each image; its group is itself until `groups` has seen the pixels.

        Raises:
            DatasetNotFound, LayoutError: Root or class folders missing, or names that are not the official ones.
            WrongVersion: A re-host without masks, numbered from 0, or with images and masks in folders of their own.
            LabelError: An unknown class folder, or a file in another class's folder.
            MissingMask, OrphanMask: Images and masks do not fit together.
        """
        check_root(self, root)
        self._refuse_split(root)
        base = find_base(self, root, (WRAPPER,), self.classes)
        self._refuse_split(base)
        self._check_classes(base)
        files = [file for label in self.classes for file in list_files(self, base, base / label, (".png",))]
        images, masks = self._pairs(base, files)
        samples = tuple(
            Sample(file.path, file.path, file.path, tuple(masks[key]), label=self.classes.index(key[0]))
            for key, file in images.items()
        )
        phantom = is_phantom(root, base)
        return Index(base, samples, fingerprint(base, files), phantom, count_warnings(self, len(samples), phantom))

    def read(self, index: Index, sample: Sample) -> Picture:
        """Image and the union of its masks.

        Raises:
            UnreadableFile, BadMaskValues, SizeMismatch: As `read_picture`.
            EmptyMask: A benign or malignant image without lesion.
        """
        with naming(self, index.root):
            picture = read_picture(index.root, sample.path, sample.mask_paths)
        if sample.label != self.classes.index("normal") and picture.mask is not None and not picture.mask.any():
            raise EmptyMask(
                f"{self.name}: the masks of {sample.path!r} in {str(index.root)!r} are all zero; "
                "a benign or malignant image has a lesion: copy them again"
            )
        return picture

    def groups(self, index: Index) -> tuple[str, ...]:
        """The first sample of each image's near-duplicate group (256-bit perceptual hash, at most 40 bits differ)."""
        import numpy as np

        from anaus_bench.datasets.near_duplicates import near_duplicate_groups, perceptual_hash

        if not index.samples:
            return ()
        hashes = np.stack([perceptual_hash(read_gray(index.root / sample.path)) for sample in index.samples])
        numbers = near_duplicate_groups(hashes, NEAR_DUPLICATE)
        first: dict[int, str] = {}
        return tuple(
            first.setdefault(number, sample.sample_id) for number, sample in zip(numbers, index.samples, strict=True)
        )

    def write_phantoms(self, root: Path, count: int, size: int, seed: int) -> None:
        """`count` patients, the classes in the original's proportions (437, 210, 133)."""
        from PIL import Image

        from anaus_bench.simulator.breast import KINDS
        from anaus_bench.simulator.phantoms import breast_clips

        start_phantoms(self, root, size, seed)
        ends = [round(count * sum(SHARES[:last]) / sum(SHARES)) for last in range(4)]
        kinds = [kind for kind, start, end in zip(KINDS, ends, ends[1:], strict=False) for _ in range(start, end)]
        numbers = dict.fromkeys(self.classes, 0)
        for label in self.classes:
            (root / label).mkdir()
        for kind, clip in zip(kinds, breast_clips(self.name, kinds, 1, size, seed), strict=True):
            numbers[kind] += 1
            stem = root / kind / f"{kind} ({numbers[kind]})"
            Image.fromarray(clip.images[0]).convert("RGB").save(f"{stem}.png", compress_level=1)
            if kind == "normal":
                Image.new("RGB", (size, size)).save(f"{stem}_mask.png")  # the original's empty masks are in colour
            for lesion in range(len(clip.structures)):
                suffix = f"_{lesion}" if lesion else ""
                Image.fromarray(clip.labels[0] == lesion + 1).save(f"{stem}_mask{suffix}.png")

    def _refuse_split(self, folder: Path) -> None:
        """Re-hosts put all images in one folder and all masks in another."""
        names = {child.name.lower() for child in visible(self, folder) if is_folder(child)}
        split = sorted(names & {"image", "images", "mask", "masks", "label", "labels"})
        if len(split) >= 2:
            raise WrongVersion(
                f"{self.name}: {str(folder)!r} has the folders {', '.join(split)}, a re-host that loses the classes; "
                f"needed: the official {', '.join(self.classes)} with masks beside the images; {self.how_to_get}"
            )

    def _check_classes(self, base: Path) -> None:
        for child in visible(self, base):
            if child.name == WRAPPER and is_folder(child):
                raise LayoutError(
                    f"{self.name}: {str(base)!r} holds the class folders and {WRAPPER!r}, which may be the same images "
                    "twice; keep one of the two"
                )
            if is_folder(child) and child.name not in self.classes:
                raise LabelError(
                    f"{self.name}: unknown class folder {child.name!r} in {str(base)!r}; "
                    f"known: {', '.join(self.classes)}"
                )

    def _pairs(
        self, root: Path, files: list[File]
    ) -> tuple[dict[tuple[str, int], File], dict[tuple[str, int], list[str]]]:
        """Images and their masks by class and number."""
        images: dict[tuple[str, int], File] = {}
        masks: dict[tuple[str, int], list[str]] = {}
        strange = [file.path for file in files if not NAME.fullmatch(file.name)]
        if strange:
            raise LayoutError(
                f"{self.name}: {len(strange)} files in {str(root)!r} are not named as 'benign (1).png' or "
                f"'benign (1)_mask.png': {first_names(strange)}; use the official files"
            )
        for file in files:
            match = NAME.fullmatch(file.name)
            assert match is not None
            label, number = match["label"].lower(), int(match["number"])
            if label != file.folder.rpartition("/")[2]:
                raise LabelError(
                    f"{self.name}: {file.path!r} in {str(root)!r} lies in the folder of another class; move it"
                )
            if match["mask"]:
                masks.setdefault((label, number), []).append(file.path)
            elif images.setdefault((label, number), file) is not file:
                other = images[label, number].path
                raise LayoutError(f"{self.name}: {other!r} and {file.path!r} in {str(root)!r} have one id; remove one")
        self._check_edition(root, images, masks)
        return images, masks

    def _check_edition(
        self, root: Path, images: dict[tuple[str, int], File], masks: dict[tuple[str, int], list[str]]
    ) -> None:
        if not images:
            raise LayoutError(f"{self.name}: no image in the class folders of {str(root)!r}; {self.how_to_get}")
        if not masks:
            raise WrongVersion(
                f"{self.name}: {len(images)} images but not one mask in {str(root)!r}, an edition for classification; "
                f"needed: the one with '_mask' files; {self.how_to_get}"
            )
        if any(number == 0 for _, number in images):
            raise WrongVersion(
                f"{self.name}: the images in {str(root)!r} are numbered from 0, a re-host; "
                f"needed: the official numbers from 1; {self.how_to_get}"
            )
        missing = [file.path for key, file in images.items() if key not in masks]
        if missing:
            raise MissingMask(
                f"{self.name}: {len(images) - len(missing)} of {len(images)} images in {str(root)!r} have masks; "
                f"none for {first_names(missing)}; {self.how_to_get}"
            )
        orphans = [paths[0] for key, paths in masks.items() if key not in images]
        if orphans:
            raise OrphanMask(
                f"{self.name}: {len(orphans)} masks without an image in {str(root)!r}: {first_names(orphans)}; "
                "add the images or remove the masks"
            )


@hookimpl
def anaus_datasets() -> list[type[BUSI]]:
    """BUSI."""
    return [BUSI]
