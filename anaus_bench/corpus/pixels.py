"""What is done to the pixels of a whole batch at once, on the device."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from anaus_bench.corpus.randaugment import apply_operations
from anaus_bench.corpus.view import Crop, Photometry, View

BLUR_RADIUS_AT_224 = 11  # kernel of 23 pixels
SOLARISE_THRESHOLD = 128 / 255
CUTOUT_GRAY = 127 / 255


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
