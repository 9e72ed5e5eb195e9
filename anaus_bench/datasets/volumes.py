"""Medical image volumes: NIfTI-1 through nibabel, MetaImage (.mhd with .raw or .zraw) read here.

A volume is a stack of frames (T, H, W); a single picture is a stack of one.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anaus_bench.datasets.images import MAX_PIXELS
from anaus_bench.datasets.opening import check_cost, damaged, opened
from anaus_bench.errors import UnreadableFile

NIFTI_SUFFIXES = (".nii.gz", ".nii")
METAIMAGE_SUFFIX = ".mhd"
LONGEST_HEADER = 2**16  # bytes of a MetaImage header
ELEMENTS = {
    "MET_UCHAR": "u1",
    "MET_CHAR": "i1",
    "MET_USHORT": "u2",
    "MET_SHORT": "i2",
    "MET_UINT": "u4",
    "MET_INT": "i4",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}


@dataclass(frozen=True)
class VolumeHeader:
    """Shape (T, H, W) of a volume and its pixel spacing (down, across) in mm."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float]


def volume_header(path: Path) -> VolumeHeader:
    """What the header says; the pixels are not read.

    Raises:
        UnreadableFile: Damaged header, or larger than may be read.
    """
    if path.name.lower().endswith(METAIMAGE_SUFFIX):
        return _metaimage_header(path)[0]
    with opened(path), _decoding(path):
        return _nifti_header(_nifti(path), path)


def read_volume(path: Path) -> NDArray[Any]:
    """(T, H, W): the frames as stored, in the file's own number type.

    Raises:
        UnreadableFile: Damaged or truncated.
    """
    if path.name.lower().endswith(METAIMAGE_SUFFIX):
        return _read_metaimage(path)
    with opened(path), _decoding(path):
        image = _nifti(path)
        _nifti_header(image, path)
        voxels = np.asarray(image.dataobj)  # axes X, Y[, T]
        return np.ascontiguousarray(voxels.reshape(*voxels.shape[:2], -1).transpose(2, 1, 0))


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """What nibabel raises about a damaged file becomes `UnreadableFile`."""
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    kinds = (OSError, EOFError, ValueError, LookupError, TypeError, ArithmeticError, MemoryError, zlib.error)
    try:
        yield
    except (*kinds, ImageFileError, HeaderDataError) as error:
        raise damaged(path, error) from error


def _nifti(path: Path) -> Any:
    import nibabel

    return nibabel.load(path)


def _nifti_header(image: Any, path: Path) -> VolumeHeader:
    shape = image.shape
    if not 2 <= len(shape) <= 4 or math.prod(shape) != math.prod(shape[:2]) * max(shape[2:], default=1):
        raise UnreadableFile(f"{str(path)!r} has the shape {tuple(shape)}; expected frames over time")
    zooms = image.header.get_zooms()
    header = VolumeHeader((max(shape[2:], default=1), shape[1], shape[0]), (float(zooms[1]), float(zooms[0])))
    # Scaled voxels become floats of 64 bits.
    _check_size(path, header.shape, max(8, image.header.get_data_dtype().itemsize))
    return header


def _metaimage_header(path: Path) -> tuple[VolumeHeader, dict[str, str], int]:
    """The header, its fields, and the bytes it takes up in a file that holds the pixels as well."""
    with opened(path) as file:
        start = file.read(LONGEST_HEADER)
    fields: dict[str, str] = {}
    position = 0
    while "ElementDataFile" not in fields:
        line, newline, _ = start[position:].partition(b"\n")
        if not newline and not line:
            raise UnreadableFile(f"{str(path)!r} is no MetaImage header: 'ElementDataFile' is missing")
        position += len(line) + len(newline)
        key, _, value = line.decode("latin-1").partition("=")
        fields[key.strip()] = value.strip()
    try:
        size = [int(number) for number in fields["DimSize"].split()]
        spacing = [float(number) for number in fields.get("ElementSpacing", "1 1").split()]
    except (KeyError, ValueError) as error:
        raise UnreadableFile(f"{str(path)!r} has no valid DimSize or ElementSpacing; copy it again") from error
    channels = fields.get("ElementNumberOfChannels", "1")
    if not 2 <= len(size) <= 3 or min(size) < 1 or len(spacing) < 2 or channels != "1":
        raise UnreadableFile(
            f"{str(path)!r} has DimSize {size} and {channels} channels; expected gray frames over time"
        )
    shape = (size[2] if len(size) == 3 else 1, size[1], size[0])
    _check_size(path, shape, max(np.dtype(element).itemsize for element in ELEMENTS.values()))
    return VolumeHeader(shape, (spacing[1], spacing[0])), fields, position


def _read_metaimage(path: Path) -> NDArray[Any]:
    header, fields, length = _metaimage_header(path)
    name = fields["ElementDataFile"]
    if "/" in name or "\\" in name or name in ("", ".", "..", "LIST") or "%" in name:
        raise UnreadableFile(f"{str(path)!r} keeps its pixels in {name!r}; expected one file beside it")
    element = ELEMENTS.get(fields.get("ElementType", ""))
    if element is None:
        raise UnreadableFile(
            f"{str(path)!r} has pixels of type {fields.get('ElementType')!r}; known: {', '.join(ELEMENTS)}"
        )
    most_significant = fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "False"))
    kind = np.dtype((">" if most_significant.lower() == "true" else "<") + element)
    expected = math.prod(header.shape) * kind.itemsize
    source = path if name == "LOCAL" else path.with_name(name)
    try:
        with opened(source, root=path.parent) as file:
            file.seek(length if name == "LOCAL" else 0)
            if fields.get("CompressedData", "False").lower() == "true":
                content = zlib.decompressobj().decompress(file.read(), expected + 1)
            else:
                content = file.read(expected + 1)
    except (OSError, zlib.error) as error:
        raise damaged(source, error) from error
    if len(content) != expected:
        raise UnreadableFile(
            f"{str(source)!r} holds {'more' if len(content) > expected else len(content)} bytes, {expected} expected "
            f"for {header.shape} pixels of type {fields['ElementType']}; copy or download it again"
        )
    return np.frombuffer(content, kind).reshape(header.shape)


def _check_size(path: Path, shape: tuple[int, int, int], itemsize: int) -> None:
    if shape[1] * shape[2] > MAX_PIXELS or min(shape) < 1:
        raise UnreadableFile(f"{str(path)!r} claims the shape {shape}; expected frames of at most {MAX_PIXELS} pixels")
    check_cost(path, math.prod(shape) * itemsize, f"the shape {shape}")
