"""Packs data sets into one corpus: every image decoded once, letterboxed to one size, on all cores."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

from anaus_bench.corpus.packed import Entry, letterbox, write_index
from anaus_bench.interfaces import Dataset, Index, Sample, StageContext, StageInputs
from anaus_bench.parallel import batches, in_processes
from anaus_bench.planning.specs import CorpusSpec, DatasetSpec
from anaus_bench.registry import Registry
from anaus_bench.stages.inputs import check_unchanged, folder_of

PART = 256  # images per part; parts run over clips in order, so that videos are decoded once
POOL_FROM = 2000  # images from which starting worker processes pays

Box = tuple[int, int, int, int]


def run(spec: CorpusSpec, inputs: StageInputs, ctx: StageContext, registry: Registry) -> dict[str, Any]:
    """Writes `images.npy`, `truth.npy` if any data set has masks, and `index.json`. Finished parts survive a kill."""
    opened = [_open(name, part, folder_of(inputs, name, role=name), registry) for name, part in spec.datasets.items()]
    structures = list(dict.fromkeys(name for dataset, _ in opened for name in dataset.structures))
    classes = [f"{dataset.name}:{name}" for dataset, _ in opened for name in dataset.classes]
    shape = (sum(len(index.samples) for _, index in opened), spec.size, spec.size)
    held = ctx.resume / "boxes.json"
    paths = [ctx.resume / f"{name}.npy" for name in ["images", *(["truth"] if structures else [])]]
    kept = held.exists() and all(path.exists() for path in paths)
    boxes: list[Box] = [tuple(box) for box in json.loads(held.read_text())] if kept else []
    if not kept:
        for path in paths:
            open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
            reserve(path)
    entries: list[Entry] = []
    kept_at = time.monotonic()
    with ctx.progress.track("pack", shape[0], done=len(boxes)) as tracker:
        for dataset, index in opened:
            first = len(entries)
            entries += [_entry(sample, dataset, classes) for sample in index.samples]
            source = (spec.datasets[dataset.name], index.root, registry.files)
            work = functools.partial(_pack, source, ctx.resume, structures, first)
            left = [part for part in batches(len(index.samples), PART) if first + part.start >= len(boxes)]
            in_pool = sum(part.stop - part.start for part in left) >= POOL_FROM
            for part, found in zip(left, in_processes(work, left) if in_pool else map(work, left), strict=True):
                boxes += found
                if time.monotonic() - kept_at >= ctx.checkpoint_seconds:
                    _keep(held, boxes)
                    kept_at = time.monotonic()
                tracker.advance(len(boxes), images=part.stop - part.start, waited=0.0)
    for path in paths:
        os.replace(path, ctx.out / path.name)
    entries = [dataclasses.replace(entry, box=box) for entry, box in zip(entries, boxes, strict=True)]
    annotated = {dataset.name: tuple(structures.index(s) + 1 for s in dataset.structures) for dataset, _ in opened}
    phantom = any(index.phantom for _, index in opened)
    write_index(ctx.out, entries, structures, annotated, classes, phantom)
    return {"images": len(entries), "phantom": phantom}


def reserve(path: Path) -> None:
    """Takes the file's whole space now: a full disk is then an error here, and not a crash at some later page.

    Raises:
        OSError: No space left.
    """
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)


def _open(name: str, spec: DatasetSpec, root: Path, registry: Registry) -> tuple[Dataset[Any], Index]:
    dataset: Dataset[Any] = registry.build(spec)
    index = dataset.scan(root)
    check_unchanged(name, spec, index)
    return dataset, index


def _entry(sample: Sample, dataset: Dataset[Any], classes: Sequence[str]) -> Entry:
    """The index entry of a sample; its box is known when it is packed."""
    return Entry(
        sample_id=sample.sample_id,
        dataset=dataset.name,
        group_id=f"{dataset.name}:{sample.group_id}",
        label=-1 if sample.label is None else classes.index(f"{dataset.name}:{dataset.classes[sample.label]}"),
        video_id=None if sample.video_id is None else f"{dataset.name}:{sample.video_id}",
        frame_index=sample.frame_index,
        patient_id=sample.patient_id,
        box=(0, 0, 0, 0),
    )


def _pack(
    source: tuple[DatasetSpec, Path, tuple[Path, ...]], folder: Path, structures: Sequence[str], first: int, part: slice
) -> list[Box]:
    """Packs some samples of a data set into the arrays in `folder`, from row `first + part.start`; their boxes."""
    spec, root, files = source
    dataset, index = _opened(spec.model_dump_json(), root, files)
    images = np.load(folder / "images.npy", mmap_mode="r+")
    truth = np.load(folder / "truth.npy", mmap_mode="r+") if structures else None
    # This data set's mask ids in the corpus's numbering.
    ids = np.array([0, *(structures.index(name) + 1 for name in dataset.structures)], dtype=np.uint8)
    boxes = []
    for row, sample in enumerate(index.samples[part], start=first + part.start):
        picture = dataset.read(index, sample)
        images[row], box = letterbox(picture.image, images.shape[1], labels=False)
        if truth is not None and picture.mask is not None:
            truth[row], _ = letterbox(ids[picture.mask], images.shape[1], labels=True)
        boxes.append(box)
    return boxes


@functools.lru_cache(maxsize=1)
def _opened(spec: str, root: Path, files: tuple[Path, ...]) -> tuple[Dataset[Any], Index]:
    """The data set, once per worker process."""
    dataset: Dataset[Any] = Registry(files).build(DatasetSpec.model_validate_json(spec))
    return dataset, dataset.scan(root)


def _keep(path: Path, boxes: Sequence[Box]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(boxes))
    os.replace(partial, path)
