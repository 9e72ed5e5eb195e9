"""Files that are whole or not there: written aside, synced to the disk, then renamed."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from anaus_bench.lazy import torch

PARTIAL = ".partial"  # ends the names of files and folders that are not whole yet


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A stream whose content takes the place of `path` when the block ends; after an error `path` is as it was.

    Content and folder are synced, so that a file that is there after a power loss is whole. Its mode follows the umask.

    Raises:
        OSError: It cannot be written.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        with partial.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync(path.parent)


def write_whole(path: Path, content: str | bytes | memoryview) -> None:
    """Writes a file at once, text as UTF-8; see `written_whole`."""
    with written_whole(path) as stream:
        stream.write(content.encode() if isinstance(content, str) else content)


def save_torch(path: Path, content: object) -> None:
    """`torch.save` as `write_whole`: its own writer makes of a full disk an error without a number."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_whole(path, buffer.getbuffer())


def sync(path: Path) -> None:
    """Waits until a file's content, or the names in a folder, are on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        # Some network file systems sync no folders: what they have said to be renamed is.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)):
            raise
    finally:
        os.close(number)


def reserve(path: Path) -> None:
    """Takes the file's whole space now: a full disk is then an error here, and not a crash at some later page.

    Raises:
        OSError: No space left.
    """
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)


def file_digest(path: Path) -> str:
    """Hexadecimal sha256 of a file, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes one line per row, with a column for every name that any row has, in the order of appearance."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, fieldnames=list(dict.fromkeys(name for row in rows for name in row)))
        table.writeheader()
        table.writerows(rows)
