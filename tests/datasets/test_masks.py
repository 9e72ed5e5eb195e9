"""What a mask file marks, whatever form it has; and the files that are none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from anaus_bench.datasets.images import read_mask, read_picture
from anaus_bench.errors import BadMaskValues, SizeMismatch, UnreadableFile

Mask = NDArray[np.bool_]

SIDE = 96
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE]
DISC: Mask = (ROWS - 40) ** 2 + (COLUMNS - 50) ** 2 < 20**2
SPOT: Mask = (ROWS - 80) ** 2 + (COLUMNS - 15) ** 2 < 8**2


def gray(low: int, high: int) -> Image.Image:
    return Image.fromarray(np.where(DISC, high, low).astype(np.uint8))


def palette(entries: NDArray[np.bool_] | NDArray[np.int64], colours: list[tuple[int, int, int]]) -> Image.Image:
    image = Image.fromarray(entries.astype(np.uint8), "P")
    image.putpalette([value for colour in colours for value in colour])
    return image


def rgba(colour: tuple[int, int, int], behind: tuple[int, int, int]) -> Image.Image:
    """The disc opaque in `colour`, transparent `behind` it."""
    pixels = np.zeros((SIDE, SIDE, 4), np.uint8)
    pixels[DISC], pixels[~DISC] = (*colour, 255), (*behind, 0)
    return Image.fromarray(pixels)


def coloured(colour: tuple[int, int, int]) -> Image.Image:
    return Image.fromarray((DISC[..., None] * np.array(colour)).astype(np.uint8))


BLACK, RED, WHITE = (0, 0, 0), (128, 0, 0), (255, 255, 255)
FORMS: dict[str, Callable[[], Image.Image]] = {
    "0 and 255": lambda: gray(0, 255),
    "0 and 1": lambda: gray(0, 1),
    "0 and 38": lambda: gray(0, 38),
    "16 and 235": lambda: gray(16, 235),
    "1 bit": lambda: Image.fromarray(DISC),
    "16 bits, 0 and 1": lambda: Image.fromarray(DISC.astype(np.uint16)),
    "16 bits, 0 and 65535": lambda: Image.fromarray(DISC * np.uint16(65535)),
    "palette, first black": lambda: palette(DISC, [BLACK, RED]),
    "palette, nearly black": lambda: palette(DISC, [BLACK, (9, 4, 1)]),
    "palette, white first": lambda: palette(~DISC, [WHITE, BLACK]),
    "palette, all entries black": lambda: palette(DISC, [BLACK, BLACK]),
    "palette, no black": lambda: palette(DISC, [WHITE, RED]),
    "palette, gray": lambda: palette(DISC, [BLACK, WHITE]),
    "red on black": lambda: coloured((255, 0, 0)),
    "dark blue on black": lambda: coloured((0, 0, 90)),
    "opaque white on transparent white": lambda: rgba(WHITE, WHITE),
    "opaque white on transparent black": lambda: rgba(WHITE, BLACK),
    "opaque black on transparent white": lambda: rgba(BLACK, WHITE),
    "opaque red on transparent gray": lambda: rgba(RED, (7, 80, 99)),
    "gray with alpha": lambda: rgba(WHITE, WHITE).convert("LA"),
    "no transparency in use": lambda: gray(0, 255).convert("RGBA"),
    "gray with alpha not in use": lambda: gray(0, 255).convert("LA"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_mask_of_any_form_marks_the_same_pixels(form: str, tmp_path: Path) -> None:
    FORMS[form]().save(tmp_path / "mask.png")

    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), DISC)


@pytest.mark.parametrize("suffix", ["tif", "bmp", "gif"])
def test_the_format_of_a_mask_does_not_matter(suffix: str, tmp_path: Path) -> None:
    gray(0, 255).save(tmp_path / f"mask.{suffix}")

    np.testing.assert_array_equal(read_mask(tmp_path / f"mask.{suffix}"), DISC)


def test_the_transparent_entry_of_a_palette_is_background(tmp_path: Path) -> None:
    palette(DISC, [WHITE, WHITE]).save(tmp_path / "mask.png", transparency=0)

    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), DISC)


@pytest.mark.parametrize("quality", [50, 75, 95])
@pytest.mark.parametrize("colour", [WHITE, (255, 0, 0)])
def test_rims_of_jpeg_are_cut_in_their_middle(quality: int, colour: tuple[int, int, int], tmp_path: Path) -> None:
    coloured(colour).save(tmp_path / "mask.jpg", quality=quality, subsampling=0)

    found = read_mask(tmp_path / "mask.jpg")

    assert (found != DISC).sum() <= 0.1 * DISC.sum()
    if colour == WHITE:
        np.testing.assert_array_equal(found, np.asarray(Image.open(tmp_path / "mask.jpg").convert("L")) > 127)


def test_smoothed_edges_are_cut_above_127(tmp_path: Path) -> None:
    smooth = gray(0, 255).resize((SIDE * 3, SIDE * 3), Image.Resampling.BICUBIC)
    smooth.save(tmp_path / "mask.png")

    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), np.asarray(smooth) > 127)


def test_a_mark_of_one_pixel_is_kept(tmp_path: Path) -> None:
    dot = np.zeros((SIDE, SIDE), np.uint8)
    dot[5, 6] = 1
    Image.fromarray(dot).save(tmp_path / "mask.png")

    np.testing.assert_array_equal(np.argwhere(read_mask(tmp_path / "mask.png")), [[5, 6]])


def speckle() -> NDArray[np.uint8]:
    return np.clip(np.random.default_rng(0).normal(90, 40, (SIDE, SIDE)), 0, 255).astype(np.uint8)


NONE: dict[str, tuple[Callable[[], Image.Image], str]] = {
    "levels of three classes": (
        lambda: Image.fromarray((DISC * 38 + SPOT * 75).astype(np.uint8)),
        r"values 0, 38, 75.*expected two",
    ),
    "a border to be ignored": (
        lambda: Image.fromarray((DISC * 1 + SPOT * 255).astype(np.uint8)),
        r"values 0, 1, 255.*expected two",
    ),
    "halves": (lambda: Image.fromarray((DISC * 255 + SPOT * 128).astype(np.uint8)), r"values 0, 128, 255"),
    "three entries of a palette": (
        lambda: palette(DISC + 2 * SPOT, [BLACK, RED, (0, 128, 0)]),
        r"several colours.*\(0, 128, 0\), \(128, 0, 0\)",
    ),
    "two colours": (
        lambda: Image.fromarray(np.stack([DISC * 255, SPOT * 255, SPOT * 0], -1).astype(np.uint8)),
        "several colours",
    ),
    "no background": (lambda: gray(100, 200), r"values 100, 200.*background"),
    "a ramp": (lambda: Image.fromarray(np.tile(np.arange(SIDE, dtype=np.uint8) * 2, (SIDE, 1))), "as an image does"),
    "an image": (lambda: Image.fromarray(speckle()), "are image and mask swapped"),
    "floats that are no numbers": (lambda: Image.fromarray(np.where(DISC, np.nan, 0).astype(np.float32)), "no numbers"),
}  # fmt: skip


@pytest.mark.parametrize("form", NONE)
def test_what_has_more_than_two_values_is_refused_with_the_values(form: str, tmp_path: Path) -> None:
    made, match = NONE[form]
    path = tmp_path / ("mask.tif" if "floats" in form else "mask.png")
    made().save(path)

    with pytest.raises(BadMaskValues, match=match):
        read_mask(path)


def test_an_image_in_place_of_a_jpeg_mask_is_refused(tmp_path: Path) -> None:
    Image.fromarray(speckle()).save(tmp_path / "mask.jpg")

    with pytest.raises(BadMaskValues, match="swapped"):
        read_mask(tmp_path / "mask.jpg")


def test_colours_of_sixteen_bits_are_not_cut_to_eight(tmp_path: Path) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + b"\0\1" * 12 for _ in range(4))
    content = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(rows))
    (tmp_path / "mask.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content + chunk(b"IEND", b""))

    with pytest.raises(UnreadableFile, match="16 bits"):
        read_mask(tmp_path / "mask.png")


def test_masks_that_mark_the_whole_border_or_nothing_are_remarked_upon(tmp_path: Path) -> None:
    gray(50, 90).save(tmp_path / "image.png")
    gray(255, 0).save(tmp_path / "inverted.png")
    Image.new("L", (SIDE, SIDE), 255).save(tmp_path / "all.png")
    Image.new("L", (SIDE, SIDE)).save(tmp_path / "none.png")

    def remarks(*masks: str) -> str:
        return "; ".join(read_picture(tmp_path, "image.png", masks).remarks)

    assert "'inverted.png' marks the whole border of its image; is it inverted?" in remarks("inverted.png")
    assert "'all.png' marks the whole image" in remarks("all.png")
    assert "'none.png', one of 2 masks of 'image.png', marks nothing" in remarks("none.png", "all.png")
    assert remarks("none.png") == ""


def test_image_and_mask_are_turned_alike_or_refused(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = Image.fromarray(np.arange(96 * 64, dtype=np.uint32).reshape(64, 96).astype(np.uint8))
    mark = Image.fromarray(np.pad(np.ones((10, 20), bool), ((0, 54), (0, 76))))
    wide.save(tmp_path / "image.jpg", exif=exif)
    mark.save(tmp_path / "turned.png", exif=exif)
    mark.save(tmp_path / "straight.png")

    picture = read_picture(tmp_path, "image.jpg", ("turned.png",))

    assert picture.image.shape == (96, 64)
    assert picture.mask is not None
    assert picture.mask[:20, -10:].all() and picture.mask.sum() == 200
    with pytest.raises(SizeMismatch, match=r"EXIF orientation 1.*'image\.jpg' 6"):
        read_picture(tmp_path, "image.jpg", ("straight.png",))
