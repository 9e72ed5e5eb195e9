"""What a key names: one result, whatever the order of words, and another one where anything that matters differs."""

from __future__ import annotations

from pathlib import Path

import pytest

from anaus_bench.registry import Registry
from tests.e2e.conftest import Command

PLAN = ("plan", "--preset", "tiny", "--json", "--method", "byol", "--task", "busi-cls")
PLUGIN = """
from anaus_bench.hookspecs import hookimpl
from anaus_plugins.mask_sources.whole import Whole


class Mine(Whole):
    name = "mine"


@hookimpl
def anaus_mask_sources():
    return [Mine]
"""


def keys(command: Command, *words: object) -> dict[str, str]:
    outcome = command(*PLAN, *words)
    assert outcome.code == 0, outcome.err
    return {stage["kind"]: stage["key"] for stage in outcome.data["stages"]}


def test_a_corpus_is_the_same_in_whatever_order_its_data_sets_are_named(command: Command) -> None:
    assert keys(command, "--corpus", "udiat+tn3k") == keys(command, "--corpus", "tn3k+udiat")


def test_a_changed_plugin_file_makes_new_stages(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    cell = ("--method", "anaus", "--masks", "mine", "--plugin", file)

    file.write_text(PLUGIN)
    before = keys(command, *cell)
    file.write_text(PLUGIN + "# changed")
    after = keys(command, *cell)

    assert before["corpus"] == after["corpus"]
    assert before["masks"] != after["masks"]
    assert before["pretrain"] != after["pretrain"]


def test_a_data_set_is_looked_at_once_a_plan(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Registry().get("datasets", "udiat")
    Registry().create("datasets", "udiat").write_phantoms((root := tmp_path / "udiat").mkdir() or root, 8, 64, 0)
    scan, calls = dataset.scan, []
    monkeypatch.setattr(dataset, "scan", lambda self, folder: (calls.append(folder), scan(self, folder))[1])

    keys(command, "--corpus", "udiat", "--data-root", f"udiat={root}", "--method", "anaus", "--masks", "kmeans")

    assert len(calls) == 1


def test_a_folder_that_phantoms_take_the_place_of_is_named(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data" / "busi").mkdir(parents=True)
    monkeypatch.setenv("ANAUS_DATA", str(tmp_path / "data"))

    notes = command(*PLAN).data["notes"]

    assert any("busi: preset tiny generates phantoms" in note and "--data-root busi=" in note for note in notes)
