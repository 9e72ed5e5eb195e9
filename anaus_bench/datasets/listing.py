"""What lies in a folder: its files in natural order, without what systems leave beside them."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anaus_bench.datasets.opening import HEAD, opened, short
from anaus_bench.errors import DataError, LayoutError, UnreadableFile
from anaus_bench.interfaces import Dataset

# What systems, network drives and editors leave beside the data; hidden names (with a dot) are left out as well.
JUNK = re.compile(
    r"""
    __macosx | @eadir | @tmp | \#recycle | \#snapshot | @recycle | @recently-snapshot | \$recycle\.bin | recycler |
    system\ volume\ information | lost\+found | __pycache__ | thumbnails? | thumbs |
    thumbs\.db(:.*)? | ehthumbs.*\.db | desktop\.ini | synofile_thumb.* | icon\r | ~\$.* | .*~
    """,
    re.IGNORECASE | re.VERBOSE,
)


@dataclass(frozen=True)
class File:
    """A file of a data set: `path` relative to the root with forward slashes, `size` in bytes."""

    path: str
    size: int

    @property
    def name(self) -> str:
        """Name without its folder."""
        return self.path.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """Name without folder and suffix, composed (NFC): one system writes an accent as a letter of its own."""
        return normal(self.name.rpartition(".")[0])

    @property
    def folder(self) -> str:
        """Folder relative to the root; empty for the root itself."""
        return self.path.rpartition("/")[0]


def normal(name: str) -> str:
    """A name with its accents composed (NFC), however a system wrote them."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def natural_key(name: str) -> tuple[tuple[int | str, ...], str]:
    """Sort key in which numbers count as numbers: `frame2` before `frame10`."""
    return tuple(int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))), name


def list_files(dataset: Dataset[Any], root: Path, base: Path, suffixes: Sequence[str]) -> list[File]:
    """Files under `base` with one of the (lower-case) `suffixes`, at any depth, in natural order, without junk.

    What is no regular file, such as a named pipe, is no data either.

    Raises:
        LayoutError: A link leads out of the root or to itself, or a name is not UTF-8.
        UnreadableFile: A file has no bytes, or a folder cannot be listed.
        WrongVersion: A file is the text that git-LFS leaves where the content was not fetched.
    """
    _check_link(dataset, root, base)
    files: list[File] = []
    folders = [base.relative_to(root).as_posix().removeprefix(".")]
    while folders:
        folder = folders.pop()
        for entry in _entries(dataset, root / folder):
            path = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_symlink():
                _check_link(dataset, root, Path(entry.path))
            if entry.is_dir(follow_symlinks=False):
                folders.append(path)
            elif entry.name.lower().endswith(tuple(suffixes)) and entry.is_file():
                file = File(path, entry.stat().st_size)
                if file.size < HEAD:
                    with naming(dataset, root), opened(root / path):
                        pass
                files.append(file)
    return sorted(files, key=lambda file: natural_key(file.path))


def find_files(root: Path, suffixes: Sequence[str]) -> list[str]:
    """Names relative to `root` of the regular files with one of the (lower-case) `suffixes`, sorted, without junk."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not is_junk(name)]
        paths = [Path(folder, name) for name in names if not is_junk(name) and name.lower().endswith(tuple(suffixes))]
        found += [path.relative_to(root).as_posix() for path in paths if path.is_file()]
    return sorted(found)


def first_names(names: Sequence[str], limit: int = 5) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(repr(short(name)) for name in names[:limit]) + more


@contextmanager
def naming(dataset: Dataset[Any], root: Path) -> Iterator[None]:
    """Puts the name of the data set and its root in front of the errors raised inside, which name the file alone."""
    try:
        yield
    except DataError as error:
        raise type(error)(f"{dataset.name} in {str(root)!r}: {error}") from error


def is_junk(name: str) -> bool:
    """Whether a file or folder of this name is no data."""
    return name.startswith(".") or JUNK.fullmatch(name) is not None


def left_out(root: Path) -> Counter[str]:
    """How often each junk name stands under `root`, but not inside of junk."""
    found: Counter[str] = Counter()
    for _, folders, files in os.walk(root):
        found.update(name for name in (*folders, *files) if is_junk(name))
        folders[:] = [name for name in folders if not is_junk(name)]
    return found


def visible(dataset: Dataset[Any], folder: Path) -> list[Path]:
    """What is in a folder, without junk, in natural order.

    Raises:
        UnreadableFile: It cannot be listed.
        LayoutError: A name is not UTF-8.
    """
    names = [entry.name for entry in _entries(dataset, folder)]
    return [folder / name for name in sorted(names, key=natural_key)]


def is_folder(path: Path) -> bool:
    """Whether it is a folder, links followed; what must not be looked at is none."""
    return os.path.isdir(path)


def _entries(dataset: Dataset[Any], folder: Path) -> Iterator[os.DirEntry[str]]:
    """What is in a folder, without junk."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_junk(entry.name):
                    continue
                if not entry.name.isascii() and any("\udc80" <= letter <= "\udcff" for letter in entry.name):
                    raise LayoutError(
                        f"{dataset.name}: the name {entry.name!r} in {str(folder)!r} is not UTF-8; rename it"
                    )
                yield entry
    except OSError as error:
        raise UnreadableFile(
            f"{dataset.name}: the folder {str(folder)!r} cannot be listed: {error}; check its permissions"
        ) from error


def _check_link(dataset: Dataset[Any], root: Path, path: Path) -> None:
    if path == root or not path.is_symlink():
        return
    target = Path(os.path.realpath(path))
    if not target.is_relative_to(os.path.realpath(root)):
        raise LayoutError(
            f"{dataset.name}: {str(path)!r} is a link to {str(target)!r}, outside of the root; "
            "copy what it points to, or make the root itself the link"
        )
    if not os.path.exists(target):
        found = "a link that leads back to itself" if target.is_symlink() else f"a link to {str(target)!r}, missing"
        raise LayoutError(f"{dataset.name}: {str(path)!r} is {found}; remove it")


def refusal(failed: Mapping[str, DataError], where: str = "", listed: int = 20) -> DataError:
    """One error for all files that cannot be used, each named once; `where` begins the message."""
    first = next(iter(failed.values()))
    if len(failed) == 1:
        return type(first)(f"{where}{first}")
    names = [repr(path) for path in failed]
    more = f" and {len(names) - listed} more" if len(names) > listed else ""
    return type(first)(
        f"{where}{len(failed)} files cannot be used: {', '.join(names[:listed])}{more}; the first: {first}; `data "
        "verify` says why of each, and --set corpus.unreadable=skip leaves unreadable ones out of a corpus"
    )
