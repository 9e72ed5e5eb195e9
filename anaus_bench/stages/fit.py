"""Fits a learned mask source on images with masks, or on the images of the corpus."""

from __future__ import annotations

import json
from typing import Any

import safetensors.torch

from anaus_bench.corpus.packed import open_corpus
from anaus_bench.datasets.audit import without_overlap
from anaus_bench.errors import MissingMask
from anaus_bench.interfaces import MaskSource, StageContext, StageInputs
from anaus_bench.planning.specs import FitSpec
from anaus_bench.registry import Registry


def run(spec: FitSpec, inputs: StageInputs, ctx: StageContext, registry: Registry) -> dict[str, Any]:
    """Writes `state.safetensors` and `structures.json`."""
    source: MaskSource[Any] = registry.build(spec.masks)
    pairs = open_corpus(inputs.folders["pairs"])
    if pairs.truth is None and source.paired_corpora():
        raise MissingMask(f"mask source {source.name!r} is fitted on masks; {source.paired_corpora()!r} has none")
    if "audit" in inputs.folders:
        pairs = pairs.take(without_overlap(pairs, inputs.folders["audit"]))
    state = source.fit(pairs, ctx)
    safetensors.torch.save_file(dict(state), ctx.out / "state.safetensors")
    (ctx.out / "structures.json").write_text(json.dumps(pairs.structures))
    return {"pairs": len(pairs), **source.describe()}
