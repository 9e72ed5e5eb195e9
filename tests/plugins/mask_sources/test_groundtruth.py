"""The oracle mask source, and the label-map operations it shares with LP-SAM."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from anaus_bench.corpus.label_maps import contiguous, split_components
from anaus_bench.errors import MissingMask
from anaus_bench.kit.synthetic import synthetic_corpus
from anaus_plugins.mask_sources.groundtruth import GroundTruth, GroundTruthSettings

TRUTH = torch.tensor(
    [
        [0, 2, 2, 0, 5],
        [2, 0, 0, 0, 5],
        [0, 0, 2, 0, 5],
    ],
    dtype=torch.uint8,
)[None]
IMAGES = torch.zeros(1, 1, 3, 5, dtype=torch.uint8)


def test_each_connected_part_of_a_structure_is_a_region_the_larger_first() -> None:
    maps = GroundTruth(GroundTruthSettings()).segment(IMAGES, TRUTH)

    # Three pixels of structure 2 touch by their corners; the tie with structure 5 goes to the first in raster order.
    assert maps.tolist() == [[[0, 1, 1, 0, 2], [1, 0, 0, 0, 2], [0, 0, 3, 0, 2]]]
    assert maps.dtype == torch.uint8


def test_without_components_the_structures_are_kept_and_made_contiguous() -> None:
    maps = GroundTruth(GroundTruthSettings(components=False)).segment(IMAGES, TRUTH)

    assert maps.tolist() == [[[0, 1, 1, 0, 2], [1, 0, 0, 0, 2], [0, 0, 1, 0, 2]]]


def test_a_corpus_without_masks_is_refused() -> None:
    bare = dataclasses.replace(synthetic_corpus(2), truth=None)

    with pytest.raises(MissingMask, match="'groundtruth' needs ground truth; this corpus has no masks"):
        GroundTruth(GroundTruthSettings()).check(bare)


def test_maps_do_not_depend_on_the_batch_and_cover_every_pixel() -> None:
    truth = torch.from_numpy(np.random.default_rng(0).integers(0, 3, (4, 16, 16)).astype(np.uint8))
    images = torch.zeros(4, 1, 16, 16, dtype=torch.uint8)
    source = GroundTruth(GroundTruthSettings())

    maps = source.segment(images, truth)

    alone = [source.segment(images[i : i + 1], truth[i : i + 1]) for i in range(4)]
    assert torch.equal(maps, torch.cat(alone))
    for one in maps:
        assert one.unique().tolist() == list(range(int(one.max()) + 1))


def test_small_components_and_those_beyond_the_most_become_background() -> None:
    ids = np.zeros((10, 10), np.uint8)
    ids[0, :5], ids[2, :4], ids[4, :3], ids[6, 0] = 1, 1, 2, 3

    regions = split_components(ids, min_area=2, most=2)

    assert np.bincount(regions.ravel()).tolist() == [91, 5, 4]


def test_ids_start_from_zero_where_there_is_no_background() -> None:
    full = np.array([[3, 3, 7]], np.uint8)

    assert split_components(full, min_area=1, most=15).tolist() == [[0, 0, 1]]
    assert contiguous(full).tolist() == [[0, 0, 1]]
    assert split_components(np.zeros((2, 2), np.uint8), min_area=1, most=15).tolist() == [[0, 0], [0, 0]]


def test_more_components_than_an_id_can_name_keep_the_largest() -> None:
    ids = np.zeros((64, 64), np.uint8)
    ids[::2, ::2] = 1  # 1024 single pixels
    ids[0, :2] = 1

    regions = split_components(ids, min_area=1, most=255)

    assert regions.max() == 255
    assert (regions == 1).sum() >= 2
