"""Scores the predictions of all folds of a cell."""

from __future__ import annotations

from typing import Any

import numpy as np

from anaus_bench.datasets.audit import read_audit
from anaus_bench.datasets.folds import read_folds
from anaus_bench.interfaces import Protocol, StageContext, StageInputs
from anaus_bench.machine.files import write_rows
from anaus_bench.planning.specs import ScoreSpec
from anaus_bench.registry import Registry
from anaus_bench.stages.inputs import open_task


def run(spec: ScoreSpec, inputs: StageInputs, ctx: StageContext, registry: Registry) -> dict[str, Any]:
    """Writes `images.csv`, one row per image; returns metrics per fold, their mean and spread, pooled, and notes."""
    task, dataset, index = open_task(spec, inputs, registry)
    folds = read_folds(dataset, index, inputs.folders["folds"])
    scores = task.score([(fold, inputs.folders[f"fold{fold.number}"]) for fold in folds])
    write_rows(ctx.out / "images.csv", scores.rows)
    protocol: Protocol[Any, Any] = registry.build(spec.protocol)
    notes = scores.notes + protocol.notes()
    if "audit" in inputs.folders:
        found = read_audit(inputs.folders["audit"])
        left_out = ", which were left out of it" if found.overlap == "exclude" else ""
        notes = [*notes, f"{found.images} test images have a near-duplicate in the corpus{left_out}"]
    keys = list(scores.folds[0])
    values = {key: np.array([fold[key] for fold in scores.folds], dtype=float) for key in keys}
    return {
        "images": len(scores.rows),
        "folds": scores.folds,
        "mean": {
            key: float(np.nanmean(value)) if np.isfinite(value).any() else float("nan") for key, value in values.items()
        },
        "sd": {key: _spread(value) for key, value in values.items()},
        "pooled": scores.pooled,
        "notes": notes,
    }


def _spread(values: np.ndarray) -> float:
    """Standard deviation over folds (n - 1)."""
    finite = values[np.isfinite(values)]
    return float(finite.std(ddof=1)) if len(finite) > 1 else float("nan")
