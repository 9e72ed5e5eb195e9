"""Felzenszwalb, SLIC, grid and whole image, and what they share: partitions and painted proposals as label maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from anaus_bench.corpus.label_maps import label_by_area, paint_proposals, picture_box
from anaus_bench.interfaces import ImageSource
from anaus_bench.settings.base import resolve
from anaus_plugins.mask_sources.felzenszwalb import Felzenszwalb
from anaus_plugins.mask_sources.grid import Grid
from anaus_plugins.mask_sources.mcg import MCG
from anaus_plugins.mask_sources.slic import SLIC
from anaus_plugins.mask_sources.whole import Whole

PARTITIONS = [Felzenszwalb, SLIC, Grid, Whole, MCG]
Make = Callable[..., ImageSource[Any]]


def make(cls: type[ImageSource[Any]], **values: Any) -> ImageSource[Any]:
    if cls is MCG:
        pytest.importorskip("higra", reason="needs the package higra")
    return cls(resolve(cls.settings_class, "masks", overrides=values))


def squares(height: int = 64, width: int = 96) -> Tensor:
    """Speckled images (2, 1, H, W): a dark square in bright tissue."""
    speckle = torch.rand(2, 1, height, width, generator=torch.Generator().manual_seed(0))
    tissue = torch.full((height, width), 170.0)
    tissue[16:48, 16:48] = 40.0
    return (tissue + 20 * speckle).to(torch.uint8)


def ids_of(label_map: Tensor) -> list[int]:
    return [int(value) for value in label_map.unique()]


@pytest.mark.parametrize("cls", PARTITIONS)
def test_every_pixel_has_one_of_contiguous_ids_and_twice_gives_the_same(cls: type[ImageSource[Any]]) -> None:
    images = squares()

    first, second = make(cls).segment(images), make(cls).segment(images)

    assert first.shape == (2, 64, 96)
    assert first.dtype == torch.uint8
    assert torch.equal(first, second)
    for label_map in first:
        assert ids_of(label_map) == list(range(int(label_map.max()) + 1))


@pytest.mark.parametrize("cls", PARTITIONS)
def test_an_image_alone_is_segmented_as_in_a_batch(cls: type[ImageSource[Any]]) -> None:
    images = squares()

    assert torch.equal(make(cls).segment(images)[1:], make(cls).segment(images[1:]))


@pytest.mark.parametrize("cls", PARTITIONS)
def test_an_empty_batch_gives_no_label_maps(cls: type[ImageSource[Any]]) -> None:
    assert make(cls).segment(squares()[:0]).shape == (0, 64, 96)


@pytest.mark.parametrize("cls", [Felzenszwalb, MCG, Whole])
@pytest.mark.parametrize("value", [0, 77, 255])
def test_a_constant_image_is_one_region(cls: type[ImageSource[Any]], value: int) -> None:
    assert ids_of(make(cls).segment(torch.full((1, 1, 32, 48), value, dtype=torch.uint8))) == [0]


@pytest.mark.parametrize("cls", PARTITIONS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 2)])
def test_tiny_pictures_are_segmented(cls: type[ImageSource[Any]], shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(1, 255, (1, 1, *shape), generator=generator, dtype=torch.uint8)

    label_map = make(cls).segment(images)[0]

    assert ids_of(label_map) == list(range(int(label_map.max()) + 1))


@pytest.mark.parametrize("cls", [Felzenszwalb, MCG])
def test_the_dark_square_is_recovered(cls: type[ImageSource[Any]]) -> None:
    settings = {"scale": 20000.0} if cls is Felzenszwalb else {"regions": 2}
    square = torch.zeros(64, 96, dtype=torch.bool)
    square[16:48, 16:48] = True

    label_map = make(cls, **settings).segment(squares())[0]

    ious = [((label_map == k) & square).sum() / ((label_map == k) | square).sum() for k in ids_of(label_map)]
    assert max(ious) > 0.85


@pytest.mark.parametrize("cls", [Felzenszwalb, SLIC, Grid, MCG])
def test_black_margins_are_one_region_and_do_not_move_the_others(cls: type[ImageSource[Any]]) -> None:
    pictures = squares()
    letterboxed = torch.zeros(2, 1, 96, 96, dtype=torch.uint8)
    letterboxed[:, :, 16:80] = pictures

    inside = make(cls).segment(letterboxed)[:, 16:80]
    alone = make(cls).segment(pictures)

    margins = make(cls).segment(letterboxed)[0].clone()
    assert len(margins[:16].unique()) == 1
    assert torch.equal(margins[:16], margins[80:])
    assert margins[0, 0] not in inside[0]
    for with_margins, without in zip(inside, alone, strict=True):
        pairs = set(zip(with_margins.flatten().tolist(), without.flatten().tolist(), strict=True))
        assert len(pairs) == len(with_margins.unique()) == len(without.unique())


def test_felzenszwalb_respects_its_least_size_in_pixels_of_a_512_picture() -> None:
    areas = torch.bincount(make(Felzenszwalb, scale=1.0).segment(squares(128, 128))[0].flatten().int())

    assert len(areas) > 2
    assert areas.min() >= 1000 * (128 / 512) ** 2 - 1


def test_slic_gives_about_the_number_of_superpixels_asked_for() -> None:
    count = len(make(SLIC, n_segments=60).segment(squares())[0].unique())

    assert 30 <= count <= 90


def test_grid_cells_differ_by_at_most_one_pixel_along_each_side() -> None:
    label_map = make(Grid, cells=3).segment(torch.ones(1, 1, 10, 11, dtype=torch.uint8))[0]

    assert ids_of(label_map) == list(range(9))
    for k in range(9):
        rows, columns = (label_map == k).nonzero(as_tuple=True)
        height, width = (len(axis.unique()) for axis in (rows, columns))
        assert height in (3, 4)
        assert width in (3, 4)
        assert (label_map == k).sum() == height * width


def test_whole_is_all_zero() -> None:
    assert not make(Whole).segment(squares()).any()


# ---- label maps ------------------------------------------------------------------------------------------------------


def test_ids_are_by_decreasing_area() -> None:
    partition = np.array([[7, 7, 7, 2], [7, 9, 9, 2]])

    assert label_by_area(partition).tolist() == [[0, 0, 0, 1], [0, 2, 2, 1]]


def test_more_regions_than_ids_join_the_nearest_of_the_largest() -> None:
    partition = np.arange(400).reshape(20, 20)
    partition[:5] = 1000

    label_map = label_by_area(partition)

    assert sorted(np.unique(label_map)) == list(range(256))
    assert (label_map[:5] == 0).all()
    # The first 255 single pixels in order of their old ids are kept; the row below takes over the pixel above it.
    assert label_map[17, 14] == 255
    assert (label_map[18, :15] == label_map[17, :15]).all()


def test_the_picture_box_leaves_out_black_margins_only() -> None:
    image = np.zeros((6, 8), dtype=np.uint8)
    image[1, 2], image[4, 6] = 1, 1

    assert picture_box(image) == (slice(1, 5), slice(2, 7))
    assert picture_box(np.zeros((6, 8), dtype=np.uint8)) == (slice(0, 6), slice(0, 8))


def test_smaller_proposals_are_painted_over_larger_ones() -> None:
    masks = np.zeros((2, 20, 20), dtype=bool)
    masks[0, 8:12, 8:12] = True
    masks[1, 4:16, 4:16] = True

    label_map = paint_proposals(masks, np.array([0.1, 0.9]))

    assert label_map[0, 0] == 0
    assert label_map[4, 4] == 1
    assert label_map[9, 9] == 2


def test_the_best_scores_are_kept_within_the_limits_of_size() -> None:
    masks = np.zeros((5, 40, 40), dtype=bool)
    masks[0, :5, :5] = masks[1, :5, 10:15] = masks[2, :5, 20:25] = True
    masks[3, 30, 30] = True  # below 0.1 %
    masks[4] = True  # above 95 %

    label_map = paint_proposals(masks, np.array([0.2, 0.9, 0.5, 1.0, 1.0]), max_regions=2)

    assert (label_map[:5, :5] == 0).all()
    assert set(np.unique(label_map)) == {0, 1, 2}
    assert label_map[0, 10] != label_map[0, 20]
    assert label_map[30, 30] == 0


def test_a_proposal_that_is_painted_over_is_deleted() -> None:
    masks = np.zeros((3, 20, 20), dtype=bool)
    masks[0, :4, :10] = True
    masks[1, :4, :5] = True
    masks[2, :4, 5:10] = True

    assert set(np.unique(paint_proposals(masks, np.ones(3)))) == {0, 1, 2}


def test_without_proposals_the_whole_image_has_id_0() -> None:
    assert not paint_proposals(np.zeros((0, 8, 8), dtype=bool), np.zeros(0)).any()


def test_ids_start_at_0_where_proposals_cover_everything() -> None:
    masks = np.zeros((2, 10, 10), dtype=bool)
    masks[0, :6], masks[1, 6:] = True, True

    assert np.unique(paint_proposals(masks, np.ones(2))).tolist() == [0, 1]
