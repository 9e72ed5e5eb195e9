"""A data set: a folder in its official layout, and what is read from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from anaus_bench.interfaces.plugin import Plugin, S

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Sample:
    """One image (or one frame of a video) of a data set.

    Attributes:
        sample_id: Unique and stable: the path relative to the root, plus `#<frame>` for a frame of a video.
        group_id: Unit of leakage (patient, else video, else near-duplicate group): never split over folds.
        path: File relative to the root.
        mask_paths: Mask files relative to the root; their union is the mask.
        label: Class id, or None.
        video_id: The clip the frame is from, or None.
        frame_index: Position in the clip, from 0, or None.
        patient_id: The patient, where known.
    """

    sample_id: str
    group_id: str
    path: str
    mask_paths: tuple[str, ...] = ()
    label: int | None = None
    video_id: str | None = None
    frame_index: int | None = None
    patient_id: str | None = None


@dataclass(frozen=True)
class Index:
    """What `Dataset.scan` found: the samples in natural order and what identifies them.

    Attributes:
        root: Folder the paths are relative to.
        samples: In natural order of their ids.
        fingerprint: Hash of the names and contents of all files used.
        phantom: Whether the images are generated; results on them are marked everywhere.
        warnings: Remarks that do not forbid using the data, such as an unusual count.
        unreadable: File that was left out because it cannot be read -> why; empty unless asked for.
    """

    root: Path
    samples: tuple[Sample, ...]
    fingerprint: str
    phantom: bool = False
    warnings: tuple[str, ...] = ()
    unreadable: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Picture:
    """One decoded sample.

    Attributes:
        image: (H, W) uint8 gray.
        mask: (H, W) uint8 structure ids (0 = none), or None.
        remarks: What a person should look at, such as a mask that marks everything; each names its file.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8] | None = None
    remarks: tuple[str, ...] = ()


class Dataset(Plugin[S]):
    """A folder in its official layout.

    Attributes:
        title: Name in full.
        classes: Names of the class labels 0, 1, ...; empty if there are none.
        structures: Names of the mask ids 1, 2, ...; empty if there are no masks.
        licence, url: As stated by the publishers.
        how_to_get: Where to get it and which folder to put where, in two or three sentences.
        expected_count: Documented number of samples, or None.
        skips_unreadable: Whether `scan` leaves out clips that cannot be read, and lists them, in place of refusing.
    """

    title: ClassVar[str]
    classes: ClassVar[tuple[str, ...]] = ()
    structures: ClassVar[tuple[str, ...]] = ()
    licence: ClassVar[str] = ""
    url: ClassVar[str] = ""
    how_to_get: ClassVar[str] = ""
    expected_count: ClassVar[int | None] = None
    skips_unreadable: bool = False

    def scan(self, root: Path) -> Index:
        """The samples under `root`, by names and headers: no image is decoded.

        Raises:
            DataError: Root missing, wrong layout, another version, missing or orphan masks.
        """
        raise NotImplementedError

    def read(self, index: Index, sample: Sample) -> Picture:
        """Decodes one sample at its own size.

        Raises:
            DataError: Unreadable file, or mask and image of different sizes.
        """
        raise NotImplementedError

    def groups(self, index: Index) -> tuple[str, ...]:
        """Group of each sample; override where it needs the pixels (near-duplicate groups)."""
        return tuple(sample.group_id for sample in index.samples)

    def published_folds(self, index: Index) -> list[int] | None:
        """Fold of each sample in a published protocol, -1 = fixed test set of all folds; None where there is none."""
        return None

    def write_phantoms(self, root: Path, count: int, size: int, seed: int) -> None:
        """Writes about `count` generated images in this data set's official layout into the empty folder `root`."""
        from anaus_bench.errors import DataError

        raise DataError(
            f"data set {self.name!r} cannot be generated; give its folder with --data-root {self.name}=PATH"
        )
