"""Arrays of MATLAB files of version 5."""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anaus_bench.datasets.opening import check_cost, damaged, opened, short
from anaus_bench.errors import UnreadableFile, WrongVersion

VERSION_73 = (b"MATLAB 7.3", b"\x89HDF")
# What scipy raises on damaged files depends on the bytes.
DAMAGED = (
    ValueError,
    TypeError,
    LookupError,
    OSError,
    EOFError,
    ArithmeticError,
    MemoryError,
    AttributeError,
    NotImplementedError,
    struct.error,
    zlib.error,
)


def matlab_shape(path: Path, variable: str) -> tuple[int, ...]:
    """Shape (F, H, W) of a variable; its values are not read.

    Raises:
        WrongVersion: MATLAB 7.3, which is another format.
        UnreadableFile: Damaged, or without such a variable of three axes.
        DataError: As `opened`.
    """
    from scipy.io import whosmat
    from scipy.io.matlab import MatReadError

    with opened(path) as file:
        if file.read(128).startswith(VERSION_73):
            raise WrongVersion(
                f"{str(path)!r} is a MATLAB 7.3 file (HDF5); needed: version 5, as published: save it with '-v7' or "
                "download it again"
            )
        file.seek(0)
        try:
            shapes: dict[str, tuple[int, ...]] = {name: tuple(shape) for name, shape, _ in whosmat(file)}
        except (*DAMAGED, MatReadError) as error:
            raise damaged(path, error) from error
    shape = shapes.get(variable, ())
    if len(shape) != 3 or min(shape) < 1:
        found = ", ".join(f"{short(name)!r} of shape {shape}" for name, shape in list(shapes.items())[:5])
        raise UnreadableFile(
            f"{str(path)!r} holds {found or 'nothing'}; expected {variable!r} of shape (frames, height, width)"
        )
    check_cost(path, 8 * math.prod(shape), f"an array of shape {shape}")
    return shape


def read_matlab(path: Path, variable: str) -> NDArray[Any]:
    """A variable (F, H, W) of numbers.

    Raises:
        DataError: As `matlab_shape`.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    shape = matlab_shape(path, variable)
    with opened(path) as file:
        try:
            stack = np.asarray(loadmat(file, variable_names=[variable])[variable])
        except (*DAMAGED, MatReadError) as error:
            raise damaged(path, error) from error
    if stack.shape != shape:
        raise UnreadableFile(f"{str(path)!r} holds {variable!r} of shape {stack.shape}, its header says {shape}")
    return stack
