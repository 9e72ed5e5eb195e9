"""Batched views against torchvision's per-image functions, and what must hold for any draw."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from anaus_bench.corpus.batch import make_batch
from anaus_bench.corpus.draw import draw_crops, draw_photometry, overlap_box
from anaus_bench.corpus.pixels import normalise, photometric, resample, resample_labels
from anaus_bench.corpus.view import Blur, Crop, Jitter, Operation, Solarise, View

PLAIN = View(32)
RICH = View(32, operations=(Jitter(), Blur(), Solarise(0.2)))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(4, 1, 64, 64, generator=seeded())


@pytest.mark.parametrize("size", [16, 48, 96])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_resampling_equals_torchvision_resized_crop_of_each_image(
    images: Tensor, size: int, interpolation: str
) -> None:
    boxes = [(0, 0, 64, 64), (3, 10, 40, 51), (30, 0, 9, 64), (63, 5, 1, 2)]
    flips = [False, True, True, False]

    views = resample(images, Crop(torch.tensor(boxes).float(), torch.tensor(flips)), size, interpolation)

    for image, box, flip, view in zip(images, boxes, flips, views, strict=True):
        expected = tv.resized_crop(
            image, *box, size=[size, size], interpolation=InterpolationMode(interpolation), antialias=True
        )
        expected = tv.horizontal_flip(expected) if flip else expected
        assert torch.allclose(view, expected.clamp(0, 1), atol=2e-5)


@pytest.mark.parametrize("size", [16, 48, 96])
def test_label_maps_equal_nearest_resizing_of_each_cut_out(size: int) -> None:
    maps = torch.randint(0, 256, (3, 64, 64), generator=seeded(), dtype=torch.uint8)
    boxes, flips = [(0, 0, 64, 64), (3, 10, 40, 51), (30, 1, 9, 63)], [False, True, False]

    views = resample_labels(maps, Crop(torch.tensor(boxes).float(), torch.tensor(flips)), size)

    for label_map, (top, left, height, width), flip, view in zip(maps, boxes, flips, views, strict=True):
        cut = Image.fromarray(label_map[top : top + height, left : left + width].numpy())
        expected = torch.from_numpy(np.array(cut.resize((size, size), Image.Resampling.NEAREST)))
        view = view.flip(1) if flip else view
        # A centre on the border of two pixels may go either way.
        rows, columns = ((2 * torch.arange(size) + 1) * length % (2 * size) != 0 for length in (height, width))
        assert torch.equal(view[rows][:, columns], expected[rows][:, columns])


def test_blur_equals_torchvision_and_touches_only_images_with_sigma(images: Tensor) -> None:
    large = tv.resize(images, [224, 224])
    sigma = torch.tensor([0.5, 0.0, 2.0, 0.1])

    blurred = Blur().apply(large, sigma)

    for image, view, value in zip(large, blurred, sigma.tolist(), strict=True):
        expected = tv.gaussian_blur(image, [23, 23], [value, value]) if value else image
        assert torch.allclose(view, expected, atol=1e-5)


@pytest.mark.parametrize("contrast_first", [False, True])
def test_jitter_equals_torchvision_in_either_order(images: Tensor, contrast_first: bool) -> None:
    jittered = Jitter().apply(images, torch.tensor([[1.37, 0.7, float(contrast_first)]] * 4))

    for image, view in zip(images, jittered, strict=True):
        if contrast_first:
            expected = tv.adjust_brightness(tv.adjust_contrast(image, 0.7), 1.37)
        else:
            expected = tv.adjust_contrast(tv.adjust_brightness(image, 1.37), 0.7)
        assert torch.allclose(view, expected, atol=1e-5)


def test_saturation_hue_and_grayscale_change_nothing_on_gray_images(images: Tensor) -> None:
    colour = images[0].expand(3, -1, -1)

    for changed in (
        tv.adjust_saturation(colour, 0.8),
        tv.adjust_hue(colour, 0.1),
        tv.rgb_to_grayscale(colour, num_output_channels=3),
    ):
        assert torch.allclose(changed, colour, atol=2e-4)  # torchvision's gray weights add up to 0.9999


def test_solarisation_equals_torchvision(images: Tensor) -> None:
    solarised = Solarise(0.5).apply(images, torch.tensor([True, False, True, True]))

    assert torch.allclose(solarised[[0, 2, 3]], tv.solarize(images[[0, 2, 3]], 128 / 255))
    assert torch.equal(solarised[1], images[1])


def test_views_are_float32_under_autocast(images: Tensor) -> None:
    crop = Crop(torch.tensor([[3.0, 10.0, 40.0, 51.0]] * 4), torch.zeros(4, dtype=torch.bool))
    drawn = draw_photometry(RICH, 4, seeded())
    expected = photometric(resample(images, crop, 48, "bicubic"), RICH, drawn)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        views = photometric(resample(images, crop, 48, "bicubic"), RICH, drawn)

    assert torch.equal(views, expected)


@pytest.mark.parametrize("operation", [Jitter(0.0), Blur(0.0), Solarise(0.0)])
def test_an_operation_of_probability_zero_returns_the_images(images: Tensor, operation: Operation) -> None:
    assert torch.equal(operation.apply(images, operation.draw(4, seeded(), 64)), images)


def test_operations_are_applied_in_the_order_of_the_recipe(images: Tensor) -> None:
    blur, solarise = Blur(), Solarise(1.0)
    recipe = View(64, operations=(solarise, blur))
    inverted, sigma = draw_photometry(recipe, 4, seeded())

    changed = photometric(images, recipe, (inverted, sigma))

    assert torch.equal(changed, blur.apply(solarise.apply(images, inverted), sigma))


def test_what_an_operation_draws_does_not_depend_on_the_others_of_its_recipe() -> None:
    operations = (Solarise(0.2), Jitter(), Blur())

    for operation, drawn in zip(operations, draw_photometry(View(operations=operations), 50, seeded()), strict=True):
        (alone,) = draw_photometry(View(operations=(operation,)), 50, seeded())
        assert torch.equal(alone, drawn)


def test_two_operations_of_a_kind_have_draws_of_their_own() -> None:
    first, second = draw_photometry(View(operations=(Blur(), Blur())), 50, seeded())

    assert not torch.equal(first, second)


def test_normalising_gives_three_channels_as_torchvision(images: Tensor) -> None:
    recipe = View()

    expected = tv.normalize(images.expand(-1, 3, -1, -1), list(recipe.mean), list(recipe.std))
    assert torch.allclose(normalise(images, recipe), expected, atol=1e-6)


def test_crops_are_whole_pixels_inside_the_valid_box_with_the_wanted_area_and_ratio() -> None:
    valid = torch.tensor([[20.0, 0.0, 100.0, 256.0], [0.0, 64.0, 256.0, 128.0], [0.0, 0.0, 256.0, 256.0]]).repeat(
        200, 1
    )

    crop = draw_crops(View(crop_area=(0.2, 1.0)), valid, seeded())

    top, left, height, width = crop.box.T
    assert torch.equal(crop.box, crop.box.round())
    assert (top >= valid[:, 0]).all()
    assert (left >= valid[:, 1]).all()
    assert (top + height <= valid[:, 0] + valid[:, 2]).all()
    assert (left + width <= valid[:, 1] + valid[:, 3]).all()
    share, ratio = height * width / (valid[:, 2] * valid[:, 3]), width / height
    assert share.min() > 0.19
    assert ratio.min() > 0.73
    assert ratio.max() < 1.36


def test_crops_of_square_images_have_torchvisions_distribution() -> None:
    from torchvision.transforms.v2 import RandomResizedCrop

    torch.manual_seed(0)
    reference = RandomResizedCrop(224, (0.08, 1.0))
    drawn = [reference.make_params([torch.zeros(1, 256, 256)]) for _ in range(1500)]
    expected = torch.tensor([[d["top"], d["left"], d["height"], d["width"]] for d in drawn]).float()

    box = draw_crops(View(), torch.tensor([[0.0, 0.0, 256.0, 256.0]]).repeat(1500, 1), seeded()).box

    quantiles = torch.tensor([0.1, 0.5, 0.9])
    difference = box.quantile(quantiles, dim=0) - expected.quantile(quantiles, dim=0)
    assert difference.abs().max() < 16


def test_a_box_no_crop_fits_into_gives_the_largest_central_crop() -> None:
    crop = draw_crops(View(crop_area=(1.0, 1.0)), torch.tensor([[10.0, 20.0, 30.0, 200.0]]), seeded())

    assert crop.box.tolist() == [[10.0, 100.0, 30.0, 40.0]]  # 30 high, ratio 4/3, in the middle of 200


def test_photometry_is_drawn_with_its_probabilities_and_ranges() -> None:
    recipe = View(112, operations=(Jitter(0.8), Blur(0.1), Solarise(0.2)))

    jitter, sigma, solarised = draw_photometry(recipe, 4000, seeded())

    brightness, contrast, contrast_first = jitter.T
    assert (brightness != 1).float().mean().item() == pytest.approx(0.8, abs=0.03)
    assert (sigma > 0).float().mean().item() == pytest.approx(0.1, abs=0.03)
    assert solarised.float().mean().item() == pytest.approx(0.2, abs=0.03)
    assert contrast_first.mean().item() == pytest.approx(0.5, abs=0.03)
    assert 0.6 <= contrast.min() < contrast.max() <= 1.4
    assert sigma[sigma > 0].min() >= 0.05  # 0.1 pixels at 224 are half as many at 112
    assert sigma.max() <= 1.0


def packed(count: int = 6, size: int = 48) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = seeded(3)
    masks = torch.randint(0, 2, (count, size // 8, size // 8), generator=generator, dtype=torch.uint8)
    masks = masks.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
    boxes = torch.tensor([[0.0, 0.0, size, size]]).repeat(count, 1)
    return masks * 255, masks, boxes, torch.arange(count)


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    images, masks, boxes, labels = packed()
    indices, recipes = torch.tensor([4, 1, 2]), (RICH, RICH)

    first = make_batch(images, masks, boxes, labels, indices, recipes, seed=7, step=3)
    torch.rand(5)
    again = make_batch(images, masks, boxes, labels, indices, recipes, seed=7, step=3)
    later = make_batch(images, masks, boxes, labels, indices, recipes, seed=7, step=4)

    for view, same, other in zip(first.views, again.views, later.views, strict=True):
        assert torch.equal(view, same)
        assert not torch.equal(view, other)
    assert first.seed == again.seed != later.seed
    assert not torch.equal(first.crops[0].box, first.crops[1].box)


def test_a_batch_holds_the_rows_asked_for_in_the_documented_types() -> None:
    images, masks, boxes, labels = packed()
    indices = torch.tensor([4, 1])

    batch = make_batch(images, masks, boxes, labels, indices, (View(32), View(16)), seed=0, step=0)

    assert [tuple(view.shape) for view in batch.views] == [(2, 3, 32, 32), (2, 3, 16, 16)]
    assert [tuple(maps.shape) for maps in batch.label_maps] == [(2, 32, 32), (2, 16, 16)]
    assert {maps.dtype for maps in batch.label_maps} == {torch.uint8}
    assert torch.equal(batch.source, images[indices][:, None])
    assert batch.labels.tolist() == [4, 1]


def test_image_and_label_map_of_a_view_stay_aligned() -> None:
    images, masks, boxes, labels = packed(size=64)
    recipe = replace(PLAIN, size=64, crop_area=(0.3, 1.0))

    batch = make_batch(images, masks, boxes, labels, torch.arange(6), (recipe,), seed=1, step=0)

    brightness = batch.views[0][:, 0] * recipe.std[0] + recipe.mean[0]
    agreement = ((brightness > 0.5) == (batch.label_maps[0] == 1)).float().mean()
    assert batch.crops[0].flip.any()
    assert agreement > 0.97  # all but the borders


def test_a_memory_map_gives_the_batch_of_the_tensor(tmp_path: Path) -> None:
    images, _, boxes, labels = packed()
    np.save(tmp_path / "images.npy", images.numpy())
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    indices = torch.tensor([5, 0])

    of_tensor = make_batch(images, None, boxes, labels, indices, (PLAIN,), 0, 0)
    of_map = make_batch(mapped, None, boxes.numpy(), labels.numpy(), indices, (PLAIN,), 0, 0)

    assert torch.equal(of_tensor.views[0], of_map.views[0])
    assert of_map.label_maps == ()
    assert of_map.source_masks is None


def test_overlap_is_symmetric_inside_both_crops_and_the_same_under_flips() -> None:
    valid = torch.tensor([[0.0, 0.0, 256.0, 256.0]]).repeat(100, 1)
    first, second = (draw_crops(View(crop_area=(0.05, 0.6)), valid, seeded(seed)) for seed in (0, 1))

    box = overlap_box(first, second)

    assert torch.equal(box, overlap_box(second, first))
    assert torch.equal(box, overlap_box(replace(first, flip=~first.flip), second))
    for (top, left, height, width), a, b in zip(box.tolist(), first.box.tolist(), second.box.tolist(), strict=True):
        rows = set(range(int(a[0]), int(a[0] + a[2]))) & set(range(int(b[0]), int(b[0] + b[2])))
        columns = set(range(int(a[1]), int(a[1] + a[3]))) & set(range(int(b[1]), int(b[1] + b[3])))
        assert max(0, height) == len(rows)
        assert max(0, width) == len(columns)
        if rows and columns:
            assert (top, left) == (min(rows), min(columns))


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
