"""Passes through AnaUS's networks: one pyramid for all scales, pooled under masks (Eq. 4), then each scale's heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from anaus_bench.nn.pooling import mask_pool


def predict(nets: nn.ModuleDict, images: Tensor, masks: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Predictions q_s(g_s(h)) of the online network: stride -> (B, K, D).

    Of normalised images (B, 3, H, H), under masks: stride -> (B or 1, K, h, w), for all scales in use.
    """
    predictors = cast("nn.ModuleDict", nets["predictors"])
    return {stride: predictors[str(stride)](rows) for stride, rows in _project(nets, "", images, masks).items()}


@torch.no_grad()
def project_target(nets: nn.ModuleDict, images: Tensor, masks: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Projections g_s(h) of the target network, without gradients; as `predict`."""
    return _project(nets, "target_", images, masks)


def _project(nets: nn.ModuleDict, network: str, images: Tensor, masks: Mapping[int, Tensor]) -> dict[int, Tensor]:
    maps = nets[f"{network}encoder"](images, tuple(masks))
    projectors = cast("nn.ModuleDict", nets[f"{network}projectors"])
    return {stride: projectors[str(stride)](mask_pool(maps[stride], mask)) for stride, mask in masks.items()}
