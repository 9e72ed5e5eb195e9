"""A sheet of a corpus with the regions of several mask sources side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from anaus_bench.data.corpus import open_corpus
from anaus_bench.figures import Column, draw_panel
from anaus_bench.plan import Stage
from anaus_bench.store import Store


def draw_preview(stages: Mapping[str, Stage], store: Store, path: Path, count: int) -> None:
    """Writes a PNG of `count` images, evenly over the corpus.

    Args:
        stages: Mask source name -> finished `masks` stage; all of one corpus.
        store: Where they are.
        path: PNG to write.
        count: Number of images, at most as many as the corpus has.
    """
    corpus_stage = next(iter(stages.values())).inputs["corpus"]
    corpus = open_corpus(store.open(corpus_stage.kind, corpus_stage.key))
    maps = {
        name: np.load(store.open(stage.kind, stage.key) / "label_maps.npy", mmap_mode="r")
        for name, stage in stages.items()
    }
    rows = []
    for number in np.linspace(0, len(corpus) - 1, min(count, len(corpus))).round().astype(int):
        entry = corpus.entries[number]
        top, left, height, width = entry.box
        inside = slice(top, top + height), slice(left, left + width)
        image = corpus.images[number][inside]
        columns = [Column("image", image)]
        if corpus.truth is not None:
            columns.append(Column("ground truth", image, contour=corpus.truth[number][inside], colour="lime"))
        columns += [
            Column(name, image, regions=np.asarray(label_maps[number][inside])) for name, label_maps in maps.items()
        ]
        rows.append((entry.sample_id, columns))
    draw_panel(rows, path, title="regions of mask sources", mark="generated phantoms" if corpus.phantom else "")
