"""Generates a data set's images in its official layout, in place of the real ones."""

from __future__ import annotations

from typing import Any

from anaus_bench.interfaces import Dataset, StageContext, StageInputs
from anaus_bench.planning.specs import PhantomsSpec
from anaus_bench.registry import Registry
from anaus_bench.stages.inputs import FOLDER


def run(spec: PhantomsSpec, inputs: StageInputs, ctx: StageContext, registry: Registry) -> dict[str, Any]:
    """Writes `data/`."""
    dataset: Dataset[Any] = registry.build(spec.dataset)
    root = ctx.out / FOLDER
    root.mkdir()
    dataset.write_phantoms(root, spec.count, spec.size, spec.seed)
    return {"images": len(dataset.scan(root).samples), "phantom": True}
