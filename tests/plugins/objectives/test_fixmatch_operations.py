"""FixMatch's shift, RandAugment and cutout against what PIL and torchvision do to single images."""

from __future__ import annotations

import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from anaus_plugins.objectives.fixmatch.operations import CUTOUT_GRAY, POOL, CutOut, RandAugment, Translate

NAMES = [change.__name__.lstrip("_") for change in POOL]


@pytest.fixture
def images() -> Tensor:
    levels = torch.randint(20, 230, (3, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    return levels.float() / 255


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def operate(images: Tensor, name: str, magnitude: float, sign: float = 1.0) -> Tensor:
    return RandAugment(1).apply(images, torch.tensor([[[NAMES.index(name), magnitude, sign]]] * len(images)))


def as_pil(image: Tensor) -> Image.Image:
    return Image.fromarray((image[0] * 255).round().byte().numpy())


def levels(image: Tensor | Image.Image) -> Tensor:
    if isinstance(image, Image.Image):
        return transforms.pil_to_tensor(image)[0].int()
    return (image[0] * 255).round().int()


def test_a_shift_reflects_what_comes_in_at_the_border(images: Tensor) -> None:
    shift = torch.tensor([[0, 0], [3, -2], [-4, 4]])

    shifted = Translate(0.125).apply(images, shift)

    for image, moved, (down, right) in zip(images, shifted, shift.tolist(), strict=True):
        padded = torch.nn.functional.pad(image, [4] * 4, mode="reflect")
        assert torch.equal(moved, padded[:, 4 - down : 36 - down, 4 - right : 36 - right])


def test_a_cutout_is_a_gray_square_that_may_reach_over_the_border(images: Tensor) -> None:
    hole = torch.tensor([[4, 6, 20, 22], [-8, 24, 8, 40], [31, 31, 47, 47]])

    cut = CutOut(0.5).apply(images, hole)

    changed = (cut != images).sum(dim=(1, 2, 3))
    assert changed.tolist() == pytest.approx([256, 64, 1], abs=5)  # a pixel may have been of that gray
    assert torch.allclose(cut[0, 0, 4:20, 6:22], torch.full((16, 16), CUTOUT_GRAY))
    assert torch.equal(cut[1, 0, 8:], images[1, 0, 8:])


def test_shifts_and_squares_keep_to_their_shares_of_the_side() -> None:
    shift = Translate(0.125).draw(500, seeded(), 64)
    hole = CutOut(0.5).draw(500, seeded(), 64)

    assert (shift.min(), shift.max()) == (-8, 8)
    assert (hole[:, 2:] - hole[:, :2] == 32).all()
    assert (hole[:, 0].min(), hole[:, 0].max()) == (-16, 47)


def test_operations_are_drawn_evenly_and_every_second_is_applied() -> None:
    place, magnitude, sign = RandAugment(2).draw(20000, seeded(), 64).unbind(dim=2)

    shares = torch.bincount(place.flatten().long(), minlength=len(POOL)) / place.numel()
    expected = torch.full((len(POOL),), 0.5 / len(POOL))
    expected[0] += 0.5
    assert place.shape == (20000, 2)
    assert torch.allclose(shares, expected, atol=0.005)
    assert magnitude.min() >= 0 and magnitude.max() < 1
    assert set(sign.flatten().tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("name", NAMES)
def test_an_operation_stays_in_range_and_touches_only_its_images(images: Tensor, name: str) -> None:
    places = (0, NAMES.index(name), 0)
    changed = RandAugment(1).apply(images, torch.tensor([[[place, 0.7, 1.0]] for place in places]))

    assert torch.equal(changed[[0, 2]], images[[0, 2]])
    assert changed.shape == images.shape
    assert changed.min() >= 0 and changed.max() <= 1
    assert torch.equal(changed[1], images[1]) == (name == "identity")


@pytest.mark.parametrize("magnitude", [0.0, 0.4, 0.99])
def test_photometric_operations_equal_pils(images: Tensor, magnitude: float) -> None:
    factor = 0.05 + 0.9 * magnitude
    bits = 4 + int(4 * magnitude)
    for image in images:
        pil = as_pil(image)
        expected = {
            "brightness": ImageEnhance.Brightness(pil).enhance(factor),
            "contrast": ImageEnhance.Contrast(pil).enhance(factor),
            "sharpness": ImageEnhance.Sharpness(pil).enhance(factor),
            "posterise": ImageOps.posterize(pil, bits),
            "equalise": ImageOps.equalize(pil),
            "autocontrast": ImageOps.autocontrast(pil),
        }
        for name, result in expected.items():
            found = operate(image[None], name, magnitude)[0]
            tolerance = 0 if name in ("posterise", "equalise") else 2  # PIL works on whole levels
            assert (levels(found) - levels(result)).abs().max() <= tolerance, name


def test_solarisation_inverts_from_its_threshold_on(images: Tensor) -> None:
    changed = operate(images, "solarise", 0.5)

    assert torch.equal(changed, torch.where(images >= 0.5, 1 - images, images))


def test_geometric_operations_equal_torchvisions(images: Tensor) -> None:
    def affine(**values: object) -> Tensor:
        arguments = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0], "center": None} | values
        bilinear = InterpolationMode.BILINEAR
        return transforms.affine(images, interpolation=bilinear, **arguments)  # type: ignore[arg-type]

    for sign in (-1.0, 1.0):
        turned = operate(images, "rotate", 0.5, sign)
        assert any(torch.allclose(turned, affine(angle=angle), atol=1e-4) for angle in (-15.0, 15.0))
    # The operations name where a pixel comes from, so that a positive amount moves the content back.
    assert torch.allclose(operate(images, "translate_x", 5 / 32 / 0.3), affine(translate=[-5, 0]), atol=1e-4)
    assert torch.allclose(operate(images, "translate_y", 5 / 32 / 0.3, -1.0), affine(translate=[0, 5]), atol=1e-4)


def test_shears_move_rows_and_columns_in_proportion_to_their_distance_from_the_centre() -> None:
    line = torch.zeros(1, 1, 33, 33)
    line[..., 16] = 1.0

    along_rows = operate(line, "shear_x", 0.5)  # slope 0.15
    along_columns = operate(line.transpose(2, 3), "shear_y", 0.5)

    place = torch.arange(33.0)
    centres = (along_rows[0, 0] * place).sum(dim=1) / along_rows[0, 0].sum(dim=1)
    assert torch.allclose(centres, 16 - 0.15 * (place - 16), atol=1e-3)
    assert torch.allclose(along_columns, along_rows.transpose(2, 3), atol=1e-5)
