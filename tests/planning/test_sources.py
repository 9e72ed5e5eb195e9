"""What a plan says of the size of its corpora, before anything runs."""

from __future__ import annotations

from typing import Any

import pytest

from anaus_bench.cells.cell import Cell
from anaus_bench.planning.planner import make_plan
from anaus_bench.registry import Registry


def notes(**overrides: Any) -> list[str]:
    """Those of a cell on phantoms that speak of packed images."""
    cell = Cell("byol", "busi-cls", preset="demo", overrides=overrides)
    return [note for note in make_plan(cell, Registry(), {}).notes if "packed" in note]


def test_the_price_of_a_large_corpus_is_said_once() -> None:
    assert notes(phantom={"train": 6000}, corpus={"size": 512}) == [
        "corpus phantom: 6000 images packed at up to 512 pixels are 1.6 GB, and label maps of them as much again; "
        "corpus.size sets the side"
    ]


def test_a_small_corpus_has_no_price() -> None:
    assert notes() == []


@pytest.mark.parametrize(("share", "alike"), [(1.0, True), (0.5, False)])
def test_a_share_is_another_pre_training_of_the_same_corpus(share: float, alike: bool) -> None:
    def keys(**overrides: Any) -> dict[str, str]:
        cell = Cell("byol", "busi-cls", preset="tiny", overrides=overrides)
        return {stage.kind: stage.key for stage in make_plan(cell, Registry(), {}).stages}

    whole, part = keys(), keys(corpus={"share": share})

    assert part["corpus"] == whole["corpus"]
    assert (part["pretrain"] == whole["pretrain"]) == alike
