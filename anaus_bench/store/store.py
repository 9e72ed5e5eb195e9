"""The store: stage key -> artifact folder with its record, published whole.

`<root>/<kind>/<key>/` holds `record.json` and the artifact's files. Each attempt at a stage works in a folder of its
own, `<root>/<kind>/.<key>.<token>/` (`out/` and `resume/`), begins with a copy of what an earlier one left, and renames
`out/` into place when it is complete: a reader sees all or nothing, and of several attempts the first to end is kept.
The lock of a key saves work and carries nothing else: where there is none, stages may be done twice.
"""

from __future__ import annotations

import contextlib
import errno
import json
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from anaus_bench.errors import StoreError
from anaus_bench.machine.failures import explain
from anaus_bench.machine.files import PARTIAL, file_digest, sync, write_whole
from anaus_bench.store.attempts import OWNER, Workplace, is_alive, remove_folder, resume_files, start_attempt
from anaus_bench.store.locks import Lock
from anaus_bench.store.marker import check, mark
from anaus_bench.store.records import RECORD, Record, digest_of, mend, no_record, parsed, sealed

POLL_SECONDS = 0.1
SAY_EVERY = 60.0  # seconds between what a waiting process says
State = Literal["done", "damaged", "running", "resumable", "absent"]


class Store:
    """A folder of artifacts.

    Args:
        root: Created, with the format's number in it, when the first artifact is claimed; `~` is the home folder. A
            folder that holds nothing but keys is taken for a store that has lost that number.

    Raises:
        StoreError: Not a store, or one of another version.
    """

    def __init__(self, root: Path) -> None:
        try:
            self.root = root.expanduser()
        except RuntimeError as error:
            raise StoreError(f"store {str(root)!r}: {error}; pass another --store") from error
        check(self.root)

    def folder(self, kind: str, key: str) -> Path:
        """Where a finished artifact is."""
        return self.root / kind / key

    def state(self, kind: str, key: str) -> State:
        """How far a stage is; `done` looks at the record alone, `running` asks the lock."""
        try:
            if self.record(kind, key) is not None:
                return "done"
        except StoreError:
            return "damaged"
        if self.holder(kind, key) is not None:
            return "running"
        return "resumable" if self._left(kind, key) else "absent"

    def record(self, kind: str, key: str) -> Record | None:
        """Record of a finished artifact; None without one: it is not finished.

        Raises:
            StoreError: Damaged, or not to be read.
        """
        path = self.folder(kind, key) / RECORD
        try:
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StoreError(explain(error)) from error
        record = parsed(path, content, mend(path.parent))
        if record.get("digest") != digest_of(record):
            raise StoreError(f"{path} is damaged (its content has another digest than it says); {mend(path.parent)}")
        return record

    def records(self, kind: str) -> list[Record]:
        """Readable records of all finished artifacts of a kind, oldest first; `damaged` names the others."""
        found = []
        for key in self._keys(kind):
            with contextlib.suppress(StoreError):
                record = self.record(kind, key)
                found += [record] if record is not None else []
        return sorted(found, key=lambda record: str(record.get("finished", "")))

    def damaged(self, kind: str) -> dict[str, str]:
        """Key -> what is wrong with the record of an artifact that is there, for all of a kind."""
        found = {}
        for key in self._keys(kind):
            try:
                if self.record(kind, key) is None:
                    found[key] = no_record(self.folder(kind, key))
            except StoreError as error:
                found[key] = str(error)
        return found

    def artifacts(self) -> list[tuple[str, str]]:
        """Kind and key of each artifact folder, whatever its state."""
        return [(kind, key) for kind in self._kinds() for key in self._keys(kind)]

    def unfinished(self) -> list[tuple[str, str]]:
        """Kind and key of each stage of which attempts are there: running, interrupted, or left over."""
        return [
            (kind, key)
            for kind in self._kinds()
            for key in sorted({path.name.split(".")[1] for path in (self.root / kind).glob(".*.*")})
        ]

    def faults(self, kind: str, key: str) -> Iterator[str]:
        """What is wrong with an artifact: its record, and each file that differs from it."""
        folder = self.folder(kind, key)
        try:
            record = self.record(kind, key)
        except StoreError as error:
            yield str(error)
            return
        if record is None:
            yield no_record(folder)
            return
        for name, expected in record["files"].items():
            path = folder / name
            try:
                found = path.stat().st_size if path.is_file() else None
                if found != expected["bytes"]:
                    size = "is missing" if found is None else f"has {found} bytes"
                    yield f"{path} {size}, expected {expected['bytes']} bytes; {mend(folder)}"
                elif file_digest(path) != expected["sha256"]:
                    yield f"{path} is damaged: its sha256 differs from the record's; {mend(folder)}"
            except OSError as error:
                yield explain(error)

    def open(self, kind: str, key: str) -> Path:
        """Folder of a finished artifact, whose files are checked against its record.

        Raises:
            StoreError: Absent, incomplete, damaged or not to be read.
        """
        if not self.folder(kind, key).exists():
            raise StoreError(f"store has no {kind} {key}; run the cell again")
        for fault in self.faults(kind, key):
            raise StoreError(fault)
        return self.folder(kind, key)

    def holder(self, kind: str, key: str) -> str | None:
        """Who is at work on a stage, in words; None if nobody is, or if there are no locks."""
        return self._lock(kind, key).holder()

    @contextmanager
    def claim(self, kind: str, key: str, waiting: Callable[[str], None] = lambda holder: None) -> Iterator[Workplace]:
        """An attempt at a stage, alone where there are locks: a folder to work in, with what an earlier attempt left.

        Args:
            kind: Kind of stage.
            key: Its key.
            waiting: Told, after a second and then once a minute, who it is that another process waits for.

        Raises:
            OSError: The store cannot be written.
        """
        mark(self.root)
        (self.root / kind).mkdir(exist_ok=True)
        lock, say_at = self._lock(kind, key), time.monotonic() + 1
        while not lock.acquire():
            if time.monotonic() >= say_at:
                waiting(lock.holder() or "another process")
                say_at = time.monotonic() + SAY_EVERY
            time.sleep(POLL_SECONDS)
        try:
            place = self._begin(kind, key, lock.works)
            try:
                yield place
            finally:
                private = place.out.parent
                (private / OWNER).unlink(missing_ok=True)
                if self._is_published(kind, key) or not resume_files(private):
                    remove_folder(private)
        finally:
            lock.release()

    def publish(self, kind: str, key: str, place: Workplace, record: Record) -> Record:
        """Moves a finished artifact into place, with its record, which is returned as it is read back.

        An artifact that is there and sound is kept, and its record returned: somebody else was faster. One that is not
        is replaced.

        Raises:
            OSError: The store cannot be written.
        """
        paths = sorted(place.out.rglob("*"))
        files = {
            path.relative_to(place.out).as_posix(): {"bytes": path.stat().st_size, "sha256": file_digest(path)}
            for path in paths
            if path.is_file()
        }
        record = sealed({**record, "files": files})
        write_whole(place.out / RECORD, json.dumps(record, indent=1, allow_nan=True))
        for path in [*paths, place.out]:
            if path.is_file():
                shutil.copymode(place.out / RECORD, path)  # some libraries write for the owner alone
            sync(path)
        folder, aside = self.folder(kind, key), place.out.parent / "aside"
        while True:
            try:
                place.out.rename(folder)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
                if next(self.faults(kind, key), None) is None:
                    return self.record(kind, key) or record
                with contextlib.suppress(FileNotFoundError):  # somebody else moved it
                    folder.rename(aside / secrets.token_hex(4))
            else:
                sync(folder.parent)
                return record

    def tidy(self, kind: str, key: str, interrupted: bool = False) -> int:
        """Removes what attempts at a finished stage left; what somebody is at work on stays.

        Args:
            kind: Kind of stage.
            key: Its key.
            interrupted: Removes what attempts at an unfinished stage left as well.

        Returns:
            Bytes removed.
        """
        left = self._private(kind, key)
        lock = self._lock(kind, key)
        if not (left or lock.path.exists()) or not lock.acquire():
            return 0
        try:
            if not (interrupted or self._is_published(kind, key)):
                left = [path for path in left if path.name.endswith(PARTIAL)]
            return sum(map(remove_folder, left))
        finally:
            lock.release()

    def _begin(self, kind: str, key: str, locked: bool) -> Workplace:
        """The folder of a new attempt; under the lock, those of earlier ones go once it holds what they left."""
        private = self.root / kind / f".{key}.{secrets.token_hex(4)}"
        fresh = private.with_name(private.name + PARTIAL)
        earlier = self._private(kind, key)
        try:
            with contextlib.suppress(FileNotFoundError):  # without locks, an attempt may end while it is copied
                start_attempt(fresh, self._left(kind, key))
                fresh.rename(private)
            if not private.exists():
                shutil.rmtree(fresh)
                start_attempt(fresh, None)
                fresh.rename(private)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        if locked:
            for path in earlier:
                if not is_alive(path):  # the lock says so, but some file systems' locks hold nobody
                    remove_folder(path)
        return Workplace(private / "out", private / "resume", locked)

    def _private(self, kind: str, key: str) -> list[Path]:
        """Folders of all attempts at a stage, those that were not yet begun included."""
        return [path for path in (self.root / kind).glob(f".{key}.*") if path.is_dir()]

    def _left(self, kind: str, key: str) -> Path | None:
        """Folder of the attempt at a stage that was saved last; None if nothing was saved."""
        begun = [path for path in self._private(kind, key) if not path.name.endswith(PARTIAL)]
        saved = [path for path in begun if resume_files(path)]
        return max(saved, key=lambda path: (path / "resume").stat().st_mtime, default=None)

    def _is_published(self, kind: str, key: str) -> bool:
        return (self.folder(kind, key) / RECORD).exists()

    def _lock(self, kind: str, key: str) -> Lock:
        return Lock(self.root / kind / f".{key}.lock")

    def _kinds(self) -> list[str]:
        if not self.root.exists():
            return []
        return sorted(path.name for path in self.root.iterdir() if path.is_dir() and not path.name.startswith("."))

    def _keys(self, kind: str) -> list[str]:
        folder = self.root / kind
        if not folder.is_dir():
            return []
        return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
