"""What was found out about the files of a data set, kept beside their stamps, so that a second look need not read them.

A stamp is size, times (in nanoseconds) and inode. The facts are kept in the user's cache folder, never in the data's.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import TypeAlias

from anaus_bench.datasets.opening import as_stored
from anaus_bench.errors import DataError
from anaus_bench.machine.home import cache_folder
from anaus_bench.machine.parallel import cores

Fact: TypeAlias = str | list[float]
Kept: TypeAlias = dict[str, tuple[str, Fact]]  # path -> its stamp and what was found

# A file that changes twice within a tick of the file system's clock keeps its stamp: what is that young is not kept.
SETTLED = 2 * 10**9  # nanoseconds

_distrusted: ContextVar[list[str] | None] = ContextVar("distrusted", default=None)


@contextmanager
def reading_again(wanted: bool = True) -> Iterator[list[str]]:
    """Inside, every file is read again; the list names those whose content changed and whose stamp did not."""
    changed: list[str] = []
    token = _distrusted.set(changed if wanted else None)
    try:
        yield changed
    finally:
        _distrusted.reset(token)


def facts(root: Path, paths: Sequence[str], kind: str, find: Callable[[Path], Fact]) -> list[Fact | DataError]:
    """What `find` finds of each file under `root`, or the error that it raises, by many threads at once.

    Args:
        root: Folder of the data set.
        paths: Files relative to it.
        kind: Name of what is found; another name where `find` changes its answers.
        find: Path of a file -> what is found, as JSON keeps it.
    """
    folder = cache_folder()
    place = None if folder is None else folder / "facts" / f"{_name(root)}-{kind}.json"
    kept = _read(place)
    changed = _distrusted.get()
    stamps = [_stamp(os.path.join(root, path)) for path in paths]
    found: dict[str, Fact | DataError] = {}
    for path, stamp in zip(paths, stamps, strict=True):
        held = kept.get(path)
        if held is not None and held[0] == stamp and changed is None:
            found[path] = held[1]
    unknown = [(path, stamp) for path, stamp in zip(paths, stamps, strict=True) if path not in found]
    settled = time.time_ns() - SETTLED

    def look(item: tuple[str, str]) -> Fact | DataError:
        try:
            return find(root / item[0])
        except DataError as error:
            return error

    fresh: Kept = {}
    with ThreadPoolExecutor(2 * cores()) as pool:
        for (path, stamp), fact in zip(unknown, pool.map(look, unknown), strict=True):
            found[path] = fact
            if isinstance(fact, DataError):
                continue
            if changed is not None and path in kept and kept[path][0] == stamp and kept[path][1] != fact:
                changed.append(path)
            if stamp and _changed_at(stamp) < settled and _stamp(os.path.join(root, path)) == stamp:
                fresh[path] = stamp, fact
    if fresh:
        _write(place, kept | fresh)
    return [found[path] for path in paths]


def content_digest(path: Path) -> str:
    """Hexadecimal sha256 of a file's content.

    Raises:
        UnreadableFile: As `as_stored`.
    """
    with as_stored(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _name(root: Path) -> str:
    return hashlib.sha256(os.fsencode(root.absolute())).hexdigest()[:24]


def _stamp(path: str) -> str:
    """Size, time of the content, time of the inode, and inode; empty where there is no file."""
    try:
        found = os.stat(path)
    except OSError:
        return ""
    return f"{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}:{found.st_ino}"


def _changed_at(stamp: str) -> int:
    """When the file last changed, in nanoseconds."""
    return max(int(part) for part in stamp.split(":")[1:3])


def _read(place: Path | None) -> Kept:
    """What is kept; a file that is damaged, or cannot be read, keeps nothing."""
    try:
        kept = json.loads(place.read_bytes()) if place is not None else {}
    except (OSError, ValueError, RecursionError):
        return {}
    whole = isinstance(kept, dict) and all(isinstance(item, list) and len(item) == 2 for item in kept.values())
    return kept if whole else {}


def _write(place: Path | None, kept: Kept) -> None:
    """Keeps it where there is a cache that can be written."""
    if place is None:
        return
    partial = place.with_name(f"{place.name}.{os.getpid()}.partial")
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_text(json.dumps(kept))
            os.replace(partial, place)
        finally:
            partial.unlink(missing_ok=True)
