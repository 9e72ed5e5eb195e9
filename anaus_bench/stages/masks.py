"""Builds the label maps of a corpus with a mask source, and scores them."""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from anaus_bench.corpus.packed import PackedCorpus, open_corpus
from anaus_bench.interfaces import MaskSource, StageContext, StageInputs
from anaus_bench.metrics.label_maps import Row, score_masks, stability, summarise
from anaus_bench.parallel import batches, in_processes
from anaus_bench.planning.specs import MasksSpec
from anaus_bench.registry import PluginSpec, Registry
from anaus_bench.rows import write_rows
from anaus_bench.stages.corpus import reserve
from anaus_bench.stages.inputs import ready_source

BATCH = 16
POOL_FROM = 200  # images from which starting worker processes pays

STABILITY_IMAGES = 16

Part = tuple[NDArray[np.uint8], list[Row]]


def run(spec: MasksSpec, inputs: StageInputs, ctx: StageContext, registry: Registry) -> dict[str, Any]:
    """Writes `label_maps.npy` (N, S, S) uint8, aligned with the corpus, and `regions.csv`, one row of scores per image.

    Finished batches survive a kill. The ground truth serves the scores only, unless the source is an oracle.
    """
    corpus = open_corpus(inputs.folders["corpus"])
    source = ready_source(registry.build(spec.masks), inputs.folders.get("fit"), ctx.device)
    source.check(corpus)
    held = _Held(ctx.resume, corpus, ctx.checkpoint_seconds)
    parts = list(batches(len(corpus), BATCH))[held.done :]
    if source.per_image and not source.learned and len(corpus) >= POOL_FROM:
        found = _in_processes(spec.masks, registry.files, inputs.folders["corpus"], parts)
    else:
        found = (_segmented(source, corpus, part, ctx.device) for part in parts)
    start = held.done * BATCH
    with ctx.progress.track(f"{source.name} masks", len(corpus), done=start) as tracker:
        for part, (maps, rows) in zip(parts, found, strict=True):
            held.add(part, maps, rows)
            tracker.advance(part.stop, images=part.stop - part.start, waited=0.0)
    scores = summarise(held.rows)
    if not (source.needs_truth or source.stored):
        scores |= _stability(source, corpus, ctx.device)
    if single := sum(row["single_region"] == 1 for row in held.rows):
        ctx.progress.note(f"{source.name}: {single} of {len(corpus)} images are one region; regions.csv marks them")
    held.publish(ctx.out, [entry.sample_id for entry in corpus.entries])
    return {"scores": scores, **source.describe()}


def _stability(source: MaskSource[Any], corpus: PackedCorpus, device: torch.device) -> Row:
    """Means of `stability` over a few images, evenly over the corpus."""
    chosen = np.unique(np.linspace(0, len(corpus) - 1, STABILITY_IMAGES).round().astype(int))

    def segment(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return source.segment(torch.tensor(images)[:, None].to(device)).cpu().numpy()

    rows = stability(segment, corpus.images[chosen], corpus.boxes()[chosen])
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


class _Held:
    """Label maps and scores made so far, kept on disk between runs."""

    def __init__(self, folder: Path, corpus: PackedCorpus, save_seconds: float) -> None:
        self.maps_path, self.rows_path = folder / "label_maps.npy", folder / "rows.json"
        kept = self.rows_path.exists() and self.maps_path.exists()
        self.rows: list[Row] = json.loads(self.rows_path.read_text()) if kept else []
        mode = "r+" if self.rows else "w+"
        self.maps = open_memmap(self.maps_path, mode=mode, dtype=np.uint8, shape=corpus.images.shape)
        if not kept:
            reserve(self.maps_path)
        self.save_seconds, self.saved_at = save_seconds, time.monotonic()

    @property
    def done(self) -> int:
        """Finished batches."""
        return len(self.rows) // BATCH

    def add(self, part: slice, maps: NDArray[np.uint8], rows: list[Row]) -> None:
        self.maps[part] = maps
        self.rows += rows
        if len(self.rows) % BATCH == 0 and time.monotonic() - self.saved_at >= self.save_seconds:
            self.maps.flush()  # the maps first: a row says that its map is there
            partial = self.rows_path.with_suffix(".partial")
            partial.write_text(json.dumps(self.rows))
            os.replace(partial, self.rows_path)
            self.saved_at = time.monotonic()

    def publish(self, out: Path, sample_ids: Sequence[str]) -> None:
        self.maps.flush()
        os.replace(self.maps_path, out / "label_maps.npy")
        rows = [{"sample_id": name, **row} for name, row in zip(sample_ids, self.rows, strict=True)]
        write_rows(out / "regions.csv", rows)


def _segmented(source: MaskSource[Any], corpus: PackedCorpus, part: slice, device: torch.device) -> Part:
    """Label maps of a slice of the corpus and their scores."""
    truth = corpus.truth[part] if corpus.truth is not None else None
    if source.stored:
        maps = source.read(corpus.entries[part], corpus.size)
    else:
        images = torch.tensor(corpus.images[part])[:, None].to(device)
        given = torch.tensor(truth).to(device) if source.needs_truth else None
        maps = source.segment(images, given).cpu().numpy()
    return maps, score_masks(maps, truth, corpus.boxes()[part])


def _in_processes(spec: PluginSpec, files: Sequence[Path], corpus: Path, parts: Sequence[slice]) -> Iterator[Part]:
    """The same, slice by slice in order, one process per core."""
    return in_processes(functools.partial(_work, spec.model_dump_json(), tuple(files), corpus), parts)


def _work(spec: str, files: tuple[Path, ...], corpus: Path, part: slice) -> Part:
    source, packed = _opened(spec, files, corpus)
    return _segmented(source, packed, part, torch.device("cpu"))


@functools.lru_cache(maxsize=1)
def _opened(spec: str, files: tuple[Path, ...], corpus: Path) -> tuple[MaskSource[Any], PackedCorpus]:
    """Once per worker process, which uses one thread."""
    torch.set_num_threads(1)
    return Registry(files).build(PluginSpec.model_validate_json(spec)), open_corpus(corpus)
