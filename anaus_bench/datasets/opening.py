"""The one way to open a file of the user's: a regular file, inside the root, of a bounded size."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from anaus_bench.errors import LayoutError, UnreadableFile, WrongVersion

MAX_BYTES = 2**30  # what one file may cost in memory once it is decoded
MAX_STORED = 2**36  # what one file may have on disk; it is read in pieces
HEAD = 512  # bytes by which impostors are told
SHOWN = 200  # characters of a value in a message
LFS_POINTER = b"version https://git-lfs"
WEB_PAGE = (b"<!doctype html", b"<html")
KINDS = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
ADVICE = {
    errno.ENOENT: "it is missing; copy or download it again",
    errno.ENOTDIR: "it is missing; copy or download it again",
    errno.EACCES: "this user has no right to; change its permissions",
    errno.EPERM: "this user has no right to; change its permissions",
    errno.ELOOP: "it is a link that leads back to itself; remove it",
    errno.ENXIO: "it is a socket or a device, not a file; remove it",
    errno.EISDIR: "it is a folder; expected a file",
    errno.ENAMETOOLONG: "its name is too long; rename it",
}


@contextmanager
def opened(path: Path, *, root: Path | None = None, most: int = MAX_STORED) -> Iterator[BufferedReader]:
    """A file at its first byte.

    Args:
        path: The file.
        root: The folder that it must lie in, links followed; None where its name is from a listing that checked it.
        most: Largest size in bytes.

    Raises:
        UnreadableFile: Missing, not permitted, no regular file, empty, too large, or a web page under this name.
        WrongVersion: The text that git-LFS leaves where the content was not fetched.
        LayoutError: It lies outside of the root.
    """
    with as_stored(path) as file:
        size = os.fstat(file.fileno()).st_size
        if root is not None and not path.resolve().is_relative_to(root.resolve()):
            raise LayoutError(
                f"{str(path)!r} leads to {str(path.resolve())!r}, outside of {str(root)!r}; copy the file there"
            )
        if size == 0:
            raise UnreadableFile(f"{str(path)!r} is empty (0 bytes); copy or download it again")
        if size > most:
            raise UnreadableFile(f"{str(path)!r} has {size} bytes; at most {most} are read")
        try:
            _refuse_impostors(path, file.read(HEAD))
            file.seek(0)
        except OSError as error:
            raise unreadable(path, error) from error
        yield file


@contextmanager
def as_stored(path: Path) -> Iterator[BufferedReader]:
    """A regular file, whatever it holds.

    Raises:
        UnreadableFile: Missing, not permitted, or no regular file.
    """
    try:
        # A named pipe would block a plain open until someone writes into it.
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    kind = os.fstat(number).st_mode
    if not stat.S_ISREG(kind):
        os.close(number)
        found = KINDS.get(stat.S_IFMT(kind), "a folder")
        raise UnreadableFile(f"{str(path)!r} cannot be read: it is {found}, not a file; remove it")
    with os.fdopen(number, "rb") as file:
        yield file


def read_bytes(path: Path, *, root: Path | None = None, most: int = MAX_BYTES) -> bytes:
    """All of a file.

    Raises:
        DataError: As `opened`.
    """
    with opened(path, root=root, most=most) as file:
        try:
            return file.read()
        except OSError as error:
            raise unreadable(path, error) from error


def check_cost(path: Path, cost: int, what: str) -> None:
    """Refuses a file that would cost too much memory, before it is decoded.

    Args:
        path: The file.
        cost: Bytes that its header promises.
        what: What they are, for the message, such as `10000 x 10000 pixels`.

    Raises:
        UnreadableFile: More than `MAX_BYTES`.
    """
    if cost > MAX_BYTES:
        raise UnreadableFile(f"{str(path)!r} has {what}, {cost} bytes once decoded; at most {MAX_BYTES} are read")


def unreadable(path: Path, error: Exception) -> UnreadableFile:
    """What the system says about opening a file, and what to do about it."""
    advice = ADVICE.get(error.errno or 0) if isinstance(error, OSError) else None
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return UnreadableFile(f"{str(path)!r} cannot be read: {advice or f'{short(reason)}; check the disk'}")


def damaged(path: Path, error: Exception, what: str = "decoded") -> UnreadableFile:
    """What a decoder says about a file's content, and what to do about it."""
    if isinstance(error, OSError) and error.errno is not None:
        return unreadable(path, error)
    # Some decoders say no more than the kind of error, or a name that they missed.
    reason = short(error) if str(error).count(" ") >= 2 else "its content is damaged or of another format"
    return UnreadableFile(f"{str(path)!r} cannot be {what}: {reason}; copy or download it again")


def short(value: object) -> str:
    """A value as text of one line, cut where it is long."""
    text = " ".join(str(value).split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text)} characters)"


def _refuse_impostors(path: Path, head: bytes) -> None:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(WEB_PAGE) or (text.startswith((b"<?xml", b"<!--")) and b"<html" in text):
        raise UnreadableFile(
            f"{str(path)!r} is a web page (HTML) saved under this name, such as one that asks for a login; "
            "download the file itself"
        )
    if head.startswith(LFS_POINTER):
        raise WrongVersion(
            f"{str(path)!r} is a git-LFS pointer, not the file itself; run 'git lfs pull' where it is from"
        )
