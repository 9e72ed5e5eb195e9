"""Builds the label maps of a corpus with a mask source."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.lib.format import open_memmap

from anaus_bench.data.corpus import open_corpus
from anaus_bench.errors import MissingMask
from anaus_bench.interfaces import MaskSource, StageContext, StageInputs, batches
from anaus_bench.registry import Registry

BATCH = 16


def run(spec: Mapping[str, Any], inputs: StageInputs, ctx: StageContext, registry: Registry) -> dict[str, Any]:
    """Writes `label_maps.npy` (N, S, S) uint8, aligned with the corpus, and `regions.csv`, one row per image."""
    corpus = open_corpus(inputs.folders["corpus"])
    source = ready_source(registry.build(spec["masks"]), inputs.folders.get("fit"), ctx.device)
    if source.needs_truth and corpus.truth is None:
        raise MissingMask(f"mask source {source.name!r} needs ground truth; this corpus has no masks")
    maps = open_memmap(ctx.out / "label_maps.npy", mode="w+", dtype=np.uint8, shape=corpus.images.shape)
    regions, coverage = np.zeros(len(corpus), dtype=int), np.zeros(len(corpus))
    with ctx.progress.track(f"{source.name} masks", len(corpus)) as tracker:
        for part in batches(len(corpus), BATCH):
            images = torch.tensor(corpus.images[part])[:, None].to(ctx.device)
            truth = (
                torch.tensor(corpus.truth[part]).to(ctx.device)
                if source.needs_truth and corpus.truth is not None
                else None
            )
            maps[part] = source.segment(images, truth).cpu().numpy()
            regions[part] = maps[part].max(axis=(1, 2)) + 1
            coverage[part] = (maps[part] > 0).mean(axis=(1, 2))
            tracker.advance(part.stop, images=part.stop - part.start, waited=0.0)
    with (ctx.out / "regions.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["sample_id", "regions", "coverage"])
        table.writerows(zip((entry.sample_id for entry in corpus.entries), regions, coverage.round(4), strict=True))
    return {
        "images": len(corpus),
        "mean_regions": round(float(regions.mean()), 3),
        "single_region_images": int((regions == 1).sum()),
        **source.describe(),
    }


def ready_source(source: MaskSource[Any], fit: Path | None, device: torch.device) -> MaskSource[Any]:
    """The mask source with the state of its `fit` stage loaded, if it is learned."""
    if fit is not None:
        structures = json.loads((fit / "structures.json").read_text())
        source.load(safetensors.torch.load_file(fit / "state.safetensors"), structures, device)
    return source
