from __future__ import annotations

import pytest
import torch
from torch import Tensor

from anaus_bench.corpus.draw import draw_crops, overlap_box
from anaus_bench.corpus.view import Crop, View
from anaus_plugins.objectives.slotcon.alignment import align, box_in_view


def crop(*box: float, flip: bool = False) -> Crop:
    return Crop(torch.tensor([box]), torch.tensor([flip]))


def ramp(crops: Crop, side: int) -> Tensor:
    """(B, 2, side, side): the source row and column of each cell's centre, as a view's features would know them."""
    maps = []
    for (top, left, height, width), flip in zip(crops.box.tolist(), crops.flip.tolist(), strict=True):
        centres = (torch.arange(side) + 0.5) / side
        rows, columns = top + height * centres, left + width * centres
        maps.append(torch.stack(torch.meshgrid(rows, columns.flip(0) if flip else columns, indexing="ij")))
    return torch.stack(maps)


def test_a_box_in_a_view_is_given_in_fractions_from_the_left_and_the_top() -> None:
    box = torch.tensor([[20.0, 30.0, 10.0, 20.0]])

    assert box_in_view(box, crop(10, 20, 40, 80))[0].tolist() == pytest.approx([0.125, 0.25, 0.375, 0.5])
    assert box_in_view(box, crop(10, 20, 40, 80, flip=True))[0].tolist() == pytest.approx([0.625, 0.25, 0.875, 0.5])


@pytest.mark.parametrize("flip", [False, True])
def test_aligning_a_view_to_itself_only_undoes_its_flip(flip: bool) -> None:
    maps = torch.randn(1, 3, 7, 7)

    aligned = align(maps, crop(5, 6, 50, 70, flip=flip), torch.tensor([[5.0, 6.0, 50.0, 70.0]]))

    assert torch.allclose(aligned, maps.flip(3) if flip else maps, atol=1e-5)


def test_aligned_views_show_the_same_pixels_at_the_same_place() -> None:
    generator = torch.Generator().manual_seed(0)
    recipe, boxes = View(crop_area=(0.5, 1.0)), torch.tensor([[0.0, 0.0, 200.0, 200.0]]).repeat(16, 1)
    first, second = draw_crops(recipe, boxes, generator), draw_crops(recipe, boxes, generator)
    box = overlap_box(first, second)
    assert (box[:, 2:] > 0).all()
    assert first.flip.any() and not first.flip.all()

    aligned = [align(ramp(crops, 28), crops, box) for crops in (first, second)]

    expected = ramp(Crop(box, torch.zeros(16, dtype=torch.bool)), 28)
    inside = slice(2, -2)  # at the border of a view there is nothing to interpolate from
    for maps in aligned:
        assert torch.allclose(maps[..., inside, inside], expected[..., inside, inside], atol=1e-2)


def test_gradients_flow_through_the_alignment() -> None:
    maps = torch.randn(1, 2, 4, 4, requires_grad=True)

    align(maps, crop(0, 0, 40, 40), torch.tensor([[10.0, 10.0, 20.0, 20.0]])).sum().backward()

    assert maps.grad is not None
    assert maps.grad.abs().sum() > 0
