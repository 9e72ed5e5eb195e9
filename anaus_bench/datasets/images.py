"""Decoding of still images, masks and videos to 8-bit gray."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from anaus_bench.datasets.listing import naming
from anaus_bench.datasets.masks import BadLevels, border_remark, two_valued
from anaus_bench.datasets.opening import check_cost, damaged, opened, short
from anaus_bench.errors import BadMaskValues, EmptyMask, SizeMismatch, UnreadableFile
from anaus_bench.interfaces import Dataset, Index, Picture, Sample
from anaus_bench.lazy import Image

if TYPE_CHECKING:
    pass

MAX_PIXELS = 2**26  # far above any ultrasound image; a small file can claim gigabytes
EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
# None of these runs a program or opens another file, as other formats that Pillow knows may.
STILL_FORMATS = ("PNG", "JPEG", "BMP", "DIB", "TIFF", "GIF", "WEBP", "JPEG2000", "PPM")
ORIENTATION = 0x0112  # EXIF and TIFF
SUBFILE = 0x00FE  # TIFF: bit 0 marks a reduced copy of another page
# What Pillow raises on damaged files depends on the format.
DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    NotImplementedError,
    MemoryError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True)
class Still:
    """A decoded picture, turned as its EXIF orientation says.

    Attributes:
        image: Its pixels.
        turned: The EXIF orientation that was applied; 1 = as stored.
        aspect: Width of a pixel over its height.
        lossy: Whether its values are those of a lossy compression.
    """

    image: Image.Image
    turned: int
    aspect: float
    lossy: bool


def read_gray(path: Path, page: int | None = None) -> NDArray[np.uint8]:
    """(H, W) uint8 gray of an image file (ITU-R 601 luma for colours; transparency is ignored).

    Args:
        path: The file.
        page: Which page of a TIFF, from 0; None where there must be one alone.

    Raises:
        UnreadableFile: Missing, damaged, truncated, larger than `MAX_PIXELS`, of more than 8 bits, or of several pages.
    """
    return _gray_of(read_still(path, page).image, path)


def read_still(path: Path, page: int | None = None) -> Still:
    """A picture, decoded and turned.

    Raises:
        UnreadableFile: As `read_gray`, but for the number of bits.
    """
    from PIL import ImageOps

    with opened(path) as file:
        try:
            with Image.open(file, formats=STILL_FORMATS) as image:
                _check_picture(path, image)
                pages = _pages(image)
                if page is None and len(pages) > 1:
                    raise UnreadableFile(
                        f"{str(path)!r} has {len(pages)} pages (frames); expected one picture: save each as a file"
                    )
                if page is not None and page >= len(pages):
                    raise UnreadableFile(f"{str(path)!r} has {len(pages)} pages, page {page} was expected")
                if pages[page or 0]:
                    image.seek(pages[page or 0])
                    _check_picture(path, image)
                lossy = image.format in ("JPEG", "MPO", "WEBP", "JPEG2000")
                turned = image.getexif().get(ORIENTATION, 1)
                across, down = _density(image)
                image.load()
                shown = image if turned == 1 else ImageOps.exif_transpose(image)
        except DAMAGED as error:
            raise _undecoded(path, error) from error
        except Image.DecompressionBombError as error:
            raise UnreadableFile(f"{str(path)!r} cannot be decoded: {short(error)}") from error
    return Still(shown, turned if turned in range(1, 9) else 1, down / across, lossy)


def count_pages(path: Path) -> int:
    """Number of pages of a TIFF, without reduced copies of others.

    Raises:
        UnreadableFile: Not an image.
    """
    with opened(path) as file:
        try:
            with Image.open(file, formats=STILL_FORMATS) as image:
                return len(_pages(image))
        except DAMAGED as error:
            raise _undecoded(path, error) from error
        except Image.DecompressionBombError as error:
            raise UnreadableFile(f"{str(path)!r} cannot be decoded: {short(error)}") from error


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of an image file as stored, from its header.

    Raises:
        UnreadableFile: Not an image.
    """
    with opened(path) as file:
        try:
            with Image.open(file, formats=STILL_FORMATS) as image:
                return image.size
        except DAMAGED as error:
            raise _undecoded(path, error) from error
        except Image.DecompressionBombError as error:
            raise UnreadableFile(f"{str(path)!r} cannot be decoded: {short(error)}") from error


def read_mask(path: Path) -> NDArray[np.bool_]:
    """(H, W) bool: what a mask file marks, by the rule of `two_valued`.

    Raises:
        UnreadableFile: As `read_still`.
        BadMaskValues: It holds anything but a background and one value for what is marked.
    """
    return _marked(read_still(path), path)


def read_picture(root: Path, path: str, mask_paths: Sequence[str]) -> Picture:
    """An image and the union of its masks (1 where any marks something, else 0); no mask without `mask_paths`.

    Raises:
        UnreadableFile: A file cannot be decoded.
        BadMaskValues: A mask holds more than two values.
        SizeMismatch: A mask has another size than the image, or another EXIF orientation.
    """
    still = read_still(root / path)
    image = _gray_of(still.image, root / path)
    remarks = [aspect_remark(path, still.aspect)]
    if not mask_paths:
        return Picture(image, remarks=tuple(filter(None, remarks)))
    union = np.zeros(image.shape, dtype=bool)
    for mask_path in mask_paths:
        mask_still = read_still(root / mask_path)
        if mask_still.turned != still.turned:
            raise SizeMismatch(
                f"{str(root / mask_path)!r} has the EXIF orientation {mask_still.turned}, its image {path!r} "
                f"{still.turned}; both must be turned alike: save both as they are shown, without the EXIF tag"
            )
        if mask_still.image.size != still.image.size:
            raise SizeMismatch(
                f"{str(root / mask_path)!r} has {mask_still.image.width} x {mask_still.image.height} pixels, "
                f"its image {path!r} {image.shape[1]} x {image.shape[0]}; both must be of one size"
            )
        mask = _marked(mask_still, root / mask_path)
        if len(mask_paths) > 1 and not mask.any():
            remarks.append(f"{mask_path!r}, one of {len(mask_paths)} masks of {path!r}, marks nothing")
        remarks.append(border_remark(mask_path, mask))
        union |= mask
    return Picture(image, union.astype(np.uint8), tuple(filter(None, remarks)))


def aspect_remark(path: str, aspect: float) -> str:
    """What to say of pixels that are not square; empty where they are."""
    if abs(aspect - 1) < 0.01:
        return ""
    return f"{path!r} says that its pixels are {aspect:.3g} times as wide as high; they are taken as square"


def _check_picture(path: Path, image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise UnreadableFile(f"{str(path)!r} has {image.width} x {image.height} pixels; at most {MAX_PIXELS} are read")
    check_cost(path, image.width * image.height * 8, f"{image.width} x {image.height} pixels")
    # Pillow keeps the upper byte alone of colours of 16 bits.
    if any(";16" in str(tile[3]) for tile in getattr(image, "tile", ())) and not image.mode.startswith("I"):
        raise UnreadableFile(
            f"{str(path)!r} has 16 bits a channel; expected 8 bits: convert it with the grey window you want"
        )


def _gray_of(image: Image.Image, path: Path) -> NDArray[np.uint8]:
    if image.mode not in EIGHT_BIT:
        bits = "16 bits, " if image.mode.startswith("I;16") else ""
        raise UnreadableFile(
            f"{str(path)!r} has pixels of {bits}mode {image.mode!r}; expected 8 bits: "
            "convert it with the grey window you want"
        )
    return np.array(image.convert("L"), dtype=np.uint8)


def _marked(still: Still, path: Path) -> NDArray[np.bool_]:
    try:
        return two_valued(still.image, still.lossy)
    except BadLevels as error:
        raise BadMaskValues(f"the mask {str(path)!r} {error}") from error


def _pages(image: Image.Image) -> list[int]:
    """Numbers of the pages that are pictures of their own."""
    count = getattr(image, "n_frames", 1)
    if image.format == "MPO" or count == 1:  # the further pictures of an MPO are previews and other views of the first
        return [0]
    if image.format != "TIFF":
        return list(range(count))
    kept = []
    for page in range(count):
        image.seek(page)
        if not cast("Any", image).tag_v2.get(SUBFILE, 0) & 1:
            kept.append(page)
    image.seek(0)
    return kept or [0]


def _density(image: Image.Image) -> tuple[float, float]:
    """Pixels a length across and down; (1, 1) where the file does not say."""
    for name in ("aspect", "jfif_density", "dpi"):
        across, down = image.info.get(name) or (0, 0)
        if across > 0 and down > 0:
            return float(across), float(down)
    return 1.0, 1.0


def _undecoded(path: Path, error: Exception) -> UnreadableFile:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return UnreadableFile(
            f"{str(path)!r} cannot be decoded: it is none of {', '.join(STILL_FORMATS)}; copy or download it again"
        )
    return damaged(path, error)


def read_marked(dataset: Dataset[Any], index: Index, sample: Sample) -> Picture:
    """As `read_picture`, of a data set in which every image has something marked.

    Raises:
        UnreadableFile, SizeMismatch: As `read_picture`.
        EmptyMask: The mask is all zero.
    """
    with naming(dataset, index.root):
        picture = read_picture(index.root, sample.path, sample.mask_paths)
        if picture.mask is not None and not picture.mask.any():
            raise EmptyMask(
                f"the mask {sample.mask_paths[0]!r} is all zero (or of one gray); every image of this data set has a "
                f"{dataset.structures[0]}: copy it again"
            )
    return picture
