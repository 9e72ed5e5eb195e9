"""TG3K: frames of thyroid videos with the gland marked (Gong et al., 2021, after Wunderling et al., 2017).

The videos' borders are not published. Frames stand in video order, so a group is a run of frames that look alike: it
ends where the perceptual hash jumps.
"""

from __future__ import annotations

import json
from pathlib import Path

from anaus_bench.datasets.images import read_marked
from anaus_bench.datasets.layout import count_warnings, find_base, fingerprint, is_phantom, list_pairs, start_phantoms
from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import Dataset, Index, Picture, Sample
from anaus_bench.settings.base import Settings

JUMP = 64  # differing bits of 256 between neighbours of two videos; half of what unrelated images differ by
FRAMES = 200  # of a generated video; fewer where that leaves few videos
TRAINING = 0.9


class TG3K(Dataset[Settings]):
    """`thyroid-image/0000.jpg` with `thyroid-mask/0000.jpg`."""

    name = "tg3k"
    title = "TG3K thyroid gland segmentation"
    structures = ("thyroid",)
    licence = "none stated"
    url = "https://github.com/haifangong/TRFE-Net-for-thyroid-nodule-segmentation"
    how_to_get = (
        "Take the thyroid data set from the link in the README of "
        "https://github.com/haifangong/TRFE-Net-for-thyroid-nodule-segmentation and unpack it; the root is the folder "
        "tg3k or the one that holds it."
    )
    expected_count = 3585
    reference = (
        "Gong et al., Multi-task learning for thyroid nodule segmentation with thyroid region prior, ISBI 2021, "
        "doi:10.1109/ISBI48211.2021.9434087"
    )

    def scan(self, root: Path) -> Index:
        """One sample of each pair, in the order of the videos.

        Raises:
            DatasetNotFound, LayoutError: Root or folders missing, or no image.
            DuplicateId, MissingMask, OrphanMask: Images and masks are not pairs.
        """
        base = find_base(self, root, ("tg3k", "Thyroid Dataset/tg3k"), ("thyroid-image", "thyroid-mask"))
        pairs = list_pairs(self, base, base / "thyroid-image", base / "thyroid-mask", (".jpg",))
        samples = tuple(
            Sample(image.path, image.path, image.path, (mask.path,), frame_index=number)
            for number, (image, mask) in enumerate(pairs)
        )
        phantom = is_phantom(root, base)
        files = [file for pair in pairs for file in pair]
        return Index(base, samples, fingerprint(base, files), phantom, count_warnings(self, len(samples), phantom))

    def read(self, index: Index, sample: Sample) -> Picture:
        """Image and gland.

        Raises:
            DataError: As `read_marked`.
        """
        return read_marked(self, index, sample)

    def groups(self, index: Index) -> tuple[str, ...]:
        """The first frame of each run of frames, which ends where neighbours differ in more than 64 of 256 bits."""
        import numpy as np

        from anaus_bench.datasets.near_duplicates import image_hashes

        hashes = image_hashes(self, index)
        jumps = np.unpackbits(hashes[1:] ^ hashes[:-1], axis=1).sum(axis=1) > JUMP
        groups: list[str] = []
        for number, sample in enumerate(index.samples):
            groups.append(sample.sample_id if number == 0 or jumps[number - 1] else groups[-1])
        return tuple(groups)

    def write_phantoms(self, root: Path, count: int, size: int, seed: int) -> None:
        """`count` frames of videos of healthy glands and of glands with a nodule, as JPEG."""
        import numpy as np
        from PIL import Image

        from anaus_bench.simulator.phantoms import clips

        start_phantoms(self, root, size, seed)
        for folder in ("thyroid-image", "thyroid-mask"):
            (root / folder).mkdir()
        frames = max(2, min(FRAMES, count // 6))
        lengths = [min(frames, count - start) for start in range(0, count, frames)]
        kinds = [("normal", "benign", "malignant")[video % 3] for video in range(len(lengths))]
        number = 0
        for clip in clips("thyroid", self.name, kinds, frames=lengths, size=size, seed=seed):
            gland = [position for position, name in enumerate(clip.structures, start=1) if name in ("gland", "nodule")]
            for image, labels in zip(clip.images, clip.labels, strict=True):
                mask = np.isin(labels, gland)
                Image.fromarray(image).save(root / "thyroid-image" / f"{number:04d}.jpg", quality=75 + number % 21)
                Image.fromarray(mask).convert("L").save(root / "thyroid-mask" / f"{number:04d}.jpg", quality=90)
                number += 1
        training = round(TRAINING * count)
        lists = {"train": list(range(training)), "val": list(range(training, count))}
        (root / "tg3k-trainval.json").write_text(json.dumps(lists), encoding="utf-8")


@hookimpl
def anaus_datasets() -> list[type[TG3K]]:
    """TG3K."""
    return [TG3K]
