"""Files of the user's: opened in one place, of a bounded cost, with advice by the cause."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anaus_bench.datasets.arrays import open_array, read_array
from anaus_bench.datasets.images import count_pages, read_gray
from anaus_bench.datasets.opening import opened, read_bytes
from anaus_bench.datasets.text import read_fields, read_json, read_rows, read_table, read_text, read_xml
from anaus_bench.datasets.videos import VideoReader, video_header
from anaus_bench.datasets.volumes import volume_header
from anaus_bench.datasets.workbooks import read_workbook
from anaus_bench.errors import DataError, LayoutError, UnreadableFile, WrongVersion


def refused(path: Path, match: str, error: type[DataError] = UnreadableFile) -> None:
    with pytest.raises(error, match=match), opened(path):
        pass


def test_what_is_no_regular_file_ends_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.png"))

    refused(tmp_path / "pipe.png", "a named pipe")
    refused(tmp_path / "loop.png", "a link that leads back to itself")
    refused(tmp_path / "s.png", "a socket")
    refused(Path("/dev/zero"), "a device")
    refused(tmp_path, "a folder")
    refused(tmp_path / "absent.png", "is missing; copy or download")
    refused(tmp_path / ("a" * 300), "too long")
    refused(tmp_path / "a\0b", "cannot be read")


def test_impostors_are_called_what_they_are(tmp_path: Path) -> None:
    for content, match, error in (
        (b"", "0 bytes", UnreadableFile),
        (b"\xef\xbb\xbf\n <!DOCTYPE html><html>log in</html>", "web page", UnreadableFile),
        (b"<?xml version='1.0'?>\n<html xmlns='x'>" + b" " * 500, "web page", UnreadableFile),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-LFS", WrongVersion),
    ):
        (tmp_path / "a.png").write_bytes(content)
        refused(tmp_path / "a.png", match, error)


def test_a_link_out_of_the_root_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "secret")

    for path in (tmp_path / "root" / "link", tmp_path / "root" / ".." / "secret"):
        with pytest.raises(LayoutError, match="outside of"):
            read_bytes(path, root=tmp_path / "root")


def test_a_file_is_refused_by_its_cost_before_it_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "a.mhd").write_text("DimSize = 8000 8000 900\nElementType = MET_UCHAR\nElementDataFile = a.raw\n")
    (tmp_path / "a.txt").write_text("x" * 100)
    header = {"descr": "<f8", "fortran_order": False, "shape": (2**20, 2**20)}
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)

    with pytest.raises(UnreadableFile, match=r"bytes once decoded; at most"):
        volume_header(tmp_path / "a.mhd")
    with pytest.raises(UnreadableFile, match=r"bytes once decoded; at most"):
        read_array(tmp_path / "a.npy")
    with pytest.raises(UnreadableFile, match=r"100 bytes; at most 50"):
        read_text(tmp_path / "a.txt", most=50)


def test_a_workbook_that_unpacks_to_gigabytes_is_not_unpacked(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.xlsx", "w", zipfile.ZIP_DEFLATED) as book:
        book.writestr("xl/worksheets/sheet1.xml", b" " * (2**27 + 1))

    with pytest.raises(UnreadableFile, match="bytes of XML"):
        read_workbook(tmp_path / "a.xlsx")


def test_objects_in_an_array_file_are_not_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)

    with pytest.raises(UnreadableFile, match="Python objects"):
        read_array(tmp_path / "a.npy")
    with pytest.raises(UnreadableFile, match="Python objects"):
        open_array(tmp_path / "a.npy", root=tmp_path)


# ---- text ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_tables_are_read_as_spreadsheets_save_them(encoding: str, delimiter: str, tmp_path: Path) -> None:
    lines = ["Filename,Patient", 'Cov-é,"7"', "", "Cov-b,"]
    text = "\r\n".join(line.replace(",", delimiter) for line in lines)
    mark = b"\xff\xfe" if encoding == "utf-16-le" else b""
    (tmp_path / "a.csv").write_bytes(mark + text.encode(encoding))

    rows = read_table(tmp_path / "a.csv", ("Filename", "Patient"))

    assert rows == [{"Filename": "Cov-é", "Patient": "7"}, {"Filename": "Cov-b", "Patient": ""}]


def test_a_line_that_names_the_delimiter_is_no_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sep=;\na,b;1\n")

    assert read_rows(tmp_path / "a.csv") == [["a,b", "1"]]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"a,b\n\0\0", "no text"),
        (b"\xff\xfe\x00", "no text"),
        (b'Filename,Patient\n"a,b\n' + b"c,d\n" * 9, "no table"),
        (b"Filename,Patient\n" + b"x" * 200_000 + b",1", "no table"),
        (b"Filename,Filename\na,b", "no columns 'Filename' and 'Patient'"),
    ],
)
def test_what_is_no_table_is_refused(content: bytes, match: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(content)

    with pytest.raises(DataError, match=match):
        read_table(tmp_path / "a.csv", ("Filename", "Patient"))


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"a": NaN}', "[1e999999, Infinity]", "9" * 10_000])
def test_json_that_is_none_is_refused_in_the_projects_words(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text or " ")

    with pytest.raises(UnreadableFile, match=r"a\.json"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_refused_in_any_encoding(encoding: str, tmp_path: Path) -> None:
    text = f"<?xml version='1.0' encoding='{encoding}'?><!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>"
    (tmp_path / "a.xml").write_bytes(text.encode(encoding))
    (tmp_path / "b.xml").write_bytes(f"<?xml version='1.0' encoding='{encoding}'?><a>é</a>".encode(encoding))

    with pytest.raises(UnreadableFile, match="entities"):
        read_xml(tmp_path / "a.xml")
    assert read_xml(tmp_path / "b.xml").text == "é"


def test_fields_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.cfg").write_bytes(b"\xef\xbb\xbfED: 1\r\nES: 4\r\n")

    assert read_fields(tmp_path / "a.cfg") == {"ED": "1", "ES": "4"}


# ---- pictures and clips ----------------------------------------------------------------------------------------------


def ramp(side: int = 24) -> Image.Image:
    return Image.fromarray(np.arange(side * side, dtype=np.uint32).reshape(side, side).astype(np.uint8))


def test_pages_of_a_tiff_are_frames_and_reduced_copies_are_not(tmp_path: Path) -> None:
    pages = [Image.new("L", (8, 8), level) for level in (10, 20, 30)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    ramp().save(tmp_path / "one.tif")

    assert (count_pages(tmp_path / "a.tif"), count_pages(tmp_path / "one.tif")) == (3, 1)
    assert [VideoReader().frame(tmp_path / "a.tif", page)[0, 0] for page in (2, 0, 1)] == [30, 10, 20]
    with pytest.raises(UnreadableFile, match="3 pages"):
        read_gray(tmp_path / "a.tif")
    with pytest.raises(UnreadableFile, match="page 3 was expected"):
        read_gray(tmp_path / "a.tif", 3)


def test_an_animated_png_is_no_picture(tmp_path: Path) -> None:
    ramp().save(tmp_path / "a.png", save_all=True, append_images=[Image.new("L", (24, 24))])

    with pytest.raises(UnreadableFile, match=r"2 pages \(frames\)"):
        read_gray(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_they_are_shown(orientation: int, suffix: str, tmp_path: Path) -> None:
    corner = np.zeros((32, 48), np.uint8)
    corner[:8, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(corner).save(tmp_path / f"a.{suffix}", exif=exif)

    shown = read_gray(tmp_path / f"a.{suffix}") > 127

    turn = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.T,
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].T,
        8: lambda a: np.rot90(a),
    }[orientation]
    np.testing.assert_array_equal(shown, turn(corner > 127))


def test_other_formats_under_an_images_name_are_not_run(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")

    with pytest.raises(UnreadableFile, match="it is none of PNG"):
        read_gray(tmp_path / "a.png")


def clip(path: Path, count: int = 6, shape: tuple[int, int] = (64, 96)) -> None:
    from anaus_bench.datasets.videos import write_video

    frames = np.full((count, *shape), 20, np.uint8)
    frames[:, :16, :16] = 250
    write_video(path, frames, 10)


def test_a_track_that_is_turned_is_shown_turned(tmp_path: Path) -> None:
    import struct

    clip(tmp_path / "a.mp4")
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    place = content.find(b"tkhd") + 44
    one = 1 << 16
    content[place : place + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 64 << 16, 0, 1 << 30)
    (tmp_path / "a.mp4").write_bytes(content)

    frame = VideoReader().frame(tmp_path / "a.mp4", 0)

    assert frame.shape == (96, 64)
    assert frame[:8, -8:].mean() > 200 and frame[:8, :8].mean() < 60


def test_a_wrong_number_in_the_header_of_an_avi_does_not_count(tmp_path: Path) -> None:
    import struct

    clip(tmp_path / "a.avi")
    content = bytearray((tmp_path / "a.avi").read_bytes())
    place = content.find(b"strh") + 8 + 32
    assert struct.unpack("<I", content[place : place + 4])[0] == 6
    content[place : place + 4] = struct.pack("<I", 400)
    (tmp_path / "a.avi").write_bytes(content)

    header = video_header(tmp_path / "a.avi")

    assert header.frames == 6
    assert header.remarks("a.avi") == ["'a.avi' holds 6 frames, its header promises 400"]
    VideoReader().frame(tmp_path / "a.avi", 5)


def test_the_name_of_a_video_is_no_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    clip(tmp_path / "a.avi")
    for name in ("tcp:127.0.0.1:9.avi", "concat:a.avi|a.avi", "pipe:0.avi", "file:a.avi"):
        Path(name).write_bytes((tmp_path / "a.avi").read_bytes())

        assert video_header(Path(name)).frames == 6
    with pytest.raises(UnreadableFile, match="missing"):
        video_header(Path("tcp:127.0.0.1:10.avi"))


@pytest.mark.parametrize(
    "text",
    ["#EXTM3U\n#EXTINF:5,\na.avi\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile a.avi\n", "<MPD type='static'></MPD>"],
)
def test_a_playlist_is_no_video(text: str, tmp_path: Path) -> None:
    (tmp_path / "list.avi").write_text(text)

    with pytest.raises(UnreadableFile, match="playlist"):
        video_header(tmp_path / "list.avi")
