"""Operations of the views that only some objectives use: square crops, shift, gamma, RandAugment, cutout."""

from __future__ import annotations

import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from anaus_bench.corpus.batch import make_batch
from anaus_bench.corpus.draw import draw_crops, draw_photometry, overlap_box
from anaus_bench.corpus.pixels import CUTOUT_GRAY, photometric
from anaus_bench.corpus.randaugment import OPERATIONS, Operations, apply_operations, draw_operations
from anaus_bench.corpus.view import Photometry, View

NAMES = [operation.__name__.lstrip("_") for operation in OPERATIONS]


@pytest.fixture
def images() -> Tensor:
    levels = torch.randint(20, 230, (3, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    return levels.float() / 255


def neutral(count: int, **extra: Tensor | Operations) -> Photometry:
    one, no = torch.ones(count), torch.zeros(count, dtype=torch.bool)
    return Photometry(one, one, no, torch.zeros(count), no, **extra)  # type: ignore[arg-type]


def operate(images: Tensor, name: str, magnitude: float, sign: float = 1.0) -> Tensor:
    shape = (1, len(images))
    kind = torch.full(shape, NAMES.index(name))
    return apply_operations(images, Operations(kind, torch.full(shape, magnitude), torch.full(shape, sign)))


def as_pil(image: Tensor) -> Image.Image:
    return Image.fromarray((image[0] * 255).round().byte().numpy())


def levels(image: Tensor | Image.Image) -> Tensor:
    if isinstance(image, Image.Image):
        return transforms.pil_to_tensor(image)[0].int()
    return (image[0] * 255).round().int()


def test_a_square_crop_has_the_shorter_side_and_every_place() -> None:
    boxes = torch.tensor([[4.0, 0.0, 24.0, 32.0]]).repeat(300, 1)

    crop = draw_crops(View(32, square=True, flip=0.0), boxes, torch.Generator().manual_seed(0))

    assert set(crop.box[:, 2:].flatten().tolist()) == {24.0}
    assert set(crop.box[:, 0].tolist()) == {4.0}
    assert set(crop.box[:, 1].tolist()) == {float(left) for left in range(9)}


def test_crops_that_hardly_overlap_the_first_are_drawn_again_and_the_others_are_kept() -> None:
    count, least = 400, 0.3
    boxes = torch.tensor([[0.0, 0.0, 64.0, 64.0]]).repeat(count, 1)
    corpus = torch.zeros(count, 64, 64, dtype=torch.uint8), None, boxes, torch.zeros(count, dtype=torch.long)

    def crops(overlap: float) -> tuple[Tensor, Tensor, Tensor]:
        recipes = (View(8, (0.1, 0.3)), View(8, (0.1, 0.3), overlap=overlap))
        first, second = make_batch(*corpus, torch.arange(count), recipes, 0, 0).crops
        shared = overlap_box(first, second)[:, 2:].clamp(min=0).prod(dim=1)
        return first.box, second.box, shared / second.box[:, 2:].prod(dim=1)

    first, second, shares = crops(0.0)
    again_first, again, better = crops(least)

    assert torch.equal(first, again_first)
    assert torch.equal(again[shares > least + 1e-4], second[shares > least + 1e-4])
    assert (shares >= least).float().mean() < 0.7
    assert (better >= least).float().mean() > 0.95  # ten draws are not always enough


def test_a_shift_reflects_what_comes_in_at_the_border(images: Tensor) -> None:
    shift = torch.tensor([[0, 0], [3, -2], [-4, 4]])

    shifted = photometric(images, neutral(3, shift=shift))

    for image, moved, (down, right) in zip(images, shifted, shift.tolist(), strict=True):
        padded = torch.nn.functional.pad(image, [4] * 4, mode="reflect")
        assert torch.equal(moved, padded[:, 4 - down : 36 - down, 4 - right : 36 - right])


def test_gamma_is_an_exponent(images: Tensor) -> None:
    gamma = torch.tensor([0.75, 1.0, 1.25])

    changed = photometric(images, neutral(3, gamma=gamma))

    assert torch.allclose(changed, images ** gamma[:, None, None, None])


def test_a_cutout_is_a_gray_square_that_may_reach_over_the_border(images: Tensor) -> None:
    hole = torch.tensor([[4, 6, 20, 22], [-8, 24, 8, 40], [31, 31, 47, 47]])

    cut = photometric(images, neutral(3, hole=hole))

    changed = (cut != images).sum(dim=(1, 2, 3))
    assert changed.tolist() == pytest.approx([256, 64, 1], abs=5)  # a pixel may have been of that gray
    assert torch.allclose(cut[0, 0, 4:20, 6:22], torch.full((16, 16), CUTOUT_GRAY))
    assert torch.equal(cut[1, 0, 8:], images[1, 0, 8:])


def test_draws_keep_to_their_ranges_and_do_not_disturb_those_of_other_recipes() -> None:
    plain = View(64)
    rich = View(64, gamma=0.25, translate=0.125, operations=2, cutout=0.5)

    before = draw_photometry(plain, 500, torch.Generator().manual_seed(0))
    after = draw_photometry(rich, 500, torch.Generator().manual_seed(0))

    assert torch.equal(before.brightness, after.brightness)
    assert before.gamma is None and before.shift is None and before.operations is None and before.hole is None
    assert after.gamma is not None and after.shift is not None and after.operations is not None
    assert after.hole is not None
    assert 0.75 <= after.gamma.min() < 0.76 and 1.24 < after.gamma.max() <= 1.25
    assert (after.shift.min(), after.shift.max()) == (-8, 8)
    assert after.operations.kind.shape == (2, 500)
    assert (after.hole[:, 2:] - after.hole[:, :2] == 32).all()
    assert (after.hole[:, 0].min(), after.hole[:, 0].max()) == (-16, 47)


def test_operations_are_drawn_evenly_and_every_second_is_applied() -> None:
    drawn = draw_operations(2, 20000, torch.Generator().manual_seed(0))

    shares = torch.bincount(drawn.kind.flatten(), minlength=len(OPERATIONS)) / drawn.kind.numel()
    expected = torch.full((len(OPERATIONS),), 0.5 / len(OPERATIONS))
    expected[0] += 0.5
    assert torch.allclose(shares, expected, atol=0.005)


@pytest.mark.parametrize("name", NAMES)
def test_an_operation_stays_in_range_and_touches_only_its_images(images: Tensor, name: str) -> None:
    kind = torch.tensor([[0, NAMES.index(name), 0]])
    changed = apply_operations(images, Operations(kind, torch.full((1, 3), 0.7), torch.ones(1, 3)))

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
