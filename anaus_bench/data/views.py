"""Batched views on the device: all augmentation of a step as a function of (seed, step).

A step draws one parameter table on the CPU (so that the draw is the same on every device), then crops, flips, jitters,
blurs, solarises and normalises the whole batch at once. Label maps follow the same crop and flip, by nearest neighbour.

The images are gray: one channel is computed and `normalise` makes three of it. Saturation, hue and grayscale change
nothing on gray images and are not computed; brightness and contrast keep torchvision's meaning and random order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from anaus_bench.data.randaugment import Operations, apply_operations, draw_operations
from anaus_bench.seeds import stream

CROP_TRIES = 10
BLUR_RADIUS_AT_224 = 11  # kernel of 23 pixels
SOLARISE_THRESHOLD = 128 / 255
CUTOUT_GRAY = 127 / 255


@dataclass(frozen=True)
class View:
    """The recipe of one view.

    Attributes:
        size: Side of the view in pixels.
        crop_area: Range of the crop's share of the valid area.
        crop_ratio: Range of width / height, drawn log-uniformly.
        interpolation: `bicubic` or `bilinear`, antialiased; label maps always nearest.
        flip: Probability of a horizontal flip.
        jitter: Probability of the colour jitter.
        brightness, contrast, saturation, hue: Half-ranges of its factors, as in torchvision's `ColorJitter`.
        grayscale: Probability of grayscale. On gray images saturation, hue and grayscale change nothing.
        blur: Probability of a Gaussian blur with `blur_sigma` (pixels at 224; scaled with `size`).
        solarise: Probability of inverting intensities at or above 128/255.
        mean, std: Normalisation of the three channels.
        frame: Which of its item's images it is cut from.
        square: Cut the largest square at a random place, whatever area and ratio.
        gamma: Half-range of the exponent of intensities around 1; 0 = none.
        translate: Largest shift per axis as a share of the side, with reflected borders.
        operations: Rounds of RandAugment, after the blur and solarisation.
        cutout: Side of a gray square at a random place as a share of the view's; it may reach over the border.
        overlap: Least share of its crop that the first view's must cover, else it is drawn again, ten times in all.

    Label maps follow the crop and the flip only, so the last three are for objectives without masks.
    """

    size: int = 224
    crop_area: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bicubic"
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grayscale: float = 0.2
    blur: float = 1.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarise: float = 0.0
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    frame: int = 0
    square: bool = False
    gamma: float = 0.0
    translate: float = 0.0
    operations: int = 0
    cutout: float = 0.0
    overlap: float = 0.0


@dataclass(frozen=True)
class Crop:
    """Where a view was cut, on the CPU.

    Attributes:
        box: (B, 4) float32 whole numbers (top, left, height, width) in packed source pixels, un-flipped.
        flip: (B,) bool, whether the cut was mirrored left to right.
    """

    box: Tensor
    flip: Tensor

    def part(self, rows: slice) -> Crop:
        """Those of some rows."""
        return Crop(self.box[rows], self.flip[rows])


@dataclass(frozen=True)
class Photometry:
    """One draw of photometric parameters, each (B,) on the CPU, identity where not applied.

    Attributes:
        brightness, contrast: Factors (1 = none).
        contrast_first: Bool, the random order of the two.
        sigma: Standard deviation of the blur in pixels of the view (0 = none).
        solarise: Bool.
        gamma: Exponents, or None.
        shift: (B, 2) int64 pixels down and right, or None.
        operations: RandAugment, or None.
        hole: (B, 4) int64 (top, left, bottom, right) of the cutout, or None.
    """

    brightness: Tensor
    contrast: Tensor
    contrast_first: Tensor
    sigma: Tensor
    solarise: Tensor
    gamma: Tensor | None = None
    shift: Tensor | None = None
    operations: Operations | None = None
    hole: Tensor | None = None

    def part(self, rows: slice) -> Photometry:
        """Those of some rows."""
        values: dict[str, Any] = {name: value[rows] for name, value in vars(self).items() if isinstance(value, Tensor)}
        return Photometry(**values, operations=self.operations and self.operations.part(rows))


@dataclass(frozen=True)
class Batch:
    """What an objective is given for one step.

    Attributes:
        views: V tensors (B, 3, size, size) float32, normalised.
        label_maps: V tensors (B, size, size) uint8, or empty without masks.
        crops: V crops, on the CPU.
        photometry: V photometric draws, on the CPU.
        recipes: V recipes.
        source: (B, 1, S, S) uint8 packed images of frame 0, so that an objective can cut its own crop.
        source_masks: (B, S, S) uint8 packed label maps of frame 0, or None.
        indices: (B, M) int64 positions in the corpus of each item's M images.
        labels: (B,) int64 class label of frame 0, -1 = none.
        weights: (B,) float32 number of each item from the sampler, such as its weight, or None.
        step: Number of the step, from 0.
        seed: Seed of this step for whatever an objective draws; the views were drawn from another stream.
        boxes: (B, 4) float32 valid boxes (top, left, height, width) of `source` in pixels, on the CPU; around it is
            letterbox.
    """

    views: tuple[Tensor, ...]
    label_maps: tuple[Tensor, ...]
    crops: tuple[Crop, ...]
    photometry: tuple[Photometry, ...]
    recipes: tuple[View, ...]
    source: Tensor
    source_masks: Tensor | None
    indices: Tensor
    labels: Tensor
    weights: Tensor | None
    step: int
    seed: int
    boxes: Tensor


def make_batch(
    images: Tensor | NDArray[np.uint8],
    masks: Tensor | NDArray[np.uint8] | None,
    boxes: Tensor | NDArray[np.float32],
    labels: Tensor | NDArray[np.int64],
    indices: Tensor,
    recipes: Sequence[View],
    seed: int,
    step: int,
    device: torch.device | None = None,
    weights: Tensor | None = None,
    part: slice = slice(None),
) -> Batch:
    """The batch of one step, a function of `indices`, `seed` and `step`; of it, the items `part`.

    Args:
        images: (N, S, S) uint8, a tensor on any device or a memory map.
        masks: (N, S, S) uint8 label maps aligned with `images`, or None.
        boxes: (N, 4) valid boxes (top, left, height, width) in packed pixels, on the CPU.
        labels: (N,) int64 class labels, -1 = none.
        indices: (B, M) int64 rows to take, M per item, or (B,), on the CPU.
        recipes: One per view.
        seed: Seed of the run.
        step: Number of the step, from 0.
        device: Where the batch goes; by default where `images` is.
        weights: (B,) float32 weight of each item, or None.
        part: Which of the B items are made; they are those that the whole batch would have in these places.
    """
    if device is None:
        device = images.device if isinstance(images, Tensor) else torch.device("cpu")
    generator = torch.Generator().manual_seed(stream(seed, "views", step))
    indices = indices.reshape(len(indices), -1)
    cpu = torch.device("cpu")
    frames = {number: indices[:, number] for number in {0, *(recipe.frame for recipe in recipes)}}
    valid = {number: _rows(boxes, rows, cpu).float() for number, rows in frames.items()}
    crops = [draw_crops(recipe, valid[recipe.frame], generator) for recipe in recipes]
    for number, recipe in enumerate(recipes):
        if recipe.overlap > 0:
            crops[number] = redraw(recipe, valid[recipe.frame], crops[number], crops[0], generator)
    photometry = [draw_photometry(recipe, len(indices), generator) for recipe in recipes]
    # All items are drawn, and these are taken, so that a part is that of the whole batch.
    crops, photometry = [crop.part(part) for crop in crops], [draw.part(part) for draw in photometry]
    indices, frames = indices[part], {number: rows[part] for number, rows in frames.items()}

    packed = {number: _rows(images, rows, device)[:, None] for number, rows in frames.items()}  # (B, 1, S, S)
    source = {number: rows.float().div_(255) for number, rows in packed.items()}
    maps = {} if masks is None else {number: _rows(masks, rows, device) for number, rows in frames.items()}
    views = tuple(
        normalise(photometric(resample(source[recipe.frame], crop, recipe.size, recipe.interpolation), draw), recipe)
        for recipe, crop, draw in zip(recipes, crops, photometry, strict=True)
    )
    label_maps = [
        resample_labels(maps[recipe.frame], crop, recipe.size)
        for recipe, crop in zip(recipes, crops, strict=True)
        if maps
    ]
    return Batch(
        views=views,
        label_maps=tuple(label_maps),
        crops=tuple(crops),
        photometry=tuple(photometry),
        recipes=tuple(recipes),
        source=packed[0],
        source_masks=maps.get(0),
        indices=indices,
        labels=_rows(labels, indices[:, 0], device),
        weights=None if weights is None else weights[part].to(device),
        step=step,
        seed=stream(seed, "loss", step),
        boxes=valid[0][part],
    )


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


def draw_photometry(recipe: View, count: int, generator: torch.Generator) -> Photometry:
    """Parameters of jitter, blur (scaled from 224 to the view's size) and solarisation for `count` images."""
    draws = torch.rand(7, count, generator=generator)
    jittered = draws[0] < recipe.jitter

    def factor(share: Tensor, half_range: float) -> Tensor:
        low = max(0.0, 1 - half_range)
        return torch.where(jittered, low + share * (1 + half_range - low), 1.0)

    low, high = recipe.blur_sigma
    sigma = (low + draws[5] * (high - low)) * recipe.size / 224
    # What a recipe does not use is not drawn, so that the draws of the others do not depend on it.
    gamma = shift = operations = hole = None
    if recipe.gamma > 0:
        gamma = _uniform((count,), (1 - recipe.gamma, 1 + recipe.gamma), generator)
    if recipe.translate > 0:
        reach = round(recipe.translate * recipe.size)
        shift = torch.randint(-reach, reach + 1, (count, 2), generator=generator)
    if recipe.operations > 0:
        operations = draw_operations(recipe.operations, count, generator)
    if recipe.cutout > 0:
        side = round(recipe.cutout * recipe.size)
        start = torch.randint(0, recipe.size, (count, 2), generator=generator) - side // 2
        hole = torch.cat([start, start + side], dim=1)
    return Photometry(
        brightness=factor(draws[1], recipe.brightness),
        contrast=factor(draws[2], recipe.contrast),
        contrast_first=draws[3] < 0.5,
        sigma=torch.where(draws[4] < recipe.blur, sigma, 0.0),
        solarise=draws[6] < recipe.solarise,
        gamma=gamma,
        shift=shift,
        operations=operations,
        hole=hole,
    )


def overlap_box(first: Crop, second: Crop) -> Tensor:
    """Intersection of crops: boxes (B, 4) float32 (top, left, height, width) in un-flipped packed pixels.

    Height or width is 0 or negative where there is none.
    """
    start = torch.maximum(first.box[:, :2], second.box[:, :2])
    end = torch.minimum(first.box[:, :2] + first.box[:, 2:], second.box[:, :2] + second.box[:, 2:])
    return torch.cat([start, end - start], dim=1)


def resample(source: Tensor, crop: Crop, size: int, interpolation: str) -> Tensor:
    """Cuts, resizes and flips by one matrix product per axis: (B, 1, size, size) float32 in [0, 1].

    The weights are those of PIL's and torchvision's antialiased resizing of the cut-out; what bicubic overshoots is
    clipped.

    Args:
        source: (B, 1, S, S) float32 in [0, 1].
        crop: Where to cut.
        size: Side of the result.
        interpolation: `bicubic` or `bilinear`.
    """
    side, box = source.shape[-1], crop.box.to(source.device, non_blocking=True)
    rows = _resizing_matrix(box[:, 0], box[:, 2], _positions(size, torch.zeros_like(crop.flip)), side, interpolation)
    columns = _resizing_matrix(box[:, 1], box[:, 3], _positions(size, crop.flip), side, interpolation)
    with torch.autocast(source.device.type, enabled=False):
        cut = rows @ source[:, 0] @ columns.transpose(1, 2)
    return cut.clamp_(0, 1)[:, None]


def resample_labels(maps: Tensor, crop: Crop, size: int) -> Tensor:
    """Cuts, resizes and flips label maps (B, S, S) by the nearest pixel centre: (B, size, size), no new ids."""
    box = crop.box.long()
    rows = box[:, :1] + (2 * _positions(size, torch.zeros_like(crop.flip)) + 1) * box[:, 2:3] // (2 * size)
    columns = box[:, 1:2] + (2 * _positions(size, crop.flip) + 1) * box[:, 3:] // (2 * size)
    rows, columns = (index.to(maps.device, non_blocking=True) for index in (rows, columns))
    wide = maps[torch.arange(len(maps), device=maps.device)[:, None], rows]  # (B, size, S)
    return wide.gather(2, columns[:, None].expand(-1, size, -1))


def photometric(images: Tensor, photometry: Photometry) -> Tensor:
    """Images (B, 1, H, H) float32 in [0, 1] after all that was drawn; as many come back, in [0, 1].

    In order: shift, gamma, jitter, blur, solarisation, RandAugment, cutout.
    """
    device = images.device
    if photometry.shift is not None:
        images = _translate(images, photometry.shift)
    if photometry.gamma is not None:
        images = images ** photometry.gamma.to(device, non_blocking=True)[:, None, None, None]
    images = _jitter(images, photometry)
    images = _where(photometry.sigma > 0, images, lambda chosen, numbers: _blur(chosen, photometry.sigma[numbers]))
    images = _where(photometry.solarise, images, lambda chosen, _: _solarise(chosen))
    if photometry.operations is not None:
        images = apply_operations(images, photometry.operations)
    return images if photometry.hole is None else _cut_out(images, photometry.hole)


def normalise(images: Tensor, recipe: View) -> Tensor:
    """Three normalised channels (B, 3, H, W) float32 of images (B, 1, H, W) in [0, 1]."""
    mean, std = (torch.tensor(values, device=images.device).view(1, 3, 1, 1) for values in (recipe.mean, recipe.std))
    return (images / std).sub_(mean / std)


def _rows(array: Tensor | NDArray[Any], indices: Tensor, device: torch.device) -> Tensor:
    if isinstance(array, Tensor):
        return array[indices.to(array.device)].to(device, non_blocking=True)
    rows = torch.from_numpy(np.asarray(array[indices.numpy()]))
    return rows.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else rows.to(device)


def _uniform(shape: tuple[int, ...], bounds: tuple[float, float], generator: torch.Generator) -> Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * torch.rand(shape, generator=generator)


def _positions(size: int, flip: Tensor) -> Tensor:
    """(B, size) int64: 0, 1, ..., or its reverse where flipped."""
    positions = torch.arange(size)
    return torch.where(flip.cpu()[:, None], positions.flip(0), positions)


def _resizing_matrix(start: Tensor, length: Tensor, positions: Tensor, side: int, interpolation: str) -> Tensor:
    """(B, size, side): row i weighs the source pixels in [start, start + length) for output `positions[:, i]`."""
    size = positions.shape[1]
    reach, kernel = _KERNELS[interpolation]
    taps = torch.arange(math.ceil(2 * reach * max(side / size, 1)) + 1, device=start.device)
    scale = (length / size)[:, None, None]
    stretch = scale.clamp(min=1)  # antialiasing: the kernel covers at least one source pixel of the shrunk image
    centre = (positions.to(start.device, non_blocking=True)[:, :, None] + 0.5) * scale  # within the cut-out
    index = (centre - reach * stretch).floor() + taps  # (B, size, taps)
    weight = kernel((index + 0.5 - centre) / stretch) * ((index >= 0) & (index < length[:, None, None]))
    weight = weight / weight.sum(dim=2, keepdim=True)
    columns = (index + start[:, None, None]).long().clamp(0, side - 1)  # what is clamped has weight 0
    return weight.new_zeros(*index.shape[:2], side).scatter_add_(2, columns, weight)


def _triangle(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


def _cubic(x: Tensor) -> Tensor:
    """Keys' cubic convolution with a = -1/2."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((2.5 - 0.5 * x) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


_KERNELS = {"bilinear": (1, _triangle), "bicubic": (2, _cubic)}


def _jitter(images: Tensor, photometry: Photometry) -> Tensor:
    """Brightness and contrast in the drawn order, each clipped: a blend with black, or with the image's mean."""
    table = torch.stack([photometry.brightness, photometry.contrast, photometry.contrast_first.float()])
    brightness, contrast, order = table.to(images.device, non_blocking=True)[..., None, None, None]
    contrast_first = order > 0
    for is_contrast in (contrast_first, ~contrast_first):
        factor = torch.where(is_contrast, contrast, brightness)
        anchor = torch.where(is_contrast, images.mean(dim=(1, 2, 3), keepdim=True), 0.0)
        images = (factor * images).add_((1 - factor) * anchor).clamp_(0, 1)
    return images


def _blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur with reflected borders, cut at a radius of 11 pixels per 224; one row pass, one column pass."""
    count, _, side, _ = images.shape
    radius = max(1, round(BLUR_RADIUS_AT_224 * side / 224))
    taps = torch.arange(-radius, radius + 1)
    kernel = torch.exp(-0.5 * (taps / sigma[:, None]).square())
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).to(images.device, non_blocking=True)[:, None, None]
    padded = F.pad(images, [radius] * 4, mode="reflect").view(1, count, side + 2 * radius, -1)
    with torch.autocast(images.device.type, enabled=False):
        rows = F.conv2d(padded, kernel, groups=count)  # an image is a channel, with a kernel of its own
        return F.conv2d(rows, kernel.transpose(2, 3), groups=count).view(images.shape)


def _solarise(images: Tensor) -> Tensor:
    return torch.where(images >= SOLARISE_THRESHOLD, 1 - images, images)


def _translate(images: Tensor, shift: Tensor) -> Tensor:
    """Shifts by (B, 2) pixels, less than the side; what comes in is reflected at the border."""
    side = images.shape[-1]
    source = (torch.arange(side) - shift[:, :, None]).abs()  # (B, 2, side)
    source = torch.where(source > side - 1, 2 * (side - 1) - source, source).to(images.device, non_blocking=True)
    rows = source[:, 0, :, None].expand(-1, -1, side)[:, None]
    columns = source[:, 1, None].expand(-1, side, -1)[:, None]
    return images.gather(2, rows).gather(3, columns)


def _cut_out(images: Tensor, hole: Tensor) -> Tensor:
    place = torch.arange(images.shape[-1])
    inside = (place >= hole[:, :2, None]) & (place < hole[:, 2:, None])  # (B, 2, H): rows, columns
    inside = inside.to(images.device, non_blocking=True)
    return images.masked_fill((inside[:, 0, :, None] & inside[:, 1, None])[:, None], CUTOUT_GRAY)


def _where(chosen: Tensor, images: Tensor, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Images of which those `chosen`, (B,) bool on the CPU, are replaced by `function(images, their numbers)`."""
    numbers = chosen.nonzero().flatten()
    if len(numbers) == 0:
        return images
    place = numbers.to(images.device, non_blocking=True)
    return images.index_copy(0, place, function(images[place], numbers))
