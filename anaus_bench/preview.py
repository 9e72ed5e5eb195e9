"""Several mask sources side by side: a sheet of their regions, a table and a plot of their scores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from anaus_bench.data.corpus import open_corpus
from anaus_bench.figures import Column, draw_bars, draw_panel
from anaus_bench.plan import Stage
from anaus_bench.store import Store
from anaus_bench.tables import PHANTOM_MARK, Table

# Key of a score -> heading; the arrow points towards the better side.
SCORES = {
    "best_iou": "best IoU ↑",
    "achievable_accuracy": "achievable accuracy ↑",
    "boundary_recall": "boundary recall ↑",
    "boundary_precision": "boundary precision ↑",
    "under_segmentation": "under-segmentation ↓",
    "pieces": "pieces per structure",
    "regions": "regions",
    "coverage": "coverage",
    "single_region": "single region",
    "mirror_covering": "mirror stability ↑",
    "gain_covering": "gain stability ↑",
}


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
    phantom = any((store.record(stage.kind, stage.key) or {}).get("phantom") for stage in stages.values())
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
    draw_panel(rows, path, title="regions of mask sources", mark="generated phantoms" if phantom else "")


def score_table(stages: Mapping[str, Stage], store: Store) -> Table:
    """Scores of each source, from the records of its `masks` stage."""
    records = {name: store.record(stage.kind, stage.key) for name, stage in stages.items()}
    scores = {name: record["result"]["scores"] for name, record in records.items() if record}
    keys = [key for key in SCORES if any(key in found for found in scores.values())]
    rows = [(name, *(f"{found[key]:.3g}" if key in found else "-" for key in keys)) for name, found in scores.items()]
    images = {int(found["images"]) for found in scores.values()}
    truth = {int(found["with_structures"]) for found in scores.values()}
    counts = f"{'/'.join(map(str, images))} images, {'/'.join(map(str, truth))} of them with a true structure."
    phantom = any(record and record["phantom"] for record in records.values())
    return Table(
        "mask scores [phantom]" if phantom else "mask scores",
        ("source", *(SCORES[key] for key in keys)),
        tuple(rows),
        ((f"{PHANTOM_MARK}.",) if phantom else ()) + (counts,),
    )


def draw_scores(stages: Mapping[str, Stage], store: Store, path: Path) -> None:
    """Writes a PNG with bars of the scores in [0, 1]."""
    records = {name: store.record(stage.kind, stage.key) for name, stage in stages.items()}
    scores = {name: record["result"]["scores"] for name, record in records.items() if record}
    shares = [
        key for key in SCORES if key not in ("regions", "pieces") and any(key in found for found in scores.values())
    ]
    mark = "generated phantoms" if any(record and record["phantom"] for record in records.values()) else ""
    values = {name: [found.get(key, float("nan")) for key in shares] for name, found in scores.items()}
    draw_bars([SCORES[key] for key in shares], values, path, title="mask scores", mark=mark)
