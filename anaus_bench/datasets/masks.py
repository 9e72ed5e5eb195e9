"""What a mask file marks, by the values that it holds.

A mask has two values: a background and what is marked. They are 0 and 255, 0 and 1, two entries of a palette, two
colours, transparent and opaque, or two levels of 16 bits. Between them may lie the narrow rims of JPEG and of smoothed
edges; anything else is not taken for a mask.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

Levels = NDArray[Any]  # (H, W), numbers

NEAR_WHITE = 192
FEW = 16  # values up to which each is looked at; more are those of a lossy compression, or of smoothed edges
PATCH = 5  # pixels; no rim holds a square of one level that large
RIMS = 0.02  # share of the pixels that may lie between the two values even where little is marked
LEAST_RIM = 64  # pixels
AN_IMAGE = "as an image does (are image and mask swapped?)"
LOSSY_FROM = 32  # levels; below, a lossy compression leaves nothing of a mask


class BadLevels(ValueError):
    """The values are not those of a mask; the message goes on after the file's name."""


def two_valued(image: Image.Image, lossy: bool) -> NDArray[np.bool_]:
    """(H, W) bool: what a mask marks.

    Args:
        image: The mask, of any mode.
        lossy: Whether it was compressed with loss.

    Raises:
        BadLevels: It holds anything but two values and their rims.
    """
    levels = _levels(image)
    if levels.dtype.kind == "b":
        return levels
    if levels.dtype.kind == "f" and not np.isfinite(levels).all():
        raise BadLevels("holds values that are no numbers; expected two, for background and what is marked")
    low, high = float(levels.min()), float(levels.max())
    if low == high:  # all white, or nothing: a gray image marks nothing either
        return np.full(levels.shape, high == 1 or high > 127)
    marked: NDArray[np.bool_] = levels == levels.max()
    if 0 <= low <= high / 4 and bool((marked | (levels == levels.min())).all()):
        return marked
    values = np.unique(levels)
    if low < 0 or low > high / 4:
        raise _odd(values, "none of them a background (0)")
    if lossy and high < LOSSY_FROM:
        raise _odd(values, "too close for a lossy compression; save the mask as PNG")
    if len(values) <= FEW and not lossy:
        patches = _patches(levels, 0, low, high)
    else:
        patches = _patches(levels, 0.06 * high, 0.15 * high, 0.85 * high)
    if patches.any():
        raise _odd(values, "of which more than two mark areas" if len(values) <= FEW else AN_IMAGE)
    between = int(np.count_nonzero((levels > high / 4) & (levels < 0.75 * high)))
    bright = int(np.count_nonzero(levels >= 0.75 * high))
    if between > max(bright, RIMS * levels.size, LEAST_RIM):
        raise _odd(values, AN_IMAGE)
    return levels > (127 if levels.dtype == np.uint8 and high >= NEAR_WHITE else high / 2)


def border_remark(path: str, mask: NDArray[np.bool_]) -> str:
    """What to say of a mask whose whole border is marked; empty otherwise."""
    if not (mask[[0, -1]].all() and mask[:, [0, -1]].all()):
        return ""
    if mask.all():
        return f"the mask {path!r} marks the whole image"
    return f"the mask {path!r} marks the whole border of its image; is it inverted?"


def _levels(image: Image.Image) -> Levels:
    """One number for each pixel, from 0 for the background up."""
    if image.mode in ("LA", "PA", "RGBA") or ("transparency" in image.info and image.mode in ("1", "L", "RGB", "P")):
        pixels = np.asarray(image.convert("RGBA"))
        alpha = pixels[..., 3]
        if alpha.min() != alpha.max():
            return _shown(pixels[..., :3], alpha)
        if image.mode in ("RGBA", "RGB"):
            return _of_colours(pixels[..., :3])
    if image.mode in ("P", "PA"):
        return _of_palette(image)
    if image.mode in ("1", "L", "LA", "F") or image.mode.startswith("I"):
        return np.asarray(image if image.mode != "LA" else image.convert("L"))
    return _of_colours(np.asarray(image.convert("RGB")))


def _shown(colours: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> Levels:
    """Where transparency marks, itself; where the visible part has two colours, those, over black."""
    visible = colours[alpha > alpha.max() // 2]
    if int(np.ptp(visible, axis=0).max()) <= LOSSY_FROM:
        return alpha
    return _of_colours((colours.astype(np.uint16) * alpha[..., None] // 255).astype(np.uint8))


def _of_palette(image: Image.Image) -> Levels:
    """Two entries: which is background, black or else the first, and which is not; more: their colours."""
    entries = np.asarray(image if image.mode == "P" else image.getchannel(0))
    used = np.unique(entries)
    palette = np.frombuffer(bytes(image.getpalette("RGB") or b""), np.uint8).reshape(-1, 3)
    colours = [tuple(palette[entry].tolist()) if entry < len(palette) else (0, 0, 0) for entry in used]
    if len(used) <= FEW and len(set(colours)) < len(colours):
        return entries  # entries of one colour differ by their number alone
    if len(used) != 2:
        return _of_colours(np.asarray(image.convert("RGB")))
    black = [entry for entry, colour in zip(used, colours, strict=True) if colour == (0, 0, 0)]
    if not black and used[0] != 0:
        raise BadLevels(
            f"holds the colours {colours[0]} and {colours[1]} of its palette; one of them must be black, or the first "
            "of the palette, for the background"
        )
    marked: NDArray[np.bool_] = entries != (black[0] if black else 0)
    return marked


def _of_colours(pixels: NDArray[np.uint8]) -> Levels:
    """The strongest channel; what is marked must have one colour."""
    levels: NDArray[np.uint8] = pixels.max(axis=2)
    bright = pixels[levels >= 0.75 * int(levels.max())]
    if int(np.ptp(bright, axis=0).max()) > 2 * LOSSY_FROM:
        found = np.unique(bright[:: max(1, len(bright) // 1000)], axis=0)
        names = ", ".join(str(tuple(colour.tolist())) for colour in found[:5])
        raise BadLevels(
            f"holds several colours, such as {names}; expected values for background and one thing that is marked: "
            "keep one colour, or save a mask for each"
        )
    return levels


def _patches(levels: Levels, tolerance: float, above: float, below: float) -> NDArray[np.bool_]:
    """Squares of one level (within `tolerance`) strictly between two bounds."""
    lowest, highest = _windows(levels, np.minimum), _windows(levels, np.maximum)
    return (highest - lowest <= tolerance) & (lowest > above) & (highest < below)


def _windows(levels: Levels, extreme: Callable[[Levels, Levels], Levels]) -> Levels:
    """The extreme of each square of `PATCH` pixels that lies inside the image."""
    for _ in range(2):
        count = max(len(levels) - PATCH + 1, 0)
        rows = levels[:count]
        for shift in range(1, PATCH):
            rows = extreme(rows, levels[shift : shift + count])
        levels = rows.T
    return levels


def _odd(values: NDArray[Any], why: str) -> BadLevels:
    shown = ", ".join(f"{value:g}" for value in values[:5].tolist())
    more = f" and {len(values) - 5} more" if len(values) > 5 else ""
    return BadLevels(
        f"holds the values {shown}{more}, {why}; expected two: 0 for the background and one for what is marked"
    )
