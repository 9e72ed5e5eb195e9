from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from anaus_bench.nn.regions import RegionSampler


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def sampler(**values: Any) -> RegionSampler:
    return RegionSampler(strides=(32, 16, 8), num_masks=200, **values)


def views() -> tuple[Tensor, Tensor]:
    """View 1 has ids 0 (half), 1 (3/8), 2 (1/8); view 2 has 0 (3/4), 1 (1/4)."""
    first = torch.zeros(1, 64, 64, dtype=torch.uint8)
    first[:, 32:, :48], first[:, 32:, 48:] = 1, 2
    second = torch.zeros(1, 64, 64, dtype=torch.uint8)
    second[:, :32, :32] = 1
    return first, second


@pytest.mark.parametrize("masks", ["soft", "hard"])
def test_shared_draws_are_ids_of_both_views_by_their_mean_coverage(masks: Any) -> None:
    online, target = sampler(masks=masks).draw_pair(*views(), seeded())

    assert torch.equal(online[0].ids, online[1].ids)
    assert target is online
    assert set(online[0].ids[0].tolist()) == {0, 1}
    share = (online[0].ids == 0).float().mean().item()
    if masks == "soft":
        assert share == pytest.approx(0.625 / 0.9375, abs=0.1)


def test_every_drawn_mask_covers_something_in_its_view() -> None:
    maps = torch.randint(0, 40, (2, 3, 64, 64), generator=seeded(), dtype=torch.uint8)
    for pairing in ("shared", "independent"):
        for masks in ("soft", "hard"):
            networks = sampler(pairing=pairing, masks=masks).draw_pair(maps[0], maps[1], seeded())
            for regions in (*networks[0], *networks[1]):
                assert all((mask.sum(dim=(2, 3)) > 0).all() for mask in regions.masks.values())


def test_independent_draws_differ_by_view_and_network() -> None:
    online, target = sampler(pairing="independent").draw_pair(*views(), seeded())

    assert set(online[0].ids[0].tolist()) == {0, 1, 2}
    assert set(online[1].ids[0].tolist()) == {0, 1}
    assert not torch.equal(online[0].ids, target[0].ids)


def test_uniform_weighting_ignores_the_area() -> None:
    ids = sampler(weighting="uniform").draw(views()[0], seeded()).ids[0]

    assert torch.bincount(ids).min().item() > 45  # 200 draws of three ids


def test_background_is_left_out_only_where_there_is_another_id() -> None:
    first, _ = views()
    maps = torch.cat([first, torch.zeros_like(first)])

    ids = sampler(include_background=False).draw(maps, seeded()).ids

    assert set(ids[0].tolist()) == {1, 2}
    assert set(ids[1].tolist()) == {0}


def test_views_without_a_common_id_fall_back_to_the_whole_view() -> None:
    first, second = views()

    online, _ = sampler().draw_pair(first + 10, second + 20, seeded())

    for regions in online:
        assert set(regions.ids[0].tolist()) == {0}
        assert all((mask == 1).all() for mask in regions.masks.values())


def test_an_id_below_a_thousandth_of_the_view_is_never_drawn() -> None:
    maps = torch.zeros(1, 64, 64, dtype=torch.uint8)
    maps[0, 0, :4] = 5  # 4 of 4096 pixels

    assert set(sampler(weighting="uniform").draw(maps, seeded()).ids[0].tolist()) == {0}


def test_hard_masks_are_zero_or_one_and_split_the_grid() -> None:
    maps = torch.randint(0, 3, (1, 64, 64), generator=seeded(), dtype=torch.uint8)

    for mask in sampler(masks="hard").draw(maps, seeded()).masks.values():
        assert set(mask.unique().tolist()) <= {0.0, 1.0}
