"""Pickled numpy arrays, read without running what a pickle may ask for.

A pickle is a program. Of all names that it may call, only those with which numpy rebuilds an array are known here, and
even they stand for functions of this module that take numbers of a plain type and nothing else.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from anaus_bench.datasets.opening import opened, short, unreadable
from anaus_bench.errors import UnreadableFile, WrongVersion

SKIPPED_FROM = 2**20  # bytes: content of an array that is not wanted; smaller arrays are read even so
NUMBER = re.compile(r"b1|[iu][1248]|f[248]")
DAMAGED = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    MemoryError,
)


def read_arrays(path: Path, *, content: bool = True) -> tuple[NDArray[Any], ...]:
    """The arrays of a pickled tuple or list of numpy arrays, read-only.

    Args:
        path: The file.
        content: Whether to read large arrays; otherwise those of a mebibyte and more have their shape and zeros, and
            the file is passed over without being read.

    Raises:
        UnreadableFile: Damaged, truncated, or not a tuple of arrays of numbers.
        WrongVersion: It holds anything but numpy arrays, which would have to be run to be read.
    """
    try:
        with opened(path) as file:
            source = file if content else _Skipping(file, path.stat().st_size)
            loaded = _ArrayUnpickler(source, path).load()
        if isinstance(loaded, (tuple, list)) and loaded and all(isinstance(item, _Array) for item in loaded):
            return tuple(item.array() for item in loaded)
    except OSError as error:
        raise unreadable(path, error) from error
    except DAMAGED as error:
        raise UnreadableFile(
            f"{str(path)!r} is damaged: {short(error) or 'out of memory'}; copy or download it again"
        ) from error
    raise UnreadableFile(f"{str(path)!r} holds {type(loaded).__name__!r}; expected a tuple of arrays of numbers")


class _ArrayUnpickler(pickle.Unpickler):
    def __init__(self, file: Any, path: Path) -> None:
        super().__init__(file)
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        core = re.fullmatch(r"numpy\._?core\.(\w+)", module)
        match (core[1] if core else module, name):
            case ("numpy", "ndarray"):
                return "ndarray"
            case ("numpy", "dtype"):
                return partial(_Dtype)
            case ("multiarray", "_reconstruct") if core:
                return partial(_reconstruct)
            case ("numeric", "_frombuffer") if core:
                return partial(_frombuffer)
        raise WrongVersion(
            f"{str(self._path)!r} asks for {f'{module}.{name}'!r}; only numpy arrays are read, because anything else "
            "would be run: save its arrays again as a tuple"
        )

    def persistent_load(self, pid: Any) -> Any:
        raise WrongVersion(f"{str(self._path)!r} refers to {pid!r} outside of it; only numpy arrays are read")


class _Dtype:
    """Stands for a numpy type: its code, such as `u1`, and its byte order."""

    def __init__(self, code: str, *_: object) -> None:
        self.code, self.order = code, "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def build(self) -> np.dtype[Any]:
        if not NUMBER.fullmatch(self.code) or self.order not in ("|", "<", ">", "="):
            raise ValueError(f"an array of type {self.code!r}; expected numbers")
        return np.dtype(self.order + self.code)


class _Array:
    """Stands for a numpy array until its content is there."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.dtype, self.fortran, self.content = state

    def array(self) -> NDArray[Any]:
        if not isinstance(self.dtype, _Dtype) or not isinstance(self.content, (bytes, bytearray)):
            raise TypeError("an array whose type or content is no such thing")
        dtype = self.dtype.build()
        if math.prod(self.shape) * dtype.itemsize != len(self.content):
            raise ValueError(f"an array of shape {self.shape} with {len(self.content)} bytes")
        return np.frombuffer(self.content, dtype).reshape(self.shape, order="F" if self.fortran else "C")


def _reconstruct(*_: object) -> _Array:
    """An array whose state comes next."""
    return _Array()


def _frombuffer(content: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
    """An array of protocol 5."""
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", content))
    return array


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
