from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from anaus_bench.machine.files import write_whole, written_whole


def test_a_file_takes_the_place_of_the_old_one_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_whole(path, "old")

    with pytest.raises(RuntimeError), written_whole(path) as stream:
        stream.write(b"ne")
        raise RuntimeError("killed")

    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_file_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "a", "")
    finally:
        os.umask(before)

    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_content_and_folder_are_synced_around_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, bool]] = []
    fsync = os.fsync

    def watch(number: int) -> None:
        seen.append(("folder" if stat.S_ISDIR(os.fstat(number).st_mode) else "file", (tmp_path / "a").exists()))
        fsync(number)

    monkeypatch.setattr(os, "fsync", watch)
    write_whole(tmp_path / "a", "content")

    assert seen == [("file", False), ("folder", True)]


def test_a_full_disk_is_an_error_with_its_number_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught, written_whole(tmp_path / "a") as stream:
        stream.write(b"x")
        with open("/dev/full", "wb") as full:
            full.write(b"x")

    assert caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())
