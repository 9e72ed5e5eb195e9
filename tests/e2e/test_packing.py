"""At which side images are packed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anaus_bench.corpus.packed import open_corpus
from tests.e2e.conftest import Command


@pytest.mark.parametrize(("largest", "side"), [(48, 60), (120, 100)])
def test_images_are_packed_at_the_side_that_is_set_and_none_is_enlarged_for_it(
    command: Command, tmp_path: Path, largest: int, side: int
) -> None:
    root = tmp_path / "images"
    root.mkdir()
    for name, shape in (("a", (30, 60)), ("b", (largest, 40))):
        Image.fromarray(np.full(shape, 200, dtype=np.uint8)).save(root / f"{name}.png")

    outcome = command(
        "data", "prepare", "images", "--json", "--data-root", f"images={root}", "--set", "corpus.size=100"
    )

    assert outcome.code == 0, outcome.err
    corpus = open_corpus(Path(outcome.data["folder"]))
    assert corpus.size == side
    assert corpus.entries[0].box[2:] == (side // 2, side)
