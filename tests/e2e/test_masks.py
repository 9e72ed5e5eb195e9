"""Masks through the command: what goes wrong, what is counted, and how their scores reach the results."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from tests.e2e.conftest import Command

BUILD = ("masks", "build", "--preset", "tiny", "--corpus", "phantom")

PLUGIN = '''
"""A mask source that forgets that a label map has 256 ids."""

import torch

from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import ImageSource


class Many(ImageSource):
    """Every pixel is a region."""

    name = "many"

    def segment(self, images):
        count, _, height, width = images.shape
        return torch.arange(height * width).view(1, height, width).expand(count, height, width)


@hookimpl
def anaus_mask_sources():
    return [Many]
'''


def test_pairs_without_masks_are_refused_before_anything_runs(command: Command) -> None:
    outcome = command(*BUILD, "--masks", "lpsam", "--set", "masks.pairs=butterfly+phantom")

    assert outcome.code == 2
    assert "'butterfly' of its pairs 'butterfly+phantom' has none; set masks.pairs" in outcome.err
    assert not Path("anaus-store").exists()


def test_more_regions_than_ids_are_refused_from_a_plugin_and_absorbed_by_ours(command: Command) -> None:
    Path("many.py").write_text(PLUGIN)

    refused = command(*BUILD, "--masks", "many", "--plugin", "many.py")
    fine = ("masks.scale=0.01", "masks.min_size=1", "masks.sigma=0")
    speckled = command(*BUILD, "--masks", "felzenszwalb", *(word for one in fine for word in ("--set", one)), "--json")

    assert refused.code == 2
    assert "mask source 'many': segment returned Tensor of torch.int64" in refused.err
    assert "at most 256 regions" in refused.err
    assert speckled.data["scores"]["regions"] == 256
    maps = np.load(Path(speckled.data["folder"]) / "label_maps.npy", mmap_mode="r")
    assert all(len(np.unique(one)) == 256 for one in maps)


def test_images_in_which_nothing_is_found_are_one_region_said_marked_and_counted(command: Command) -> None:
    words = ("--masks", "lpsam", "--set", "masks.threshold=0.99")

    built = command(*BUILD, *words)
    again = command(*BUILD, *words, "--json").data
    scored = command("masks", "score", "--masks", "lpsam", *BUILD[2:], *words[2:])

    assert "lpsam: 24 of 24 images are one region; regions.csv marks them" in built.err
    assert again["scores"]["single_region"] == again["scores"]["regions"] == 1
    assert "Images that are one region, marked in regions.csv: lpsam 24." in scored.out
    with (Path(again["folder"]) / "regions.csv").open(newline="") as file:
        assert {float(row["single_region"]) for row in csv.DictReader(file)} == {1.0}
    assert not np.load(Path(again["folder"]) / "label_maps.npy").any()


def test_real_images_are_not_called_phantoms_because_their_masks_were_learned_on_some(command: Command) -> None:
    Path("scans").mkdir()
    for number in range(4):
        speckle = np.random.default_rng(number).integers(1, 255, (64, 64), dtype=np.uint8)
        Image.fromarray(speckle).save(f"scans/{number}.png")

    sources = ("--masks", "lpsam", "--masks", "grid")
    scored = command("masks", "score", *sources, *BUILD[2:4], "--corpus", "images", "--data-root", "images=scans")

    assert scored.code == 0, scored.err
    assert "[phantom]" not in scored.out
    assert "Fitted on generated phantoms: lpsam." in scored.out


def test_the_scores_of_a_cells_masks_stand_beside_its_metrics(command: Command) -> None:
    cell = ("run", "--preset", "tiny", "--device", "cpu", "--task", "busi-cls")
    whole = command(*cell, "--method", "anaus", "--masks", "whole", "--json").data
    random = command(*cell, "--method", "random", "--json").data

    records = {record["key"]: record for record in command("table", "--json").data}
    table = command("table", "--format", "markdown").out

    assert 0 < whole["mask_scores"]["best_iou"] < whole["mask_scores"]["achievable_accuracy"] < 1
    assert records[whole["key"]]["mask_scores"] == whole["mask_scores"]
    assert records[random["key"]]["mask_scores"] == random["mask_scores"] == {}
    heading, _, *rows = [line.split(" | ") for line in table.splitlines() if line.startswith("|")]
    column = heading.index("mask IoU % ↑")
    assert {row[0]: row[column] for row in rows} == {
        "| anaus": f"{100 * whole['mask_scores']['best_iou']:.1f}",
        "| random": "-",
    }
