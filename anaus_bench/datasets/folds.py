"""Folds that never split a group: stratified, seeded, the same for every method."""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic

from anaus_bench.errors import CountMismatch, LeakageError, shown
from anaus_bench.interfaces import Case, Dataset, Fold, Index, Sample
from anaus_bench.machine.artifacts import damaged, read_json


def make_folds(groups: Sequence[str], labels: Sequence[int | None], folds: int, seed: int) -> list[int]:
    """Fold of each sample: groups stay whole, class shares are balanced.

    Args:
        groups: Group of each sample.
        labels: Class of each sample; None counts as a class of its own.
        folds: Number of folds.
        seed: Seed of the order in which groups are dealt out.

    Raises:
        CountMismatch: Fewer groups than folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    names, number = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < folds:
        raise CountMismatch(
            f"{len(groups)} images in {len(names)} groups cannot make {folds} folds; give more data or lower task.folds"
        )
    # scikit-learn's own shuffling permutes only groups of equal make-up; renumbering the groups permutes them all.
    number = np.random.default_rng(seed).permutation(len(names))[number]
    stratum = np.array([-1 if label is None else label for label in labels])
    fold_of = np.zeros(len(groups), dtype=int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer samples than folds
        for fold, (_, test) in enumerate(StratifiedGroupKFold(folds).split(stratum, stratum, number)):
            fold_of[test] = fold
    check_folds(groups, fold_of.tolist())
    return [int(fold) for fold in fold_of]


def check_folds(groups: Sequence[str], fold_of: Sequence[int]) -> None:
    """Refuses folds that share a group.

    Raises:
        LeakageError: Names the first shared group.
    """
    seen: dict[str, int] = {}
    for group, fold in zip(groups, fold_of, strict=True):
        if seen.setdefault(group, fold) != fold:
            raise LeakageError(f"group {group!r} stands in folds {seen[group]} and {fold}; a group must stay whole")


FIXED_TEST = -1


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


def read_folds(dataset: Dataset[Any], index: Index, folder: Path) -> list[Fold]:
    """All folds, with cases in the order of `folds.json`; a fixed test set is that of every fold.

    Raises:
        StoreError: The file is absent, of another form, or of other samples.
        LeakageError: The file splits a group and the folds are not published ones.
    """
    path = folder / "folds.json"
    content = read_json(path, FoldsFile)
    rows = content.samples
    by_id = {sample.sample_id: sample for sample in index.samples}
    if strange := [name for name in rows if name not in by_id]:
        raise damaged(path, f"{dataset.name} has no sample {shown(strange[0])}")
    if {row.fold for row in rows.values()} - {FIXED_TEST} != {*range(content.folds)}:
        raise damaged(path, f"its samples are not dealt to {content.folds} folds")
    if content.protocol != "published":
        check_folds([row.group for row in rows.values()], [row.fold for row in rows.values()])
    cases = []
    for sample_id, row in rows.items():
        sample = dataclasses.replace(by_id[sample_id], group_id=row.group)
        cases.append((row.fold, Case(sample, partial(dataset.read, index, sample))))
    fixed = tuple(case for fold, case in cases if fold == FIXED_TEST)
    return [
        Fold(
            number,
            tuple(case for fold, case in cases if fold not in (number, FIXED_TEST)),
            fixed or tuple(case for fold, case in cases if fold == number),
            dataset.classes,
        )
        for number in range(content.folds)
    ]


class Dealt(pydantic.BaseModel):
    """Where a sample was dealt to."""

    model_config = pydantic.ConfigDict(extra="forbid")

    fold: int = pydantic.Field(ge=FIXED_TEST)
    group: str
    label: int | None


class FoldsFile(pydantic.BaseModel):
    """`folds.json`, as `deal` makes it."""

    model_config = pydantic.ConfigDict(extra="forbid")

    dataset: str
    fingerprint: str
    folds: int = pydantic.Field(ge=1)
    protocol: Literal["published", "grouped"]
    warnings: list[str]
    samples: dict[str, Dealt]
