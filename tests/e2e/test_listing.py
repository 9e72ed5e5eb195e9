"""`list` and `show`: what they say of methods and masks is what a run then does."""

from __future__ import annotations

import pytest

from anaus_bench.registry import Registry
from tests.e2e.conftest import Command

METHODS = Registry().names("objectives")


@pytest.mark.parametrize("method", METHODS)
def test_a_plan_takes_masks_as_the_list_says(command: Command, method: str) -> None:
    (row,) = [row for row in command("list", "methods", "--json").data["methods"] if row["name"] == method]
    cell = ("plan", "--preset", "tiny", "--task", "busi-cls", "--method", method)

    masked = command(*cell, "--masks", "grid")
    bare = command(*cell)

    assert row["masks"] in ("needed", "optional", "none")
    if row["masks"] == "none":
        assert f"objective '{method}' uses no masks; leave --masks grid out" in masked.err
    else:
        assert masked.code == 0, masked.err
    if row["masks"] == "needed":
        assert f"objective '{method}' needs masks; pass --masks" in bare.err
    elif row["corpus must have"] != "not used":  # those may want weights that are not here
        assert bare.code == 0, bare.err


def test_the_list_explains_masks_and_needs(command: Command) -> None:
    outcome = command("list")

    assert "with `none`, --masks is refused" in " ".join(outcome.out.split())
    rows = {row["name"]: row for row in command("list", "masks", "--json").data["masks"]}
    assert rows["groundtruth"]["needs"] == "ground truth"
    assert rows["lpsam"]["needs"] == "a fit"
    assert rows["imported"]["needs"] == "stored label maps"
    assert rows["grid"]["needs"] == ""


@pytest.mark.parametrize("method", METHODS)
def test_a_methods_page_says_what_masks_become_and_what_it_does_without(command: Command, method: str) -> None:
    objective = Registry().create("objectives", method)

    shown = command("show", "method", method)
    page = " ".join(shown.out.split())

    assert shown.code == 0, shown.err
    assert f"masks {objective.takes_masks()}" in page
    for words in (objective.masks_become, *objective.without, *objective.without.values()):
        assert words in page
    assert bool(objective.masks_become) == (objective.takes_masks() != "none")
    for preset, recipe in objective.recipes.items():
        assert f"recipe {preset}:" in page
        assert all(f"pretrain.{name}=" in page for name in recipe)
