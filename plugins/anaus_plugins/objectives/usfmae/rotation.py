"""Rotation of a batch of images about their centres."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def rotate(images: Tensor, degrees: Tensor, fill: Tensor) -> Tensor:
    """Images (B, C, H, H) turned counter-clockwise, bilinear, within their frame.

    Args:
        images: (B, C, H, H) float32.
        degrees: (B,) float32.
        fill: (C,) what comes in from outside.
    """
    angle = degrees.deg2rad().to(images.device, non_blocking=True)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # From a place in the result to its place in the source; rows point down.
    turn = torch.stack([cos, -sin, zero, sin, cos, zero], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(turn, list(images.shape), align_corners=False)
    outside = fill.to(images.device, non_blocking=True).view(1, -1, 1, 1)
    return F.grid_sample(images - outside, grid, align_corners=False) + outside
