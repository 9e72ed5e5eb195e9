"""Deals a task's samples into folds, stored so that every method sees the same ones."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from anaus_bench.data.folds import check_folds, make_folds
from anaus_bench.interfaces import Case, Dataset, Fold, Index, StageContext, StageInputs, Task
from anaus_bench.registry import Registry
from anaus_bench.stages.corpus import check_unchanged
from anaus_bench.stages.phantoms import folder_of


def run(spec: Mapping[str, Any], inputs: StageInputs, ctx: StageContext, registry: Registry) -> dict[str, Any]:
    """Writes `folds.json`: fold, group and label of each sample."""
    task, dataset, index = open_task(spec, inputs, registry)
    group_of = dict(zip((sample.sample_id for sample in index.samples), dataset.groups(index), strict=True))
    samples = task.select(index.samples)
    groups = [group_of[sample.sample_id] for sample in samples]
    fold_of = make_folds(groups, [sample.label for sample in samples], task.settings.folds, task.settings.fold_seed)
    rows = {
        sample.sample_id: {"fold": fold, "group": group, "label": sample.label}
        for sample, fold, group in zip(samples, fold_of, groups, strict=True)
    }
    content = {"fingerprint": index.fingerprint, "folds": task.settings.folds, "samples": rows}
    (ctx.out / "folds.json").write_text(json.dumps(content, indent=1, ensure_ascii=False))
    for label, count in Counter(sample.label for sample in samples).items():
        if label is not None and count < task.settings.folds:
            ctx.progress.note(f"class {dataset.classes[label]!r} has {count} images, fewer than folds")
    sizes = Counter(fold_of)
    return {
        "images": len(samples),
        "groups": len(set(groups)),
        "sizes": [sizes[fold] for fold in range(task.settings.folds)],
        "phantom": index.phantom,
    }


def open_task(
    spec: Mapping[str, Any], inputs: StageInputs, registry: Registry
) -> tuple[Task[Any], Dataset[Any], Index]:
    """The task of a stage, its data set and what is there of it."""
    task: Task[Any] = registry.build(spec["task"])
    dataset: Dataset[Any] = registry.build(spec["dataset"])
    index = dataset.scan(folder_of(inputs, dataset.name))
    check_unchanged(dataset.name, spec["dataset"], index)
    return task, dataset, index


def read_folds(dataset: Dataset[Any], index: Index, folder: Path) -> list[Fold]:
    """All folds, with cases in the order of `folds.json`.

    Raises:
        LeakageError: The file splits a group.
    """
    content = json.loads((folder / "folds.json").read_text())
    rows = content["samples"]
    check_folds([row["group"] for row in rows.values()], [row["fold"] for row in rows.values()])
    by_id = {sample.sample_id: sample for sample in index.samples}
    cases = []
    for sample_id, row in rows.items():
        sample = dataclasses.replace(by_id[sample_id], group_id=row["group"])
        cases.append((row["fold"], Case(sample, partial(dataset.read, index, sample))))
    return [
        Fold(
            number,
            tuple(case for fold, case in cases if fold != number),
            tuple(case for fold, case in cases if fold == number),
            dataset.classes,
        )
        for number in range(content["folds"])
    ]
