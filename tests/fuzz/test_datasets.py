"""Spoilt data sets: no traceback, no hang, and nothing wrong that is taken for right in silence.

`ANAUS_FUZZ=5000` tries that many inputs in place of 200; `ANAUS_FUZZ_SEED` begins elsewhere.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anaus_bench.datasets.verify import verify
from anaus_bench.errors import AnausError
from anaus_bench.interfaces import Dataset, Picture
from anaus_bench.registry import Registry
from tests.conftest import RecordedProgress

NAMES = ("butterfly", "busi", "camus", "ddti", "hmcqu", "phantom", "pocus", "tg3k", "tn3k", "udiat")
COUNTS = {"camus": 8, "hmcqu": 4, "pocus": 120, "tn3k": 10, "phantom": 8, "busi": 6, "butterfly": 8}
TRIES = int(os.environ.get("ANAUS_FUZZ", "200"))
SEED = int(os.environ.get("ANAUS_FUZZ_SEED", "0"))
PARTS = 10
LONGEST = 20  # seconds for one input

Spoil = Callable[[Path, random.Random], None]


def cut(path: Path, draw: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(len(content) + 1)])


def flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(draw.choice((1, 4, 64))):
        content[draw.randrange(min(len(content), draw.choice((64, 1024, 10**9))))] = draw.randrange(256)
    path.write_bytes(content)


def double(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes() * 2)


def swap(path: Path, draw: random.Random) -> None:
    others = sorted(other for other in path.parent.parent.rglob("*") if other.is_file() and other != path)
    shutil.copyfile(draw.choice(others), path)


def replace(path: Path, draw: random.Random) -> None:
    path.write_bytes(
        draw.choice(
            (
                b"",
                b"\0" * 5000,
                b"<html>log in</html>" * 40,
                b"version https://git-lfs.github.com/spec/v1\n",
                b"PK\3\4" + b"x" * 999,
                b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n" * 9,
                b"ffconcat version 1.0\nfile /etc/passwd\n" * 9,
                b"[" * 50_000,
                b'"' + b"x" * 300_000,
                b"GIF89a" + b"\xff" * 900,
                b"\x89PNG\r\n\x1a\n" + b"\0" * 900,
                "ä;ö\r\n".encode("utf-16") * 200,
            )
        )
    )


def rename(path: Path, draw: random.Random) -> None:
    odd = ("a\nb", "-rf", "x" * 200, "tcp:127.0.0.1:9", "é", "benign (0)", "1" * 40, "%s{}", "Cov", "patient1")
    path.rename(path.with_name(draw.choice(odd) + path.suffix))


def remove(path: Path, draw: random.Random) -> None:
    path.unlink()


def pipe(path: Path, draw: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def loop(path: Path, draw: random.Random) -> None:
    path.unlink()
    path.symlink_to(path)


def escape(path: Path, draw: random.Random) -> None:
    path.unlink()
    path.symlink_to("/dev/zero" if draw.random() < 0.5 else "/etc/hostname")


def folder(path: Path, draw: random.Random) -> None:
    path.unlink()
    path.mkdir()


def redraw(path: Path, draw: random.Random) -> None:
    """Another picture: another size, mode or number of bits."""
    if path.suffix.lower() not in (".png", ".jpg"):
        return cut(path, draw)
    noise = np.random.default_rng(draw.randrange(10**6))
    shape = draw.choice(((48, 48), (1, 1), (7, 300)))
    array = noise.integers(0, 256, (*shape, 4), dtype=np.uint8)
    made = draw.choice(
        (
            lambda: Image.fromarray(array),
            lambda: Image.fromarray(array[..., 0].astype(np.uint16) * 200),
            lambda: Image.fromarray(array[..., 0] > 127),
            lambda: Image.fromarray(array[..., 0] // 100, "P"),
            lambda: Image.fromarray(array[..., 0] // 100),
        )
    )()
    made.save(path, format="PNG")
    return None


SPOILS: tuple[Spoil, ...] = (
    *(cut, flip, flip, flip, double, swap, replace, rename, remove, pipe, loop, escape, folder, redraw, redraw),
)


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    roots = {name: tmp_path_factory.mktemp("fuzz") / name for name in NAMES}
    for name, root in roots.items():
        made(name).write_phantoms(root, COUNTS.get(name, 4), 48, seed=0)
    return roots


def made(name: str) -> Dataset[Any]:
    dataset: Dataset[Any] = Registry().create("datasets", name)
    return dataset


@contextmanager
def at_most(seconds: int, what: str) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise AssertionError(f"hangs: {what}")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def pictures(dataset: Dataset[Any], root: Path) -> dict[str, Picture]:
    """What is read without a word: all samples of a data set that is neither refused nor remarked upon."""
    index = dataset.scan(root)
    report = verify(dataset, index, RecordedProgress())
    for line in (*report.offenders, *report.warnings):
        assert line and "Traceback" not in line and "index out of range" not in line
    dataset.groups(index)
    dataset.published_folds(index)
    if report.offenders or report.warnings:
        return {}
    return {sample.sample_id: dataset.read(index, sample) for sample in index.samples}


@pytest.mark.parametrize("part", range(PARTS))
def test_a_spoilt_data_set_is_read_right_or_refused_in_one_line(
    part: int, written: dict[str, Path], tmp_path: Path
) -> None:
    for number in range(part, TRIES, PARTS):
        draw = random.Random(f"{SEED} {number}")
        name = NAMES[number // PARTS % len(NAMES)]
        root = tmp_path / "data"
        shutil.copytree(written[name], root)
        files = sorted(path for path in root.rglob("*") if path.is_file() and path.name != "PHANTOM.txt")
        path, spoil = draw.choice(files), draw.choice(SPOILS)
        what = f"input {number} of seed {SEED}: {name}, {spoil.__name__} {path.relative_to(root)}"
        spoil(path, draw)
        with at_most(LONGEST, what):
            try:
                found = pictures(made(name), root)
            except AnausError as error:
                assert 20 < len(str(error)) < 3000, what
            except Exception as error:
                raise AssertionError(what) from error
            else:
                for sample_id, picture in found.items():
                    assert picture.image.dtype == np.uint8 and picture.image.ndim == 2, f"{what}: {sample_id}"
                    assert picture.mask is None or picture.mask.shape == picture.image.shape, f"{what}: {sample_id}"
        shutil.rmtree(root)
