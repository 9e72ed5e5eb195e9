"""How machines fail: what to say of an error of the operating system, by its number, and of want of memory."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT)
_DENIED = (errno.EACCES, errno.EPERM)
_NEXT_STEP = {
    errno.EROFS: "it is mounted read-only: pass another --store or --output",
    errno.EIO: "the disk or its connection fails: look into the system's log, and copy what is there",
    errno.ESTALE: "the network mount has gone: mount it again",
    errno.EMFILE: "too many files are open in this process: raise `ulimit -n`",
    errno.ENFILE: "too many files are open on this machine: end other programs",
    errno.EFBIG: "the file is larger than the file system or `ulimit -f` allows: pass another --store or raise it",
    errno.ENAMETOOLONG: "the path or one of its names is too long: pass a shorter one",
    errno.ELOOP: "links lead in a circle: mend them or pass another path",
    errno.EEXIST: "something else is in its place, such as a link to nowhere: remove it or pass another path",
    errno.ENOTDIR: "a part of the path is a file: pass another path",
    errno.EOPNOTSUPP: "its file system cannot do this: pass another --store",
    errno.ENOMEM: "no memory is left: end other programs",
}
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


def explain(error: OSError, store: Path | None = None) -> str:
    """What failed and the next step, in one line.

    Args:
        error: From the operating system.
        store: Where the file that names none is likely to be.
    """
    if error.errno in _FULL:
        quota = ", by your quota" if error.errno == errno.EDQUOT else ""
        where = "for the output" if store is None else f"in store {str(store)!r} ({_free(store):.0f} MiB free{quota})"
        return f"no space left {where}; free some, or pass another --store"
    path = error.filename if error.filename is not None else store
    what = "the output" if path is None else repr(os.fsdecode(path) if isinstance(path, bytes) else str(path))
    if len(what) > 300:
        what = f"{what[:140]}...{what[-140:]}"
    reason = error.strerror or str(error) or type(error).__name__
    if error.errno in _DENIED and isinstance(path, str | Path):
        step = f"{_owner(Path(path))}; ask for access or pass another path"
    else:
        step = _NEXT_STEP.get(error.errno or 0, "check --store and --output")
    return f"{what} cannot be read or written ({reason}); {step}"


def is_want_of_memory(error: BaseException) -> bool:
    """Whether Python, numpy or torch found no memory, on the CPU or a GPU."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY)


def as_os_error(error: Exception) -> OSError | None:
    """The error of the operating system behind a failed write of torch or safetensors, which hide it; None without.

    What a plugin writes with `anaus_bench.machine.files` shows its errors as they are.
    """
    found = re.search(r"\(os error (\d+)\)", str(error))
    if found is not None:
        return OSError(int(found[1]), os.strerror(int(found[1])))
    if "PytorchStreamWriter failed" in str(error) or "unexpected pos" in str(error):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # the usual cause; the free space is said with it
    return None


def _free(folder: Path) -> float:
    """MiB left where a folder is, or will be."""
    return shutil.disk_usage(_existing(folder)).free / 2**20


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    path = path.absolute()
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    return path


def _owner(path: Path) -> str:
    """Whose a file or folder is, and who may do what."""
    path = _existing(path)
    found = path.stat(follow_symlinks=False)
    try:
        import pwd

        owner = pwd.getpwuid(found.st_uid).pw_name
    except (ImportError, KeyError):
        owner = str(found.st_uid)
    return f"{str(path)!r} belongs to {owner} and has mode {stat.filemode(found.st_mode)}"
