"""Arrays in .npy files; the objects that such a file may hold as a pickle are never loaded."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from anaus_bench.datasets.opening import check_cost, damaged, opened
from anaus_bench.errors import UnreadableFile

DAMAGED = (ValueError, OSError, EOFError, SyntaxError, TypeError, LookupError, RecursionError, MemoryError)


def read_array(path: Path) -> NDArray[Any]:
    """The array of a file, in memory.

    Raises:
        UnreadableFile: Damaged, of more bytes than may be read, or of objects.
        DataError: As `opened`.
    """
    return _load(path, None, costly=True)


def open_array(path: Path, *, root: Path) -> NDArray[Any]:
    """The array of a file inside `root`, which stays on disk until it is read.

    Raises:
        DataError: As `read_array`.
    """
    return _load(path, root, costly=False)


def _load(path: Path, root: Path | None, *, costly: bool) -> NDArray[Any]:
    with opened(path, root=root) as file:
        try:
            version = npy.read_magic(file)
            read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
            if read is None:
                raise ValueError(f"it has the format version {version}, expected 1.0 or 2.0")
            shape, _, kind = read(file)
            if kind.hasobject:
                raise UnreadableFile(f"{str(path)!r} holds Python objects, which are not loaded; save numbers")
            if costly:
                check_cost(path, math.prod(shape) * kind.itemsize, f"the shape {shape}")
            file.seek(0)
            loaded: NDArray[Any] = np.load(file if costly else path, mmap_mode=None if costly else "r")
        except DAMAGED as error:
            raise damaged(path, error) from error
    return loaded
