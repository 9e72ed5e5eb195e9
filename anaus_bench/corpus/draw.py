"""The draw of a step: crops and photometric parameters, on the CPU, so that it is the same on every device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from anaus_bench.corpus.view import Blur, Crop, Jitter, Operation, Solarise, View

CROP_TRIES = 10
COMMON: tuple[Operation, ...] = (Jitter(), Blur(), Solarise(0.0))


def draw_crops(recipe: View, boxes: Tensor, generator: torch.Generator) -> Crop:
    """Random resized crops within the valid boxes, as torchvision's `RandomResizedCrop` draws them within an image.

    A crop that does not fit is drawn again, ten times in all; after that the largest central crop of an allowed ratio
    is taken.

    Args:
        recipe: Gives the ranges of area and ratio and the probability of a flip.
        boxes: (B, 4) float32 valid boxes (top, left, height, width), whole numbers.
        generator: On the CPU.
    """
    count = len(boxes)
    top, left, full_height, full_width = boxes[:, :, None].unbind(dim=1)  # each (B, 1)
    low, high = recipe.crop_ratio
    area = full_height * full_width * _uniform((count, CROP_TRIES), recipe.crop_area, generator)
    ratio = _uniform((count, CROP_TRIES), (math.log(low), math.log(high)), generator).exp()
    offset = torch.rand(2, count, 1, generator=generator)
    flip = torch.rand(count, generator=generator) < recipe.flip

    heights, widths = (area / ratio).sqrt().round(), (area * ratio).sqrt().round()
    fits = (heights >= 1) & (heights <= full_height) & (widths >= 1) & (widths <= full_width)  # (B, tries)
    first, found = fits.int().argmax(dim=1, keepdim=True), fits.any(dim=1, keepdim=True)
    central_height = torch.minimum(full_height, (full_width / low).round().clamp(min=1))
    central_width = torch.minimum(full_width, (full_height * high).round().clamp(min=1))
    height = torch.where(found, heights.gather(1, first), central_height)
    width = torch.where(found, widths.gather(1, first), central_width)
    if recipe.square:
        height = width = torch.minimum(full_height, full_width)
        found = torch.ones_like(found)

    def place(spare: Tensor, share: Tensor) -> Tensor:
        drawn = torch.minimum((share * (spare + 1)).floor(), spare)
        return torch.where(found, drawn, (spare / 2).floor())

    box = [top + place(full_height - height, offset[0]), left + place(full_width - width, offset[1]), height, width]
    return Crop(torch.cat(box, dim=1), flip)


def redraw(recipe: View, boxes: Tensor, crop: Crop, first: Crop, generator: torch.Generator) -> Crop:
    """The crop where `first` covers enough of it, elsewhere a new one; after ten draws in all the last is kept."""
    for _ in range(CROP_TRIES - 1):
        shared = overlap_box(first, crop)[:, 2:].clamp(min=0).prod(dim=1)
        apart = shared < recipe.overlap * crop.box[:, 2:].prod(dim=1)
        if not apart.any():
            break
        again = draw_crops(recipe, boxes, generator)
        crop = Crop(torch.where(apart[:, None], again.box, crop.box), torch.where(apart, again.flip, crop.flip))
    return crop


def draw_photometry(
    recipe: View, count: int, generator: torch.Generator, part: slice = slice(None)
) -> tuple[Tensor, ...]:
    """Parameters of each of a recipe's operations, drawn for `count` images, of which the rows `part` come back.

    Jitter, blur and solarisation are drawn first, whether a recipe has them or not, so that these draws and those of
    the next view do not depend on which it has.
    """
    kinds = [type(common) for common in COMMON]
    absent = [common for common in COMMON if type(common) not in map(type, recipe.operations)]
    operations = [*recipe.operations, *absent]
    order = sorted(range(len(operations)), key=lambda place: [type(operations[place]) is not kind for kind in kinds])
    drawn = {place: operations[place].draw(count, generator, recipe.size) for place in order}
    return tuple(drawn[place][part] for place in range(len(recipe.operations)))


def overlap_box(first: Crop, second: Crop) -> Tensor:
    """Intersection of crops: boxes (B, 4) float32 (top, left, height, width) in un-flipped packed pixels.

    Height or width is 0 or negative where there is none.
    """
    start = torch.maximum(first.box[:, :2], second.box[:, :2])
    end = torch.minimum(first.box[:, :2] + first.box[:, 2:], second.box[:, :2] + second.box[:, 2:])
    return torch.cat([start, end - start], dim=1)


def _uniform(shape: tuple[int, ...], bounds: tuple[float, float], generator: torch.Generator) -> Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * torch.rand(shape, generator=generator)
