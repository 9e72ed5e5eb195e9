"""What finished stages wrote, read back: bounded, and checked against a schema before anybody relies on it."""

from __future__ import annotations

import csv
import io
import re
import tokenize
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pydantic

from anaus_bench.errors import LONGEST, StoreError, shown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ContentT = TypeVar("ContentT")
MOST_BYTES = 2**30  # of a file that is read at once
NAME = re.compile(r"[\w. +-]{1,200}", re.ASCII)  # of a file, on any system


def damaged(path: Path, found: str) -> StoreError:
    """The error of a file of the store that does not hold what its stage writes."""
    return StoreError(f"{path} is damaged: {found[: 2 * LONGEST]}; delete {path.parent} and run again")


def join_names(folder: Path, *names: str) -> Path:
    """The path of names that a record holds, which stays inside of the folder.

    Raises:
        StoreError: One of them is no name of a file, but leads elsewhere.
    """
    for name in names:
        if NAME.fullmatch(name) is None or name in (".", ".."):
            raise StoreError(f"{shown(name)}, from a record, is no name of a file; pass a path of your own")
    return folder.joinpath(*names)


def read_json(path: Path, schema: type[ContentT]) -> ContentT:
    """The content of a JSON file, as this type: a pydantic model, a dataclass, or what is made of such.

    Raises:
        StoreError: Absent, larger than `MOST_BYTES`, no JSON, or of another shape.
    """
    content = _content(path)
    try:
        return pydantic.TypeAdapter(schema).validate_json(content, strict=True)
    except pydantic.ValidationError as error:
        raise damaged(path, _first(error)) from None


def read_table(path: Path, row: type[ContentT]) -> list[ContentT]:
    """The rows of a CSV file under its heading, each as this type; numbers are read from their text.

    Raises:
        StoreError: Absent, larger than `MOST_BYTES`, no CSV in UTF-8, or with other columns or values.
    """
    try:
        with io.StringIO(_content(path).decode(), newline="") as stream:
            rows = list(csv.DictReader(stream, strict=True))
        adapter = pydantic.TypeAdapter(row)
        return [adapter.validate_python(values) for values in rows]
    except UnicodeDecodeError:
        raise damaged(path, "it is no text in UTF-8") from None
    except csv.Error as error:
        raise damaged(path, f"it is no table ({error})") from None
    except pydantic.ValidationError as error:
        raise damaged(path, _first(error)) from None


def read_array(path: Path, shape: tuple[int, ...] | None = None) -> NDArray[np.uint8]:
    """The images (N, S, S) uint8 of an `.npy` file, which stay on disk until they are used.

    Args:
        path: The file.
        shape: What its shape must be, if that is known.

    Raises:
        StoreError: Absent, no such file, or of another type or shape.
    """
    import numpy as np
    from numpy.lib.format import open_memmap

    if not path.is_file():
        raise damaged(path, "it is missing")
    try:
        array = open_memmap(path, mode="r")
    except (ValueError, SyntaxError, tokenize.TokenError):  # numpy reads its header as Python's
        raise damaged(path, "it is no array of numpy, or shorter than it says") from None
    square = array.ndim == 3 and array.shape[1] == array.shape[2]
    if array.dtype != np.uint8 or not square or (shape is not None and array.shape != shape):
        expected = "(N, S, S)" if shape is None else shape
        raise damaged(path, f"found {array.dtype} of shape {array.shape}, expected uint8 of shape {expected}")
    return array


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise damaged(path, "it is missing")
    if (size := path.stat().st_size) > MOST_BYTES:
        raise damaged(path, f"it has {size} bytes, at most {MOST_BYTES} are read")
    return path.read_bytes()


def _first(error: pydantic.ValidationError) -> str:
    """The first thing that is wrong: where, what stands there, and what should."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    found = f"{place[:LONGEST]} is {shown(first['input'])}: " if place else ""
    return f"{found}{first['msg'][:1].lower()}{first['msg'][1:]}"
