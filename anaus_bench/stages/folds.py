"""Deals a task's samples into folds, stored so that every method sees the same ones."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from anaus_bench.datasets.folds import check_folds, make_folds
from anaus_bench.interfaces import Case, Dataset, Fold, Index, Sample, StageContext, StageInputs, Task
from anaus_bench.registry import Registry
from anaus_bench.stages.corpus import check_unchanged
from anaus_bench.stages.phantoms import folder_of

FIXED_TEST = -1


def run(spec: Mapping[str, Any], inputs: StageInputs, ctx: StageContext, registry: Registry) -> dict[str, Any]:
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


def deal(dataset: Dataset[Any], index: Index, samples: Sequence[Sample], folds: int, seed: int) -> dict[str, Any]:
    """What `folds.json` holds: the published protocol if it has as many folds, else grouped and stratified folds."""
    ids = [sample.sample_id for sample in index.samples]
    group_of = dict(zip(ids, dataset.groups(index), strict=True))
    groups = [group_of[sample.sample_id] for sample in samples]
    warnings = []
    published = dataset.published_folds(index)
    if published is not None and max(published) + 1 == folds:
        protocol, fold_by_id = "published", dict(zip(ids, published, strict=True))
        fold_of = [fold_by_id[sample.sample_id] for sample in samples]
        homes: dict[str, set[int]] = {}
        for group, fold in zip(groups, fold_of, strict=True):
            homes.setdefault(group, set()).add(fold)
        split = sum(len(found) > 1 for found in homes.values())
        if split:
            warnings.append(f"the published folds split {split} of {len(homes)} groups")
    else:
        protocol = "grouped"
        if published is not None:
            warnings.append(f"the published protocol has {max(published) + 1} folds, not {folds}; folds are dealt anew")
        fold_of = make_folds(groups, [sample.label for sample in samples], folds, seed)
    for label, count in sorted(Counter(sample.label for sample in samples if sample.label is not None).items()):
        if count < folds:
            warnings.append(f"class {dataset.classes[label]!r} has {count} images, fewer than folds")
    rows = {
        sample.sample_id: {"fold": fold, "group": group, "label": sample.label}
        for sample, fold, group in zip(samples, fold_of, groups, strict=True)
    }
    return {
        "dataset": dataset.name,
        "fingerprint": index.fingerprint,
        "folds": folds,
        "protocol": protocol,
        "warnings": warnings,
        "samples": rows,
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
    """All folds, with cases in the order of `folds.json`; a fixed test set is that of every fold.

    Raises:
        LeakageError: The file splits a group and the folds are not published ones.
    """
    content = json.loads((folder / "folds.json").read_text())
    rows = content["samples"]
    if content["protocol"] != "published":
        check_folds([row["group"] for row in rows.values()], [row["fold"] for row in rows.values()])
    by_id = {sample.sample_id: sample for sample in index.samples}
    cases = []
    for sample_id, row in rows.items():
        sample = dataclasses.replace(by_id[sample_id], group_id=row["group"])
        cases.append((row["fold"], Case(sample, partial(dataset.read, index, sample))))
    fixed = tuple(case for fold, case in cases if fold == FIXED_TEST)
    return [
        Fold(
            number,
            tuple(case for fold, case in cases if fold not in (number, FIXED_TEST)),
            fixed or tuple(case for fold, case in cases if fold == number),
            dataset.classes,
        )
        for number in range(content["folds"])
    ]
