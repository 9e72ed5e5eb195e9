"""Pickled numpy arrays, read without running what a pickle may ask for.

A pickle is a program. Only the names with which numpy rebuilds an array are known here; any other name ends the
reading before anything is called.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from anaus_bench.errors import UnreadableFile, WrongVersion

SKIPPED_FROM = 2**20  # bytes: content of an array that is not wanted; smaller arrays are read even so
DAMAGED = (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, MemoryError)


def read_arrays(path: Path, *, content: bool = True) -> tuple[NDArray[Any], ...]:
    """The arrays of a pickled tuple or list of numpy arrays.

    Args:
        path: The file.
        content: Whether to read large arrays; otherwise those of a mebibyte and more have their shape and zeros, and
            the file is passed over without being read.

    Raises:
        UnreadableFile: Damaged, truncated, or not a tuple of arrays of numbers.
        WrongVersion: It holds anything but numpy arrays, which would have to be run to be read.
    """
    try:
        with path.open("rb") as file:
            source = file if content else _Skipping(file, path.stat().st_size)
            loaded = _ArrayUnpickler(source, path).load()
    except OSError as error:
        raise UnreadableFile(f"{str(path)!r} cannot be read: {error}") from error
    except DAMAGED as error:
        raise UnreadableFile(
            f"{str(path)!r} is damaged: {error or 'out of memory'}; copy or download it again"
        ) from error
    arrays = loaded if isinstance(loaded, (tuple, list)) else ()
    if not arrays or not all(isinstance(array, np.ndarray) and array.dtype.kind in "biuf" for array in arrays):
        raise UnreadableFile(f"{str(path)!r} holds {type(loaded).__name__!r}; expected a tuple of arrays of numbers")
    return tuple(arrays)


class _ArrayUnpickler(pickle.Unpickler):
    def __init__(self, file: Any, path: Path) -> None:
        super().__init__(file)
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise WrongVersion(
                f"{str(self._path)!r} asks for {f'{module}.{name}'!r}; only numpy arrays are read, because anything else "
                "would be run: save its arrays again as a tuple"
            )
        return ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise WrongVersion(f"{str(self._path)!r} refers to {pid!r} outside of it; only numpy arrays are read")


def _reconstruct(kind: type, shape: tuple[int, ...], code: bytes) -> NDArray[Any]:
    """What numpy's function of this name makes: an array whose shape, type and content come next."""
    if kind is not np.ndarray or shape != (0,):
        raise pickle.UnpicklingError("an array is rebuilt in a way that numpy does not")
    return np.empty(0, dtype=np.int8)


def _frombuffer(content: bytes, dtype: np.dtype[Any], shape: tuple[int, ...], order: str) -> NDArray[Any]:
    """An array of protocol 5."""
    return np.frombuffer(content, dtype).reshape(shape, order="F" if order == "F" else "C")


ALLOWED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
}


class _Skipping:
    """A file that answers zeros for long reads, passing over their bytes."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        self.readline = file.readline

    def read(self, size: int) -> bytes:
        if size < SKIPPED_FROM or self._file.tell() + size > self._size:
            return self._file.read(size)
        self._file.seek(size, io.SEEK_CUR)
        return bytes(size)
