"""What is kept of files: by their stamps, outside of the data, and never where it may be wrong."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from anaus_bench.datasets import facts as module
from anaus_bench.datasets.facts import content_digest, facts, reading_again
from anaus_bench.datasets.layout import fingerprint
from anaus_bench.datasets.listing import File
from anaus_bench.errors import DataError

OLD = 10**9 * 1_000_000_000


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three files that are older than the clock's tick, and a cache of their own."""
    monkeypatch.setenv("ANAUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "SETTLED", 0)
    (tmp_path / "data").mkdir()
    for name in "abc":
        (tmp_path / "data" / name).write_text(name * 8)
    time.sleep(0.02)
    return tmp_path / "data"


def looked_at(folder: Path) -> list[str]:
    """Names of the files that a look opens."""
    seen: list[str] = []

    def find(path: Path) -> str:
        seen.append(path.name)
        return content_digest(path)

    facts(folder, ["a", "b", "c"], "sha256", find)
    return sorted(seen)


def test_a_second_look_opens_only_what_changed(folder: Path) -> None:
    assert looked_at(folder) == ["a", "b", "c"]
    assert looked_at(folder) == []

    stamp = (folder / "b").stat()
    (folder / "b").write_text("B" * 8)
    os.utime(folder / "b", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))

    assert looked_at(folder) == ["b"]
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b", "c"]


def test_a_file_that_just_changed_is_looked_at_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SETTLED", 3600 * 10**9)

    assert looked_at(folder) == looked_at(folder) == ["a", "b", "c"]


def test_content_that_changed_under_its_stamp_is_found_when_all_is_read_again(folder: Path) -> None:
    looked_at(folder)
    (kept,) = (folder.parent / "cache" / "facts").iterdir()
    kept.write_text(kept.read_text().replace(content_digest(folder / "c"), "0" * 64))

    assert looked_at(folder) == []
    with reading_again() as changed:
        assert looked_at(folder) == ["a", "b", "c"]

    assert changed == ["c"]


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"a": 3}', "[" * 100_000])
def test_a_damaged_cache_keeps_nothing(content: str, folder: Path) -> None:
    looked_at(folder)
    (kept,) = (folder.parent / "cache" / "facts").iterdir()
    kept.write_text(content)

    assert looked_at(folder) == ["a", "b", "c"]


@pytest.mark.parametrize("place", ["/dev/null/cache", "/proc/cache"])
def test_without_a_place_for_a_cache_everything_is_read(
    place: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANAUS_CACHE", place)

    assert looked_at(folder) == looked_at(folder) == ["a", "b", "c"]


def test_errors_are_given_back_and_not_kept(folder: Path) -> None:
    (found,) = facts(folder, ["absent"], "sha256", content_digest)

    assert isinstance(found, DataError)


def test_the_fingerprint_is_of_names_and_contents(folder: Path) -> None:
    files = [File(name, 8) for name in "abc"]
    first = fingerprint(folder, files)

    (folder / "a").write_text("A" * 8)
    changed = fingerprint(folder, files)

    assert first != changed
    (folder / "a").write_text("a" * 8)
    assert fingerprint(folder, files) == first == fingerprint(folder, files[::-1])
