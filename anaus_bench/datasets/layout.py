"""Folders of data sets, checked by names and sizes: what is there, what was expected, and what to do next."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from anaus_bench.datasets.facts import content_digest, facts
from anaus_bench.datasets.listing import File, first_names, is_folder, list_files, natural_key, visible
from anaus_bench.errors import (
    DataError,
    DatasetNotFound,
    DuplicateId,
    LayoutError,
    MissingMask,
    OrphanMask,
)
from anaus_bench.interfaces import Dataset

ARCHIVES = (".zip", ".rar", ".7z", ".tar", ".tgz", ".gz")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
MARKER = "PHANTOM.txt"
LEAST_SIZE = 32


def check_root(dataset: Dataset[Any], root: Path) -> None:
    """Refuses a root that is missing or empty.

    Raises:
        DatasetNotFound: With where to get the data and how to say where it is.
        UnreadableFile: It cannot be listed.
    """
    if is_folder(root) and visible(dataset, root):
        return
    if is_folder(root):
        found = "is empty"
    elif os.path.lexists(root):
        found = "is a file, not a folder" if os.path.exists(root) else "is a link that leads nowhere"
    else:
        found = "does not exist"
    generated = type(dataset).write_phantoms is not Dataset.write_phantoms
    raise DatasetNotFound(
        f"{dataset.name}: {str(root)!r} {found}; {dataset.how_to_get} Then pass --data-root {dataset.name}=PATH"
        + ("; or use the demo preset, which generates images" if generated else "")
    )


def find_base(dataset: Dataset[Any], root: Path, wrappers: Sequence[str], folders: Sequence[str]) -> Path:
    """The folder, `root` itself or one of its `wrappers`, that holds all of `folders`.

    Raises:
        DatasetNotFound, LayoutError: As `locate`.
    """
    return locate(
        dataset,
        root,
        wrappers,
        lambda base: all(is_folder(base / folder) for folder in folders),
        f"the folders {', '.join(folders)}",
    )


def locate(
    dataset: Dataset[Any], root: Path, wrappers: Sequence[str], complete: Callable[[Path], bool], wanted: str
) -> Path:
    """The first of `root` and its `wrappers` (sub-folders) that is `complete`.

    Args:
        dataset: Whose name and instructions the messages hold.
        root: What the user gave.
        wrappers: Folders under the root that may hold the data instead.
        complete: Whether a folder holds the data.
        wanted: What it looks for, in words.

    Raises:
        DatasetNotFound: Root missing or empty.
        LayoutError: Nothing complete; with a suggestion where it lies one level deeper or in an archive.
    """
    check_root(dataset, root)
    for base in (root, *(root / wrapper for wrapper in wrappers)):
        if is_folder(base) and complete(base):
            return base
    expected = f"expected {wanted} in {str(root)!r}"
    if wrappers:
        expected += f" or in {' or '.join(f'{wrapper}/' for wrapper in wrappers)} under it"
    children = [child for child in visible(dataset, root) if is_folder(child)]
    for child in children:
        if any(is_folder(base) and complete(base) for base in (child, *(child / wrapper for wrapper in wrappers))):
            raise LayoutError(f"{dataset.name}: {expected}; did you mean {str(child)!r}?")
    archives = [file.name for file in visible(dataset, root) if file.suffix.lower() in ARCHIVES]
    if archives:
        raise LayoutError(f"{dataset.name}: {expected}; found the archive {archives[0]!r}, unpack it there first")
    found = first_names([child.name for child in children]) or "no folder"
    raise LayoutError(f"{dataset.name}: {expected}; found {found}; {dataset.how_to_get}")


def list_pairs(
    dataset: Dataset[Any], root: Path, images: Path, masks: Path, suffixes: Sequence[str]
) -> list[tuple[File, File]]:
    """Each image under the folder `images` with its mask of the same stem under `masks`, in natural order.

    Raises:
        LayoutError: No image.
        DuplicateId, MissingMask, OrphanMask: Images and masks are not pairs by name.
        DataError: As `list_files`.
    """
    found = list_files(dataset, root, images, suffixes)
    marks = list_files(dataset, root, masks, suffixes)
    if not found:
        raise LayoutError(f"{dataset.name}: no {' or '.join(suffixes)} file in {str(images)!r}; {dataset.how_to_get}")
    check_unique(dataset, root, found + marks)
    check_pairs(dataset, root, found, marks)
    mask_of = {file.stem: file for file in marks}
    return [(file, mask_of[file.stem]) for file in found]


def fingerprint(root: Path, files: Iterable[File]) -> str:
    """Hash of the names and contents of all files, in natural order: 64 hexadecimal digits.

    A file whose size, times and inode are those of an earlier look is not read again. Of one that cannot be read, the
    name alone counts here; whoever reads it says why.
    """
    ordered = [file.path for file in sorted(files, key=lambda file: natural_key(file.path))]
    digest = hashlib.sha256()
    for path, content in zip(ordered, facts(root, ordered, "sha256", content_digest), strict=True):
        known = "" if isinstance(content, DataError) else content
        digest.update(f"{path}\0{known}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def is_phantom(*folders: Path) -> bool:
    """Whether one of the folders, or one of the three above it, holds the marker that its images are generated."""
    above = (place for folder in map(Path.absolute, folders) for place in (folder, *folder.parents[:3]))
    return any((place / MARKER).is_file() for place in above)


def start_phantoms(dataset: Dataset[Any], root: Path, size: int, seed: int) -> None:
    """Makes the folder `root` for generated images and marks it as such, before the first image is there.

    Raises:
        DataError: The folder is not empty, or the images would be too small to hold a lesion.
    """
    from anaus_bench.simulator.phantoms import VERSION

    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DataError(f"{dataset.name}: {str(root)!r} is not empty; pass a new folder for generated images")
    if size < LEAST_SIZE:
        raise DataError(f"{dataset.name}: generated images of {size} pixels are too small; pass at least {LEAST_SIZE}")
    root.mkdir(parents=True, exist_ok=True)
    sentence = f"All images in this folder are generated (anaus-bench simulator version {VERSION}, seed {seed}).\n"
    (root / MARKER).write_text(sentence, encoding="utf-8")


def count_warnings(dataset: Dataset[Any], count: int, phantom: bool) -> tuple[str, ...]:
    """A remark where the number of samples is not the documented one; generated data may have any number."""
    if phantom or dataset.expected_count in (None, count):
        return ()
    return (f"{dataset.name}: {count} samples found, {dataset.expected_count} documented; results are of a subset",)


def check_unique(dataset: Dataset[Any], root: Path, files: Sequence[File]) -> None:
    """Refuses two files of one folder that differ in nothing but their suffix or its case.

    Raises:
        DuplicateId: With the files' names.
    """
    seen: dict[tuple[str, str], File] = {}
    for file in files:
        other = seen.setdefault((file.folder, file.stem), file)
        if other is not file:
            raise DuplicateId(
                f"{dataset.name}: {other.path!r} and {file.path!r} in {str(root)!r} have one id; remove one"
            )


def check_pairs(dataset: Dataset[Any], root: Path, images: Sequence[File], masks: Sequence[File]) -> None:
    """Refuses images and masks that are not pairs by their stem.

    Raises:
        MissingMask, OrphanMask: With the number and the first names.
    """
    with_image = {file.stem for file in images}
    with_mask = {file.stem for file in masks}
    missing = [file.path for file in images if file.stem not in with_mask]
    if missing:
        raise MissingMask(
            f"{dataset.name}: {len(images) - len(missing)} of {len(images)} masks found in {str(root)!r}; "
            f"none for {first_names(missing)}; {dataset.how_to_get}"
        )
    orphans = [file.path for file in masks if file.stem not in with_image]
    if orphans:
        raise OrphanMask(
            f"{dataset.name}: {len(orphans)} masks without an image in {str(root)!r}: {first_names(orphans)}; "
            "add the images or remove the masks"
        )
