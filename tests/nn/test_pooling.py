from __future__ import annotations

import pytest
import torch
from torch import Tensor

from anaus_bench.nn.pooling import coverage, draw_ids, embedding_spread, grid_masks, majority, mask_pool, soft_masks


@pytest.fixture
def label_maps() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 4, (3, 16, 16), generator=generator, dtype=torch.uint8)
    coarse[coarse == 3] = 200
    return coarse.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)  # (3, 32, 32)


def test_coverage_counts_the_pixels_of_each_id(label_maps: Tensor) -> None:
    shares = coverage(label_maps)

    assert shares.shape == (3, 256)
    assert torch.allclose(shares.sum(dim=1), torch.ones(3))
    for image, row in zip(label_maps, shares, strict=True):
        for number in range(256):
            assert row[number].item() == (image == number).sum().item() / image.numel()


def test_soft_masks_are_the_share_of_each_cell(label_maps: Tensor) -> None:
    ids = torch.tensor([[0, 1, 1, 200], [2, 2, 2, 7], [200, 0, 200, 1]])

    masks = soft_masks(label_maps, ids, (8, 4, 1))

    for size, grid in masks.items():
        cell = 32 // size
        for image in range(3):
            for mask, number in zip(grid[image], ids[image], strict=True):
                for row in range(size):
                    for column in range(size):
                        block = label_maps[image, row * cell : (row + 1) * cell, column * cell : (column + 1) * cell]
                        assert mask[row, column].item() == (block == number).sum().item() / cell**2


def test_coverage_of_a_soft_mask_is_the_same_at_all_sizes(label_maps: Tensor) -> None:
    ids = torch.tensor([[0, 1, 2, 200]] * 3)

    means = [grid.mean(dim=(2, 3)) for grid in soft_masks(label_maps, ids, (1, 4, 8, 16)).values()]

    for mean in means:
        assert torch.equal(mean, coverage(label_maps).gather(1, ids))


def test_majority_is_the_id_with_most_pixels_of_a_cell(label_maps: Tensor) -> None:
    winners = majority(label_maps, 4)

    for image in range(3):
        for row in range(4):
            for column in range(4):
                block = label_maps[image, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8]
                assert winners[image, row, column] == torch.bincount(block.flatten().long()).argmax()


def test_draws_follow_the_weights_and_never_give_an_id_of_weight_zero() -> None:
    weights = torch.zeros(2, 256)
    weights[0, [3, 9]] = torch.tensor([0.25, 0.75])
    weights[1, 255] = 1e-3

    ids = draw_ids(weights, 20_000, torch.Generator().manual_seed(0))

    assert set(ids[0].tolist()) == {3, 9}
    assert (ids[0] == 9).float().mean().item() == pytest.approx(0.75, abs=0.02)
    assert set(ids[1].tolist()) == {255}


def test_pooling_is_equation_4_written_as_a_loop() -> None:
    torch.manual_seed(0)
    features, masks = torch.randn(2, 5, 3, 4), torch.rand(2, 3, 3, 4)
    masks[0, 1] = 0

    pooled = mask_pool(features, masks)

    for image in range(2):
        for k in range(3):
            total, area = torch.zeros(5), 0.0
            for row in range(3):
                for column in range(4):
                    total += masks[image, k, row, column] * features[image, :, row, column]
                    area += masks[image, k, row, column].item()
            assert torch.allclose(pooled[image, k], total / max(area, 1e-6), atol=1e-5)


def test_pooling_a_constant_map_returns_the_constant() -> None:
    masks = torch.rand(2, 3, 7, 7) + 0.01

    assert torch.allclose(mask_pool(torch.full((2, 5, 7, 7), 2.5), masks), torch.tensor(2.5))


def test_cells_of_a_grid_share_the_map_equally_even_where_cells_are_split() -> None:
    masks = grid_masks(4, 224, (7, 14), torch.device("cpu"))

    assert masks[7].shape == (1, 16, 7, 7)
    for grid in masks.values():
        assert torch.allclose(grid.sum(dim=1), torch.tensor(1.0))
        assert torch.allclose(grid.mean(dim=(2, 3)), torch.tensor(1 / 16))
    assert masks[7][0, 0, 0].tolist() == [1, 0.75, 0, 0, 0, 0, 0]  # a cell is 1.75 wide


def test_spread_is_zero_for_collapsed_and_one_over_root_d_for_uniform_embeddings() -> None:
    torch.manual_seed(0)

    assert embedding_spread(torch.ones(8, 4, 16)).item() == pytest.approx(0, abs=1e-6)
    assert embedding_spread(torch.randn(2000, 64)).item() == pytest.approx(1 / 8, rel=0.02)
