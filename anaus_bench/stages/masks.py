"""Builds the label maps of a corpus with a mask source, and scores them."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray

from anaus_bench.data.corpus import PackedCorpus, open_corpus
from anaus_bench.errors import PluginError
from anaus_bench.interfaces import MaskSource, StageContext, StageInputs, batches
from anaus_bench.mask_scores import Row, score_masks, stability, summarise
from anaus_bench.parallel import in_processes
from anaus_bench.registry import Registry
from anaus_bench.resumable import ResumableArray
from anaus_bench.rows import write_rows

BATCH = 16
POOL_FROM = 200  # images from which starting worker processes pays

STABILITY_IMAGES = 16

Part = tuple[NDArray[np.uint8], list[Row]]


def run(spec: Mapping[str, Any], inputs: StageInputs, ctx: StageContext, registry: Registry) -> dict[str, Any]:
    """Writes `label_maps.npy` (N, S, S) uint8, aligned with the corpus, and `regions.csv`, one row of scores per image.

    Finished batches survive a kill. The ground truth serves the scores only, unless the source is an oracle.
    """
    corpus = open_corpus(inputs.folders["corpus"])
    source = ready_source(registry.build(spec["masks"]), inputs.folders.get("fit"), ctx.device)
    source.check(corpus)
    maps: ResumableArray[Row] = ResumableArray(ctx, "label_maps.npy", corpus.images.shape)
    parts = [part for part in batches(len(corpus), BATCH) if part.stop > len(maps.facts)]
    start = parts[0].start if parts else len(corpus)
    maps.forget(start)
    if source.per_image and not source.learned and len(corpus) >= POOL_FROM:
        found = _in_processes(spec["masks"], registry.files, inputs.folders["corpus"], parts)
    else:
        found = (_segmented(source, corpus, part, ctx.device) for part in parts)
    with ctx.progress.track(f"{source.name} masks", len(corpus), done=start) as tracker:
        for part, (made, rows) in zip(parts, found, strict=True):
            maps.rows[part] = made
            maps.add(rows)
            tracker.advance(part.stop, images=part.stop - part.start, waited=0.0)
    scores = summarise(maps.facts)
    if not (source.needs_truth or source.stored):
        scores |= _stability(source, corpus, ctx.device)
    if single := sum(row["single_region"] == 1 for row in maps.facts):
        ctx.progress.note(f"{source.name}: {single} of {len(corpus)} images are one region; regions.csv marks them")
    maps.rows.flush()
    ids = [entry.sample_id for entry in corpus.entries]
    write_rows(ctx.out / "regions.csv", [{"sample_id": i, **row} for i, row in zip(ids, maps.facts, strict=True)])
    return {"scores": scores, **source.describe()}


def ready_source(source: MaskSource[Any], fit: Path | None, device: torch.device) -> MaskSource[Any]:
    """The mask source with the state of its `fit` stage loaded, if it is learned."""
    if fit is not None:
        structures = json.loads((fit / "structures.json").read_text())
        source.load(safetensors.torch.load_file(fit / "state.safetensors"), structures, device)
    return source


def _stability(source: MaskSource[Any], corpus: PackedCorpus, device: torch.device) -> Row:
    """Means of `stability` over a few images, evenly over the corpus."""
    chosen = np.unique(np.linspace(0, len(corpus) - 1, STABILITY_IMAGES).round().astype(int))

    def segment(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return source.segment(torch.tensor(images)[:, None].to(device)).cpu().numpy()

    rows = stability(segment, corpus.images[chosen], corpus.boxes()[chosen])
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _segmented(source: MaskSource[Any], corpus: PackedCorpus, part: slice, device: torch.device) -> Part:
    """Label maps of a slice of the corpus and their scores."""
    truth = corpus.truth[part] if corpus.truth is not None else None
    if source.stored:
        maps = source.read(corpus.entries[part], corpus.size)
    else:
        images = torch.tensor(corpus.images[part])[:, None].to(device)
        given = torch.tensor(truth).to(device) if source.needs_truth else None
        maps = source.segment(images, given).cpu().numpy()
    if maps.dtype != np.uint8 or maps.shape != corpus.images[part].shape:
        raise PluginError(
            f"mask source {source.name!r} returned {maps.dtype} of shape {maps.shape}; expected label maps, uint8 of "
            f"shape {corpus.images[part].shape}: at most 256 regions, ids from 0"
        )
    return maps, score_masks(maps, truth, corpus.boxes()[part])


def _in_processes(
    spec: Mapping[str, Any], files: Sequence[Path], corpus: Path, parts: Sequence[slice]
) -> Iterator[Part]:
    """The same, slice by slice in order, one process per core."""
    return in_processes(functools.partial(_work, json.dumps(spec), tuple(files), corpus), parts)


def _work(spec: str, files: tuple[Path, ...], corpus: Path, part: slice) -> Part:
    source, packed = _opened(spec, files, corpus)
    return _segmented(source, packed, part, torch.device("cpu"))


@functools.lru_cache(maxsize=1)
def _opened(spec: str, files: tuple[Path, ...], corpus: Path) -> tuple[MaskSource[Any], PackedCorpus]:
    """Once per worker process, which uses one thread."""
    torch.set_num_threads(1)
    return Registry(files).build(json.loads(spec)), open_corpus(corpus)
