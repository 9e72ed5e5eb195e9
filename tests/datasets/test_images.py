"""Decoding: image modes, masks, videos, and files that cannot be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from anaus_bench.datasets.images import read_gray, read_picture
from anaus_bench.datasets.videos import VideoReader, count_frames
from anaus_bench.errors import SizeMismatch, UnreadableFile


@pytest.fixture
def gray() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)


def write_video(path: Path, levels: list[int], codec: str = "mpeg4") -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        for level in levels:
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), level, dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P"])
def test_every_eight_bit_mode_is_read_as_gray(mode: str, gray: NDArray[np.uint8], tmp_path: Path) -> None:
    path = tmp_path / "bild äöü (1).png"
    Image.fromarray(gray).convert(mode).save(path)

    image = read_gray(path)

    assert (image.dtype, image.shape) == (np.uint8, (20, 30))
    assert np.abs(image.astype(int) - gray).max() <= 1
    assert image.flags.writeable


def test_colours_become_luma(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (4, 4), (100, 150, 200)).save(path)

    assert read_gray(path)[0, 0] == round(0.299 * 100 + 0.587 * 150 + 0.114 * 200)


def test_sixteen_bits_are_refused_and_not_clipped(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.full((4, 4), 3000, dtype=np.uint16)).save(path)

    with pytest.raises(UnreadableFile, match="expected 8 bits"):
        read_gray(path)


def test_empty_truncated_and_foreign_files_are_unreadable(gray: NDArray[np.uint8], tmp_path: Path) -> None:
    whole = tmp_path / "whole.png"
    Image.fromarray(gray).save(whole)
    for name, content in (("empty", b""), ("cut", whole.read_bytes()[:200]), ("text", b"<html>not found</html>")):
        (tmp_path / f"{name}.png").write_bytes(content)

        with pytest.raises(UnreadableFile, match=name):
            read_gray(tmp_path / f"{name}.png")
    with pytest.raises(UnreadableFile, match="missing"):
        read_gray(tmp_path / "missing.png")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_file_that_claims_a_hundred_megapixels_is_not_decoded(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (10_000, 10_000)).save(path)

    with pytest.raises(UnreadableFile, match="10000 x 10000 pixels"):
        read_gray(path)


def test_mask_is_the_union_of_its_files_above_127(tmp_path: Path) -> None:
    values = np.array([[0, 100, 127, 128, 255, 0]], dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "image.png")
    Image.fromarray(values).convert("RGBA").save(tmp_path / "first.png")
    Image.fromarray(np.array([[True, False, False, False, False, False]])).save(tmp_path / "second.png")

    picture = read_picture(tmp_path, "image.png", ("first.png", "second.png"))

    assert picture.mask is not None
    assert picture.mask.dtype == np.uint8
    assert picture.mask.tolist() == [[1, 0, 0, 1, 1, 0]]
    assert read_picture(tmp_path, "image.png", ()).mask is None


def test_a_mask_of_another_size_is_refused_with_both_sizes(gray: NDArray[np.uint8], tmp_path: Path) -> None:
    Image.fromarray(gray).save(tmp_path / "image.png")
    Image.fromarray(gray[:10]).save(tmp_path / "mask.png")

    with pytest.raises(SizeMismatch, match=r"30 x 10 pixels.*30 x 20"):
        read_picture(tmp_path, "image.png", ("mask.png",))


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "mpeg4"), ("a.avi", "mpeg4"), ("a.mkv", "mpeg4"), ("a.gif", "gif")]
)
def test_frames_of_a_video_are_counted_and_read_in_any_order(name: str, codec: str, tmp_path: Path) -> None:
    levels = [0, 36, 109, 182, 255]
    write_video(tmp_path / name, levels, codec)
    reader = VideoReader()

    assert count_frames(tmp_path / name) == 5
    for number in (0, 1, 2, 3, 4, 2, 2, 4, 0):
        frame = reader.frame(tmp_path / name, number)
        assert (frame.dtype, frame.shape) == (np.uint8, (48, 64))
        assert frame.mean() == pytest.approx(levels[number], abs=20)


def test_reading_in_order_goes_on_with_the_open_decoder(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, list(range(0, 200, 10)))
    reader = VideoReader()
    reader.frame(path, 0)
    path.unlink()  # a second open would fail

    assert [reader.frame(path, number).mean() for number in (3, 7, 19)] == pytest.approx([30, 70, 190], abs=8)


def test_a_video_that_ends_early_is_named_and_the_reader_stays_usable(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, [10, 20, 30])
    reader = VideoReader()

    with pytest.raises(UnreadableFile, match="ends after 3 frames, frame 7"):
        reader.frame(path, 7)

    assert reader.frame(path, 1).mean() == pytest.approx(20, abs=8)


@pytest.mark.parametrize("content", [b"", b"no video at all" * 50])
def test_a_file_that_is_no_video_is_unreadable(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(content)

    with pytest.raises(UnreadableFile, match="video"):
        count_frames(tmp_path / "a.mp4")
