"""Deals a task's samples into folds, stored so that every method sees the same ones."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from anaus_bench.datasets.folds import deal
from anaus_bench.interfaces import StageContext, StageInputs
from anaus_bench.planning.specs import FoldsSpec
from anaus_bench.registry import Registry
from anaus_bench.stages.inputs import open_task


def run(spec: FoldsSpec, inputs: StageInputs, ctx: StageContext, registry: Registry) -> dict[str, Any]:
    """Writes `folds.json`: fold, group and label of each sample."""
    task, dataset, index = open_task(spec, inputs, registry)
    samples = task.select(index.samples)
    content = deal(dataset, index, samples, task.settings.folds, task.settings.fold_seed)
    for warning in content["warnings"]:
        ctx.progress.note(f"{dataset.name}: {warning}")
    (ctx.out / "folds.json").write_text(json.dumps(content, indent=1, ensure_ascii=False))
    sizes = Counter(row["fold"] for row in content["samples"].values())
    return {
        "images": len(samples),
        "groups": len({row["group"] for row in content["samples"].values()}),
        "sizes": {str(fold): sizes[fold] for fold in sorted(sizes)},
        "protocol": content["protocol"],
        "warnings": content["warnings"],
        "phantom": index.phantom,
    }
