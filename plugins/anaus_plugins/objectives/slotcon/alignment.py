"""Feature maps of two crops brought to the same pixels of their image: the part that both crops show."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor

from anaus_bench.corpus.view import Crop


def box_in_view(box: Tensor, crop: Crop) -> Tensor:
    """Where boxes of the source lie in a view of it: (B, 4) float32 (left, top, right, bottom), fractions of the view.

    Args:
        box: (B, 4) float32 (top, left, height, width) in source pixels, un-flipped, on the CPU.
        crop: Where the view was cut and whether it was mirrored.
    """
    start = (box[:, :2] - crop.box[:, :2]) / crop.box[:, 2:]
    end = start + box[:, 2:] / crop.box[:, 2:]
    (top, left), (bottom, right) = start.unbind(dim=1), end.unbind(dim=1)
    mirrored = torch.stack([1 - right, top, 1 - left, bottom], dim=1)
    return torch.where(crop.flip[:, None], mirrored, torch.stack([left, top, right, bottom], dim=1))


def align(maps: Tensor, crop: Crop, box: Tensor) -> Tensor:
    """The part `box` of the source from maps (B, C, h, w) of its views, un-mirrored, again (B, C, h, w) float32.

    RoIAlign (He et al. 2017, arXiv:1703.06870) with half-pixel centres. Two views of one image that are aligned to one
    box show the same pixels at the same place.

    Args:
        maps: Of the views that were cut at `crop`.
        crop: Where the views were cut.
        box: (B, 4) float32 (top, left, height, width) in source pixels, on the CPU, within the crop; not empty.
    """
    count, _, height, width = maps.shape
    corners = box_in_view(box, crop) * torch.tensor([width, height, width, height])
    rois = torch.cat([torch.arange(count, dtype=torch.float32)[:, None], corners], dim=1)
    rois = rois.to(maps.device, non_blocking=True)
    with torch.autocast(maps.device.type, enabled=False):
        aligned: Tensor = torchvision.ops.roi_align(maps.float(), rois, (height, width), aligned=True)
    flip = crop.flip.to(maps.device, non_blocking=True)[:, None, None, None]
    return torch.where(flip, aligned.flip(3), aligned)
