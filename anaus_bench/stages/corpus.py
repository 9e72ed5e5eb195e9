"""Packs data sets into one corpus: every image decoded once, letterboxed to one size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

from anaus_bench.data.corpus import Entry, letterbox, write_index
from anaus_bench.errors import CountMismatch
from anaus_bench.interfaces import Dataset, Index, StageContext, StageInputs
from anaus_bench.registry import Registry
from anaus_bench.stages.phantoms import folder_of


def run(spec: Mapping[str, Any], inputs: StageInputs, ctx: StageContext, registry: Registry) -> dict[str, Any]:
    """Writes `images.npy`, `truth.npy` if any data set has masks, and `index.json`."""
    parts = [_part(name, part, inputs, registry) for name, part in spec["datasets"].items()]
    structures = list(dict.fromkeys(name for dataset, _ in parts for name in dataset.structures))
    classes = [f"{dataset.name}:{name}" for dataset, _ in parts for name in dataset.classes]
    count, size = sum(len(index.samples) for _, index in parts), spec["size"]
    images = open_memmap(ctx.out / "images.npy", mode="w+", dtype=np.uint8, shape=(count, size, size))
    truth = open_memmap(ctx.out / "truth.npy", mode="w+", dtype=np.uint8, shape=images.shape) if structures else None
    entries: list[Entry] = []
    with ctx.progress.track("pack", count) as tracker:
        for dataset, index in parts:
            # This data set's mask ids in the corpus's numbering.
            ids = np.array([0, *(structures.index(name) + 1 for name in dataset.structures)], dtype=np.uint8)
            for sample in index.samples:
                picture = dataset.read(index, sample)
                row = len(entries)
                images[row], box = letterbox(picture.image, size, labels=False)
                if truth is not None and picture.mask is not None:
                    truth[row], _ = letterbox(ids[picture.mask], size, labels=True)
                label = -1 if sample.label is None else classes.index(f"{dataset.name}:{dataset.classes[sample.label]}")
                entries.append(
                    Entry(
                        sample.sample_id,
                        dataset.name,
                        f"{dataset.name}:{sample.group_id}",
                        label,
                        sample.video_id,
                        sample.frame_index,
                        sample.patient_id,
                        box,
                    )
                )
                tracker.advance(len(entries), images=1, waited=0.0)
    annotated = {dataset.name: tuple(structures.index(s) + 1 for s in dataset.structures) for dataset, _ in parts}
    phantom = any(index.phantom for _, index in parts)
    write_index(ctx.out, entries, structures, annotated, classes, phantom)
    return {"images": count, "phantom": phantom}


def _part(name: str, spec: Mapping[str, Any], inputs: StageInputs, registry: Registry) -> tuple[Dataset[Any], Index]:
    dataset: Dataset[Any] = registry.build(spec)
    index = dataset.scan(folder_of(inputs, name, role=name))
    check_unchanged(name, spec, index)
    return dataset, index


def check_unchanged(name: str, spec: Mapping[str, Any], index: Index) -> None:
    """Refuses data that changed since the stage was planned.

    Raises:
        CountMismatch: Names or sizes of its files differ.
    """
    if spec.get("fingerprint", index.fingerprint) != index.fingerprint:
        raise CountMismatch(f"{name}: the files under {str(index.root)!r} changed since the plan was made; run again")
