"""The store: stage key -> artifact folder with its record, written atomically.

`<root>/<kind>/<key>/` holds `record.json` and the artifact's files. A stage works in `<root>/<kind>/.<key>/` (`out/`
and `resume/`) and `out/` is renamed into place when it is complete: a reader sees all or nothing. A lock per key lets
several processes share a store.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from anaus_bench.errors import StoreError
from anaus_bench.nn.weights import file_digest

FORMAT = 1
Record = dict[str, Any]


@dataclass(frozen=True)
class Workplace:
    """Where a claimed stage works: `out` is published, `resume` is private and survives a kill."""

    out: Path
    resume: Path


class Store:
    """A folder of artifacts.

    Args:
        root: Created, with the format's number in it, when the first artifact is claimed.

    Raises:
        StoreError: Not a store, or one of a newer version.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        marker = root / "store.json"
        if marker.exists():
            found = _read_json(marker).get("format")
            if not isinstance(found, int) or found > FORMAT:
                raise StoreError(
                    f"store {str(root)!r} has format {found!r}, this version reads up to {FORMAT}; "
                    "upgrade anaus-bench or pass another --store"
                )
        elif root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise StoreError(f"{str(root)!r} is no store and not an empty folder; pass another --store")

    def folder(self, kind: str, key: str) -> Path:
        """Where a finished artifact is."""
        return self.root / kind / key

    def record(self, kind: str, key: str) -> Record | None:
        """Record of a finished artifact, or None."""
        path = self.folder(kind, key) / "record.json"
        return _read_json(path) if path.exists() else None

    def records(self, kind: str) -> list[Record]:
        """Records of all finished artifacts of a kind, oldest first."""
        paths = (self.root / kind).glob("[!.]*/record.json")
        return sorted((_read_json(path) for path in paths), key=lambda record: str(record.get("finished", "")))

    def open(self, kind: str, key: str) -> Path:
        """Folder of a finished artifact, whose files are checked against its record.

        Raises:
            StoreError: Absent, incomplete or damaged.
        """
        folder, record = self.folder(kind, key), self.record(kind, key)
        if record is None:
            raise StoreError(f"store has no {kind} {key}; run the cell again")
        for name, expected in record["files"].items():
            path = folder / name
            found = path.stat().st_size if path.is_file() else None
            if found != expected["bytes"]:
                size = "is missing" if found is None else f"has {found} bytes"
                raise StoreError(f"{path} {size}, expected {expected['bytes']} bytes; {_mend(folder)}")
            if file_digest(path) != expected["sha256"]:
                raise StoreError(f"{path} is damaged: its sha256 differs from the record's; {_mend(folder)}")
        return folder

    @contextmanager
    def claim(self, kind: str, key: str, waiting: Callable[[], None] = lambda: None) -> Iterator[Workplace]:
        """Holds the lock of a key; gives the folders to work in, with what a killed run left in `resume`.

        Args:
            kind: Kind of stage.
            key: Its key.
            waiting: Called once if another process holds the lock.
        """
        private = self.root / kind / f".{key}"
        private.mkdir(parents=True, exist_ok=True)
        self._mark()
        lock = filelock.FileLock(self.root / kind / f".{key}.lock")
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            waiting()
            lock.acquire()
        try:
            place = Workplace(private / "out", private / "resume")
            shutil.rmtree(place.out, ignore_errors=True)
            place.out.mkdir(parents=True)
            place.resume.mkdir(exist_ok=True)
            yield place
        finally:
            lock.release()

    def publish(self, kind: str, key: str, place: Workplace, record: Record) -> Record:
        """Moves the finished artifact into place, with its record; drops the resume state."""
        files = {
            path.relative_to(place.out).as_posix(): {"bytes": path.stat().st_size, "sha256": file_digest(path)}
            for path in sorted(place.out.rglob("*"))
            if path.is_file()
        }
        record = {**record, "files": files}
        (place.out / "record.json").write_text(json.dumps(record, indent=1, allow_nan=True))
        os.rename(place.out, self.folder(kind, key))
        shutil.rmtree(place.out.parent, ignore_errors=True)
        return record

    def is_interrupted(self, kind: str, key: str) -> bool:
        """Whether a killed or running stage left resume state."""
        resume = self.root / kind / f".{key}" / "resume"
        return resume.is_dir() and any(resume.iterdir())

    def _mark(self) -> None:
        marker = self.root / "store.json"
        if not marker.exists():
            partial = marker.with_suffix(f".{os.getpid()}")
            partial.write_text(json.dumps({"format": FORMAT}))
            os.replace(partial, marker)


def _mend(folder: Path) -> str:
    return f"delete {folder} and run again"


def _read_json(path: Path) -> Record:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} is damaged ({error}); {_mend(path.parent)}") from error
    if not isinstance(content, dict):
        raise StoreError(f"{path} is damaged (no record); {_mend(path.parent)}")
    return content
