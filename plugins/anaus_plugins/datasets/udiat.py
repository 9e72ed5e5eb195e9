"""UDIAT Dataset B: breast lesions with masks (Yap et al., 2018)."""

from __future__ import annotations

from pathlib import Path

from anaus_bench.datasets.images import read_marked
from anaus_bench.datasets.layout import (
    check_pairs,
    check_unique,
    count_warnings,
    find_base,
    fingerprint,
    is_phantom,
    start_phantoms,
)
from anaus_bench.datasets.listing import list_files
from anaus_bench.errors import LayoutError
from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import Dataset, Index, Picture, Sample
from anaus_bench.settings.base import Settings


class UDIAT(Dataset[Settings]):
    """Images `original/*.png` and masks `GT/*.png` of the same names (copies as .bmp or .jpg too), one a patient."""

    name = "udiat"
    title = "UDIAT breast ultrasound, Dataset B"
    structures = ("lesion",)
    licence = "research agreement with the publishers; no redistribution"
    url = "http://helward.mmu.ac.uk/STAFF/M.Yap/dataset.php"
    how_to_get = (
        "Request Dataset B from M. H. Yap with the form at http://helward.mmu.ac.uk/STAFF/M.Yap/dataset.php; "
        "the folder that holds original/ and GT/ is the root."
    )
    expected_count = 163
    reference = (
        "Yap et al., Automated breast ultrasound lesions detection using convolutional neural networks, "
        "IEEE JBHI 22(4), 2018, doi:10.1109/JBHI.2017.2731873"
    )

    def scan(self, root: Path) -> Index:
        """One sample of each pair, paired by name.

        Raises:
            DatasetNotFound, LayoutError: Root or folders missing, no image, or one id twice.
            MissingMask, OrphanMask: Images and masks are not pairs.
        """
        base = find_base(self, root, ("BUS", "UDIAT_Dataset_B"), ("original", "GT"))
        images = list_files(self, base, base / "original", (".png", ".bmp", ".jpg", ".jpeg"))
        masks = list_files(self, base, base / "GT", (".png", ".bmp", ".jpg", ".jpeg"))
        if not images:
            raise LayoutError(f"{self.name}: no PNG, BMP or JPEG file in {str(base / 'original')!r}; {self.how_to_get}")
        check_unique(self, base, images + masks)
        check_pairs(self, base, images, masks)
        mask_of = {file.stem: file.path for file in masks}
        samples = tuple(Sample(file.path, file.path, file.path, (mask_of[file.stem],)) for file in images)
        phantom = is_phantom(root, base)
        return Index(
            base, samples, fingerprint(base, [*images, *masks]), phantom, count_warnings(self, len(samples), phantom)
        )

    def read(self, index: Index, sample: Sample) -> Picture:
        """Image and mask.

        Raises:
            DataError: As `read_marked`.
        """
        return read_marked(self, index, sample)

    def write_phantoms(self, root: Path, count: int, size: int, seed: int) -> None:
        """`count` patients, two thirds of them benign as in the original (110 to 53)."""
        from PIL import Image

        from anaus_bench.simulator.breast import Kind
        from anaus_bench.simulator.phantoms import breast_clips

        start_phantoms(self, root, size, seed)
        for folder in ("original", "GT"):
            (root / folder).mkdir()
        kinds: list[Kind] = ["malignant" if patient % 3 == 2 else "benign" for patient in range(count)]
        for number, clip in enumerate(breast_clips(self.name, kinds, 1, size, seed), start=1):
            Image.fromarray(clip.images[0]).save(root / "original" / f"{number:06d}.png", compress_level=1)
            Image.fromarray(clip.labels[0] > 0).save(root / "GT" / f"{number:06d}.png")


@hookimpl
def anaus_datasets() -> list[type[UDIAT]]:
    """Dataset B."""
    return [UDIAT]
