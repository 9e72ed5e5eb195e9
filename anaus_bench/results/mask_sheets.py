"""Several mask sources side by side: a sheet of their regions, a table and a plot of their scores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import pydantic

from anaus_bench.corpus.packed import open_corpus
from anaus_bench.interfaces import Stage
from anaus_bench.machine.artifacts import read_array, read_table
from anaus_bench.pictures import Column, draw_bars, draw_panel
from anaus_bench.results.tables import PHANTOM_MARK, Table
from anaus_bench.store import Store

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
    """Writes a PNG of `count` images, evenly over the corpus; below each map its regions and its best IoU.

    Args:
        stages: Mask source name -> finished `masks` stage; all of one corpus.
        store: Where they are.
        path: PNG to write.
        count: Number of images, at most as many as the corpus has.
    """
    corpus_stage = next(iter(stages.values())).inputs["corpus"]
    corpus = open_corpus(store.open(corpus_stage.kind, corpus_stage.key))
    folders = {name: store.open(stage.kind, stage.key) for name, stage in stages.items()}
    maps = {name: read_array(folder / "label_maps.npy", corpus.images.shape) for name, folder in folders.items()}
    captions = {name: _captions(folder / "regions.csv") for name, folder in folders.items()}
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
            Column(name, image, regions=np.asarray(label_maps[number][inside]), caption=captions[name][number])
            for name, label_maps in maps.items()
        ]
        rows.append((f"{entry.dataset} {entry.sample_id}", columns))
    draw_panel(rows, path, title="regions of mask sources", mark="generated phantoms" if corpus.phantom else "")


def score_table(stages: Mapping[str, Stage], store: Store) -> Table:
    """A row per score and a column per source, from the records of the `masks` stages."""
    records = {name: store.record(stage.kind, stage.key) for name, stage in stages.items()}
    scores = {name: record["result"]["scores"] for name, record in records.items() if record}
    rows = [
        (heading, *(f"{found[key]:.3g}" if key in found else "-" for found in scores.values()))
        for key, heading in SCORES.items()
        if any(key in found for found in scores.values())
    ]
    images = {int(found["images"]) for found in scores.values()}
    truth = {int(found["with_structures"]) for found in scores.values()}
    counts = [f"{'/'.join(map(str, images))} images, {'/'.join(map(str, truth))} of them with a true structure."]
    single = {name: round(found["single_region"] * found["images"]) for name, found in scores.items()}
    if any(single.values()):
        listed = ", ".join(f"{name} {count}" for name, count in single.items() if count)
        counts.append(f"Images that are one region, marked in regions.csv: {listed}.")
    phantom = _on_phantoms(stages, store)
    if learned := [name for name, record in records.items() if record and record["phantom"] and not phantom]:
        counts.append(f"Fitted on generated phantoms: {', '.join(learned)}.")
    return Table(
        "mask scores [phantom]" if phantom else "mask scores",
        ("score", *scores),
        tuple(rows),
        ((f"{PHANTOM_MARK}.",) if phantom else ()) + tuple(counts),
    )


def draw_scores(stages: Mapping[str, Stage], store: Store, path: Path) -> None:
    """Writes a PNG with bars of the scores in [0, 1]."""
    records = {name: store.record(stage.kind, stage.key) for name, stage in stages.items()}
    scores = {name: record["result"]["scores"] for name, record in records.items() if record}
    shares = [
        key for key in SCORES if key not in ("regions", "pieces") and any(key in found for found in scores.values())
    ]
    mark = "generated phantoms" if _on_phantoms(stages, store) else ""
    values = {name: [found.get(key, float("nan")) for key in shares] for name, found in scores.items()}
    draw_bars([SCORES[key] for key in shares], values, path, title="mask scores", mark=mark)


def _on_phantoms(stages: Mapping[str, Stage], store: Store) -> bool:
    """Whether the images are generated; real ones may have masks of a source that was fitted on phantoms."""
    corpus = next(iter(stages.values())).inputs["corpus"]
    record = store.record(corpus.kind, corpus.key)
    return record is not None and bool(record["phantom"])


class _Row(pydantic.BaseModel):
    """What captions need of a row of `regions.csv`; without a true structure there is no IoU."""

    regions: float
    best_iou: float | Literal[""] = ""


def _captions(table: Path) -> list[str]:
    """Of each row of `regions.csv`: number of regions, and the best IoU where the image has a structure."""
    rows = read_table(table, _Row)
    regions = ["1 region" if row.regions == 1 else f"{row.regions:.0f} regions" for row in rows]
    ious = ["" if row.best_iou == "" else f", IoU {row.best_iou:.2f}" for row in rows]
    return [count + iou for count, iou in zip(regions, ious, strict=True)]
