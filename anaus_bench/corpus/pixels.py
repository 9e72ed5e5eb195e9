"""What is done to the pixels of a whole batch at once, on the device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from anaus_bench.corpus.view import Crop, View


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


def photometric(images: Tensor, recipe: View, parameters: Sequence[Tensor]) -> Tensor:
    """Images (B, 1, H, H) float32 in [0, 1] after a recipe's operations as they were drawn; also in [0, 1]."""
    for operation, drawn in zip(recipe.operations, parameters, strict=True):
        images = operation.apply(images, drawn)
    return images


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
