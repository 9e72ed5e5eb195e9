"""Label maps that the user made elsewhere: one file per image, or a folder that `masks build` wrote."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from anaus_bench.datasets.arrays import open_array, read_array
from anaus_bench.datasets.facts import content_digest, facts
from anaus_bench.datasets.images import read_still
from anaus_bench.datasets.listing import find_files, normal
from anaus_bench.datasets.opening import opened
from anaus_bench.datasets.text import read_table
from anaus_bench.errors import (
    BadMaskValues,
    DataError,
    DuplicateId,
    MissingMask,
    SettingsError,
    SizeMismatch,
    UnreadableFile,
)
from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import StoredSource
from anaus_bench.machine.home import expanded
from anaus_bench.settings.base import Location, Settings

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from anaus_bench.corpus.packed import Entry, PackedCorpus

SUFFIXES = (".png", ".npy", ".tif", ".tiff", ".bmp")
BUILT = "label_maps.npy", "regions.csv"  # of a folder that `masks build` wrote
MAX_IDS = 256


class ImportedSettings(Settings):
    """Where the label maps are."""

    path: Location = Field(
        "",
        description="Folder of label maps. The map of sample clips/a.mp4#12 is clips/a#12.png (or .npy, .tif, .tiff, "
        ".bmp), that of b.png is b.png, in the folder or in its sub-folder named like the data set; or a folder that "
        "masks build wrote",
    )


class Imported(StoredSource[ImportedSettings]):
    """Label maps of a folder of yours.

    Files hold integer ids (0 = background), grey or one colour per region, of the image's own size or of the packed
    one; a boolean .npy (P, H, W) holds proposals, best first, painted from the largest to the smallest.
    """

    name = "imported"
    settings_class = ImportedSettings

    def identity(self) -> dict[str, str]:
        """Digest of the names and contents of all files.

        Raises:
            SettingsError: No folder is given, it is absent, or it holds no label map.
        """
        if not self.settings.path:
            raise SettingsError("masks 'imported' needs a folder of label maps; pass --set masks.path=FOLDER")
        if not self._names:
            raise SettingsError(
                f"masks.path {self.settings.path!r} is no folder with label maps; expected files that end in "
                f"{', '.join(SUFFIXES)}, named like the samples"
            )
        digest = hashlib.sha256()
        # By the names as they are in the folder, as it was before names were compared without their case.
        contents = facts(self._root, list(self._names.values()), "sha256", content_digest)
        for name, content in zip(self._names.values(), contents, strict=True):
            if isinstance(content, DataError):
                raise content
            digest.update(f"{name}\0".encode("utf-8", "surrogateescape") + bytes.fromhex(str(content)))
        return {"files": digest.hexdigest()}

    def check(self, corpus: PackedCorpus) -> None:
        """Every sample must have a map.

        Raises:
            MissingMask: Some have none.
            DuplicateId: A folder that `masks build` wrote knows a sample twice.
            SizeMismatch: Such a folder was built at another size.
        """
        if self._built is not None:
            rows, maps = self._built
            if maps.shape[1:] != corpus.images.shape[1:]:
                raise SizeMismatch(
                    f"{self.settings.path!r} holds label maps of {maps.shape[1]} pixels, the corpus has "
                    f"{corpus.size}; pass --set corpus.size={maps.shape[1]}, or build them again"
                )
            missing = [entry.sample_id for entry in corpus.entries if entry.sample_id not in rows]
        else:
            missing = [entry.sample_id for entry in corpus.entries if self._find(entry) is None]
        if missing:
            raise MissingMask(
                f"{self.settings.path!r} has no label map of {len(missing)} of the corpus's {len(corpus)} samples, the "
                f"first {missing[0]!r}; expected {_name(missing[0])}.png (or {', '.join(SUFFIXES[1:])})"
            )

    def read(self, entries: Sequence[Entry], size: int) -> NDArray[np.uint8]:
        """Label maps (B, size, size) uint8, letterboxed as the images are.

        Raises:
            UnreadableFile: A file cannot be decoded or holds no ids.
            BadMaskValues: More regions than a label map can hold.
            SizeMismatch: A map has neither its image's aspect ratio nor the packed size.
        """
        if self._built is not None:
            rows, maps = self._built
            return maps[[rows[entry.sample_id] for entry in entries]]
        return np.stack([self._read_one(entry, size) for entry in entries])

    def _read_one(self, entry: Entry, size: int) -> NDArray[np.uint8]:
        from anaus_bench.corpus.label_maps import contiguous
        from anaus_bench.corpus.packed import letterbox

        path = self._find(entry)
        if path is None:
            raise MissingMask(f"{self.settings.path!r} has no label map of {entry.sample_id!r}; was it removed?")
        ids = _compact(_read_ids(path, self._root), path)
        if ids.shape == (size, size):
            return contiguous(ids)
        packed, box = letterbox(ids, size, labels=True)
        if box != entry.box:
            raise SizeMismatch(
                f"label map {str(path)!r} has {ids.shape[1]} x {ids.shape[0]} pixels, which is not the shape of its "
                f"image {entry.sample_id!r}; expected the image's own size or {size} x {size}"
            )
        return contiguous(packed)

    def _find(self, entry: Entry) -> Path | None:
        name = normal(_name(entry.sample_id))
        for folder in (f"{entry.dataset}/", ""):
            for suffix in SUFFIXES:
                if found := self._names.get(f"{folder}{name}{suffix}"):
                    return self._root / found
        return None

    @functools.cached_property
    def _root(self) -> Path:
        return expanded(self.settings.path)

    @functools.cached_property
    def _names(self) -> dict[str, str]:
        """All files that may be label maps: name with composed accents and a lower-case suffix -> name in the folder.

        Raises:
            DuplicateId: Two names differ in nothing else.
        """
        wanted = (*SUFFIXES, ".csv") if (self._root / BUILT[1]).is_file() else SUFFIXES
        names: dict[str, str] = {}
        for found in find_files(self._root, wanted):
            stem, dot, suffix = found.rpartition(".")
            other = names.setdefault(f"{normal(stem)}{dot}{suffix.lower()}", found)
            if other != found:
                raise DuplicateId(f"{self.settings.path!r} holds {other!r} and {found!r} for one image; remove one")
        return names

    @functools.cached_property
    def _built(self) -> tuple[dict[str, int], NDArray[np.uint8]] | None:
        """Row of each sample and all maps, of a folder that `masks build` wrote; None of another."""
        if not all(name in self._names for name in BUILT):
            return None
        names = [row["sample_id"] for row in read_table(self._root / BUILT[1], ("sample_id",), root=self._root)]
        rows = {name: number for number, name in enumerate(names)}
        if len(rows) < len(names):
            raise DuplicateId(
                f"{self.settings.path!r} holds label maps of several data sets with equal sample ids; build the masks "
                "of each data set alone"
            )
        maps = open_array(self._root / BUILT[0], root=self._root)
        if maps.ndim != 3 or maps.dtype != np.uint8 or len(maps) != len(names):
            raise UnreadableFile(
                f"{self.settings.path!r}: {BUILT[0]} holds {maps.dtype} of shape {maps.shape}; expected uint8 "
                f"({len(names)}, size, size), as {BUILT[1]} has rows: build the masks again"
            )
        return rows, maps


def _name(sample_id: str) -> str:
    """`clips/a.mp4#12` -> `clips/a#12`."""
    path, mark, frame = sample_id.partition("#")
    stem = Path(path.removesuffix(".gz"))
    return f"{stem.with_suffix('').as_posix()}{mark}{frame}"


def _read_ids(path: Path, root: Path) -> NDArray[np.integer[Any]]:
    """Ids (H, W) of a file, any integers."""
    from anaus_bench.corpus.label_maps import paint_proposals

    ids: NDArray[Any]
    with opened(path, root=root):  # it must lie in the folder
        ids = read_array(path) if path.suffix.lower() == ".npy" else np.asarray(read_still(path).image)
    if ids.dtype == bool and ids.ndim == 3:
        best_first = -np.arange(len(ids), dtype=np.float64)
        return paint_proposals(ids, best_first, max_regions=MAX_IDS - 1, min_area=0.0, max_area=1.0)
    if ids.ndim == 3 and ids.shape[2] in (3, 4) and ids.dtype == np.uint8:  # one colour per region
        ids = ids[..., :3].astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
    if ids.ndim != 2 or ids.dtype.kind not in "bui":
        raise UnreadableFile(
            f"label map {str(path)!r} holds {ids.dtype} of shape {ids.shape}; expected integers (H, W), colours "
            "(H, W, 3) of 8 bits, or boolean proposals (P, H, W)"
        )
    return ids


def _compact(ids: NDArray[np.integer[Any]], path: Path) -> NDArray[np.uint8]:
    """The same regions with the ids 0, 1, ...; without a background from 1, so that the letterbox is its own region."""
    found, inverse = np.unique(ids, return_inverse=True)
    first = 0 if found[0] == 0 else 1
    if first + len(found) > MAX_IDS:
        raise BadMaskValues(
            f"label map {str(path)!r} has {len(found)} regions; at most {MAX_IDS - 1} and a background fit: merge the "
            "small ones"
        )
    compact: NDArray[np.uint8] = (inverse.reshape(ids.shape) + first).astype(np.uint8)
    return compact


@hookimpl
def anaus_mask_sources() -> list[type[StoredSource[Any]]]:
    """Imported label maps."""
    return [Imported]
