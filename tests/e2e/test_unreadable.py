"""A corpus with files that cannot be read: refused with all of them, or packed without them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anaus_bench.corpus.packed import open_corpus
from tests.e2e.conftest import Command


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures, of which two are cut off, and a clip that is none."""
    root = tmp_path / "images"
    root.mkdir()
    for number in range(5):
        noise = np.random.default_rng(number).integers(0, 256, (64, 64), dtype=np.uint8)
        Image.fromarray(noise).save(root / f"{number}.png")
    for name in ("1.png", "3.png"):
        (root / name).write_bytes((root / name).read_bytes()[:900])
    (root / "clip.avi").write_bytes(b"no clip" * 99)
    return root


def test_all_unreadable_files_are_refused_together(command: Command, folder: Path) -> None:
    (folder / "clip.avi").unlink()

    outcome = command("data", "prepare", "images", "--data-root", f"images={folder}")

    assert outcome.code == 2
    line = outcome.err.strip().splitlines()[-1]
    assert "2 files cannot be used: '1.png', '3.png'" in line and "corpus.unreadable=skip" in line


def test_unreadable_files_are_left_out_on_request_and_recorded(command: Command, folder: Path) -> None:
    words = ("--data-root", f"images={folder}", "--set", "corpus.unreadable=skip")

    outcome = command("data", "prepare", "images", "--json", *words)

    assert outcome.code == 0, outcome.err
    assert outcome.data["images"] == 3
    assert [any(name in text for text in outcome.data["unreadable"]) for name in ("1.png", "3.png", "clip.avi")] == [
        True
    ] * 3
    corpus = open_corpus(Path(outcome.data["folder"]))
    assert [entry.sample_id for entry in corpus.entries] == ["0.png", "2.png", "4.png"]
    for row, entry in enumerate(corpus.entries):
        with Image.open(folder / entry.sample_id) as image:
            np.testing.assert_array_equal(corpus.images[row], np.asarray(image))


def test_every_file_is_read_again_on_request(command: Command, folder: Path) -> None:
    outcome = command("data", "verify", "images", "--data-root", f"images={folder}", "--full", "--json")

    assert outcome.code == 2
    assert outcome.data["images"] == 5
    assert len(outcome.data["offenders"]) == 3
