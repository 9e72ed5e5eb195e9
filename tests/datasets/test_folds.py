from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anaus_bench.datasets.folds import check_folds, make_folds
from anaus_bench.errors import CountMismatch, LeakageError

GROUPS = [f"patient{number // 3}" for number in range(90)]
LABELS = [int(number // 3 % 3 == 0) for number in range(90)]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.sampled_from([None, 0, 1])), min_size=30), st.integers(0, 5))
def test_no_group_stands_in_two_folds_and_every_image_in_one(rows: list[tuple[int, int | None]], seed: int) -> None:
    groups = [f"g{group}" for group, _ in rows]
    if len(set(groups)) < 4:
        return

    folds = make_folds(groups, [label for _, label in rows], 4, seed)

    assert len(folds) == len(groups)
    assert set(folds) <= {0, 1, 2, 3}
    check_folds(groups, folds)


def test_classes_are_balanced_over_folds() -> None:
    folds = make_folds(GROUPS, LABELS, 5, 0)

    sizes = Counter(zip(folds, LABELS, strict=True))
    assert {sizes[fold, 1] for fold in range(5)} == {6}
    assert {sizes[fold, 0] for fold in range(5)} == {12}


def test_a_seed_gives_the_same_folds_and_another_gives_others() -> None:
    assert make_folds(GROUPS, LABELS, 5, 0) == make_folds(GROUPS, LABELS, 5, 0)
    assert make_folds(GROUPS, LABELS, 5, 0) != make_folds(GROUPS, LABELS, 5, 1)


def test_too_few_groups_are_refused() -> None:
    with pytest.raises(CountMismatch, match="6 images in 2 groups cannot make 5 folds"):
        make_folds(["a", "b"] * 3, [None] * 6, 5, 0)


def test_a_split_group_is_named() -> None:
    with pytest.raises(LeakageError, match="group 'b' stands in folds 1 and 0"):
        check_folds(["a", "b", "b"], [0, 1, 0])
