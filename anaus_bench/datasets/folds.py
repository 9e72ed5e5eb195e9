"""Folds that never split a group: stratified, seeded, the same for every method."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from anaus_bench.errors import CountMismatch, LeakageError


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
