"""Builds the label maps of a corpus with a mask source, and scores them."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from anaus_bench.corpus.packed import PackedCorpus, open_corpus
from anaus_bench.interfaces import ImageSource, MaskSource, PartitionSource, StageContext, StageInputs, StoredSource
from anaus_bench.machine.files import write_rows
from anaus_bench.machine.parallel import batches, in_processes
from anaus_bench.metrics.label_maps import Row, score_masks, stability, summarise
from anaus_bench.planning.specs import MasksSpec
from anaus_bench.registry import PluginSpec, Registry
from anaus_bench.stages.inputs import ready_source
from anaus_bench.store.resumable import ResumableArray

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
    maps: ResumableArray[Row] = ResumableArray(ctx, "label_maps.npy", corpus.images.shape)
    parts = [part for part in batches(len(corpus), BATCH) if part.stop > len(maps.facts)]
    start = parts[0].start if parts else len(corpus)
    maps.forget(start)
    if isinstance(source, PartitionSource | StoredSource) and len(corpus) >= POOL_FROM:
        found = _in_processes(spec.masks, registry.files, inputs.folders["corpus"], parts)
    else:
        found = (_segmented(source, corpus, part, ctx.device) for part in parts)
    with ctx.progress.track(f"{source.name} masks", len(corpus), done=start) as tracker:
        for part, (made, rows) in zip(parts, found, strict=True):
            maps.rows[part] = made
            maps.add(rows)
            tracker.advance(part.stop, images=part.stop - part.start, waited=0.0)
    scores = summarise(maps.facts)
    if isinstance(source, ImageSource):
        scores |= _stability(source, corpus, ctx.device)
    if single := sum(row["single_region"] == 1 for row in maps.facts):
        ctx.progress.note(f"{source.name}: {single} of {len(corpus)} images are one region; regions.csv marks them")
    maps.rows.flush()
    ids = [entry.sample_id for entry in corpus.entries]
    write_rows(ctx.out / "regions.csv", [{"sample_id": i, **row} for i, row in zip(ids, maps.facts, strict=True)])
    return {"scores": scores, **source.describe()}


def _stability(source: ImageSource[Any], corpus: PackedCorpus, device: torch.device) -> Row:
    """Means of `stability` over a few images, evenly over the corpus."""
    chosen = np.unique(np.linspace(0, len(corpus) - 1, STABILITY_IMAGES).round().astype(int))
    entries = [corpus.entries[number] for number in chosen]

    def segment(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return source.label_maps(torch.tensor(images)[:, None].to(device), None, entries).cpu().numpy()

    rows = stability(segment, corpus.images[chosen], corpus.boxes()[chosen])
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _segmented(source: MaskSource[Any], corpus: PackedCorpus, part: slice, device: torch.device) -> Part:
    """Label maps of a slice of the corpus and their scores."""
    truth = corpus.truth[part] if corpus.truth is not None else None
    images = torch.tensor(corpus.images[part])[:, None].to(device)
    given = torch.tensor(truth).to(device) if truth is not None else None
    maps = source.label_maps(images, given, corpus.entries[part]).cpu().numpy()
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
