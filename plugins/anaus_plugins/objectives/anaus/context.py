"""Contextual prediction (Sec. 2.3)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from anaus_bench.lazy import F, torch
from anaus_plugins.objectives.anaus.settings import ContextSettings

if TYPE_CHECKING:
    from torch import Tensor, nn


def is_usable(box: Tensor, side: int, settings: ContextSettings) -> Tensor:
    """(B,) bool: whether overlaps (B, 4) in packed images of `side` pixels are large enough."""
    height, width = box[:, 2], box[:, 3]
    shorter = torch.minimum(height, width)
    return (shorter >= settings.min_side) & (height * width >= settings.min_area * side**2)


def distance(predictions: Tensor, projections: Tensor, normalize: bool) -> Tensor:
    """Squared distance (B, K) of vectors (B, K, D), in float32; in [0, 4] if normalised."""
    predictions, projections = predictions.float(), projections.float()
    if normalize:
        predictions, projections = F.normalize(predictions, dim=-1), F.normalize(projections, dim=-1)
    return (predictions - projections).square().sum(dim=-1)


@contextmanager
def kept_statistics(*networks: nn.Module) -> Iterator[None]:
    """Meanwhile batch norm within the networks normalises as ever, but its running statistics stay as they are."""
    from torch.nn.modules.batchnorm import _BatchNorm

    norms = [module for network in networks for module in network.modules() if isinstance(module, _BatchNorm)]
    tracking = [norm for norm in norms if norm.track_running_stats]
    for norm in tracking:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in tracking:
            norm.track_running_stats = True
