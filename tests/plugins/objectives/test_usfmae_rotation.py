"""Rotation of batches, against torchvision's of single images."""

from __future__ import annotations

import pytest
import torch
import torchvision.transforms.v2.functional as tv

from anaus_plugins.objectives.usfmae.rotation import rotate


def test_each_image_is_turned_as_torchvision_turns_it_alone() -> None:
    images = torch.rand(4, 3, 33, 33, generator=torch.Generator().manual_seed(0))
    degrees, fill = torch.tensor([0.0, 20.0, 90.0, -61.0]), torch.tensor([-2.0, 0.5, 3.0])

    found = rotate(images, degrees, fill)

    for image, angle, turned in zip(images, degrees.tolist(), found, strict=True):
        expected = tv.rotate(image, angle, interpolation=tv.InterpolationMode.BILINEAR, fill=fill.tolist())
        inner = tv.rotate(torch.ones(1, 33, 33), angle, interpolation=tv.InterpolationMode.BILINEAR)[0] > 0.999
        assert inner.float().mean() > 0.6
        torch.testing.assert_close(turned[:, inner], expected[:, inner], atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [8, 9])
def test_a_quarter_turn_is_exact_and_counter_clockwise(size: int) -> None:
    images = torch.rand(1, 1, size, size)

    turned = rotate(images, torch.tensor([90.0]), torch.zeros(1))

    torch.testing.assert_close(turned, images.rot90(1, (2, 3)), atol=1e-5, rtol=0)


def test_what_comes_in_from_outside_is_the_fill() -> None:
    turned = rotate(torch.ones(1, 2, 16, 16), torch.tensor([45.0]), torch.tensor([-3.0, 5.0]))

    torch.testing.assert_close(turned[0, :, 0, 0], torch.tensor([-3.0, 5.0]))
