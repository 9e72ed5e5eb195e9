from __future__ import annotations

import pytest
import torch
from torch import nn

from anaus_bench.nn.momentum import frozen_copy, momentum_schedule, momentum_update


@pytest.fixture
def online() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def moved(online: nn.Sequential) -> nn.Sequential:
    with torch.no_grad():
        for parameter in online.parameters():
            parameter.add_(torch.randn_like(parameter))
    return online


def test_a_frozen_copy_starts_equal_takes_no_gradient_and_stays_in_training_mode(online: nn.Sequential) -> None:
    target = frozen_copy(online)

    assert all(torch.equal(a, b) for a, b in zip(target.parameters(), online.parameters(), strict=True))
    assert not any(parameter.requires_grad for parameter in target.parameters())
    assert all(parameter.requires_grad for parameter in online.parameters())
    assert target.training


def test_the_update_is_the_moving_average_of_each_parameter(online: nn.Sequential) -> None:
    target = frozen_copy(online)
    moved(online)
    expected = [0.9 * a + 0.1 * b for a, b in zip(target.parameters(), online.parameters(), strict=True)]

    momentum_update(target, online, 0.9)

    assert all(torch.allclose(a, b) for a, b in zip(target.parameters(), expected, strict=True))


def test_momentum_one_leaves_the_target_and_zero_copies_the_online_network(online: nn.Sequential) -> None:
    target = frozen_copy(online)
    before = [parameter.clone() for parameter in target.parameters()]
    moved(online)

    momentum_update(target, online, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(target.parameters(), before, strict=True))
    momentum_update(target, online, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(target.parameters(), online.parameters(), strict=True))


def test_running_statistics_are_not_averaged(online: nn.Sequential) -> None:
    target = frozen_copy(online)
    online(torch.randn(8, 3))

    momentum_update(target, online, 0.5)

    assert torch.equal(target[1].running_mean, torch.zeros(4))


def test_the_schedule_rises_from_the_base_to_one_along_a_half_cosine() -> None:
    assert momentum_schedule(0.99, 0.0) == pytest.approx(0.99)
    assert momentum_schedule(0.99, 0.5) == pytest.approx(0.995)
    assert momentum_schedule(0.99, 1.0) == 1.0
