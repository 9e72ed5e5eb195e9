"""The damage function of AnaUS, Eq. 6."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from anaus_plugins.objectives.anaus.damage import damage

NOTHING = {"patch": 8, "shuffle": 0.0, "noise": 0.0, "occlusion": 0.0, "seed": 0}


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05


def patches(images: Tensor) -> Tensor:
    return images.unfold(2, 8, 8).unfold(3, 8, 8).reshape(-1, 64)


def test_without_factors_damage_is_the_identity(images: Tensor) -> None:
    assert torch.equal(damage(images, **NOTHING), images)


def test_full_occlusion_is_black(images: Tensor) -> None:
    assert torch.equal(damage(images, **{**NOTHING, "occlusion": 1.0}), torch.zeros_like(images))


def test_full_shuffle_permutes_every_patch_and_keeps_its_intensities(images: Tensor) -> None:
    before, after = patches(images), patches(damage(images, **{**NOTHING, "shuffle": 1.0}))

    assert torch.equal(before.sort(dim=1).values, after.sort(dim=1).values)
    assert (before != after).any(dim=1).all()


def test_noise_has_its_standard_deviation_and_stays_in_range() -> None:
    gray = torch.full((2, 1, 128, 128), 0.5)

    noisy = damage(gray, **{**NOTHING, "noise": 0.1})

    assert (noisy - gray).std().item() == pytest.approx(0.1, rel=0.03)
    assert damage(gray, **{**NOTHING, "noise": 5.0}).min() >= 0


def test_patches_are_hit_with_their_probabilities() -> None:
    images = torch.rand(50, 1, 32, 32) + 0.1

    occluded = patches(damage(images, **{**NOTHING, "occlusion": 0.25}))
    shuffled = patches(damage(images, **{**NOTHING, "shuffle": 0.25}))

    assert (occluded == 0).all(dim=1).float().mean().item() == pytest.approx(0.25, abs=0.05)
    assert (shuffled != patches(images)).any(dim=1).float().mean().item() == pytest.approx(0.25, abs=0.05)


def test_the_input_is_left_untouched_and_the_seed_decides(images: Tensor) -> None:
    everything = {"patch": 8, "shuffle": 0.5, "noise": 0.2, "occlusion": 0.3}
    before = images.clone()

    first, again, other = (damage(images, **everything, seed=seed) for seed in (1, 1, 2))

    assert torch.equal(images, before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
