"""Locks between processes: the holder says who it is, and a killed one holds nothing."""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
import platform
from pathlib import Path
from typing import BinaryIO

HELD = (errno.EAGAIN, errno.EACCES)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)


class Lock:
    """An advisory lock (`flock`) on a file that is there while it is held.

    Args:
        path: The file; its folder must exist.

    Attributes:
        works: False once the file system has answered that it has no locks.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.works = True
        self._stream: BinaryIO | None = None

    def acquire(self) -> bool:
        """Takes it, without waiting; False if somebody else holds it. Where there are no locks, nobody ever does.

        Raises:
            OSError: The file cannot be made.
        """
        while True:
            stream = self.path.open("a+b")
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                stream.close()
                if error.errno in HELD:
                    return False
                if error.errno not in NO_LOCKS:
                    raise
                self.works = False
                self.path.unlink(missing_ok=True)
                return True
            if self._is_at_path(stream):
                break
            stream.close()  # its last holder removed it in between
        self._stream = stream
        since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        try:
            stream.truncate(0)
            stream.write(json.dumps({"host": platform.node(), "process": os.getpid(), "since": since}).encode())
            stream.flush()
        except OSError:
            self.release()
            raise
        return True

    def release(self) -> None:
        """Lets it go and removes its file."""
        if self._stream is not None:
            self.path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # what cannot be written of it is of no use any more
                self._stream.close()
            self._stream = None

    def holder(self) -> str | None:
        """Who holds it, in words; None if nobody does, or the file system has no locks."""
        try:
            with self.path.open("rb") as stream:
                try:
                    fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except OSError as error:
                    if error.errno in HELD:
                        return _words(stream.read())
                    if error.errno not in NO_LOCKS:
                        raise
        except FileNotFoundError:
            pass
        return None

    def _is_at_path(self, stream: BinaryIO) -> bool:
        try:
            return os.path.samestat(os.fstat(stream.fileno()), self.path.stat())
        except FileNotFoundError:
            return False


def _words(content: bytes) -> str:
    try:
        found = json.loads(content)
        return f"process {found['process']} on {found['host']} since {found['since']}"
    except (ValueError, KeyError, TypeError):  # it has just taken the lock and not yet said who it is
        return "another process"
