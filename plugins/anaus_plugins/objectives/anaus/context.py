"""Contextual prediction (Sec. 2.3): the target's features of the views' overlap from a damaged copy of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from anaus_bench.corpus.batch import Batch
from anaus_bench.corpus.draw import overlap_box
from anaus_bench.corpus.pixels import normalise, photometric, resample
from anaus_bench.corpus.view import Crop
from anaus_bench.distributed.group import divisor
from anaus_bench.nn.pooling import grid_masks
from anaus_bench.nn.regions import RegionSampler
from anaus_plugins.objectives.anaus.damage import damage
from anaus_plugins.objectives.anaus.networks import predict, project_target
from anaus_plugins.objectives.anaus.official import drawn_masks, shared_photometry
from anaus_plugins.objectives.anaus.settings import ContextSettings


def context_loss(
    nets: nn.ModuleDict, batch: Batch, settings: ContextSettings, sampler: RegionSampler, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """L_ctx: distance of the damaged crop's predictions to the intact crop's projections, summed over the scales.

    The mean over places and usable overlaps; logs it and the share of these.
    """
    recipe = batch.recipes[0]
    box = overlap_box(batch.crops[0], batch.crops[1])
    usable = is_usable(box, batch.source.shape[-1], settings)
    # An unusable overlap is replaced by view 1's crop, with weight 0, so that shapes do not depend on the draw.
    crop = Crop(torch.where(usable[:, None], box, batch.crops[0].box), torch.zeros_like(usable))
    intact = resample(batch.source.float().div(255), crop, recipe.size, recipe.interpolation)
    if settings.photometric == "views":
        seen, hidden = (photometric(intact, *pair) for pair in zip(batch.recipes, batch.photometry, strict=True))
    else:
        seen = hidden = shared_photometry(intact, recipe, generator) if settings.photometric == "shared" else intact
    damaged = damage(seen, **settings.damage.model_dump(), seed=batch.seed)

    masks = _masks(batch, crop, settings, sampler, generator)
    with nullcontext() if settings.damaged_statistics else kept_statistics(nets):
        predictions = predict(nets, normalise(damaged, recipe), masks)
    projections = project_target(nets, normalise(hidden, batch.recipes[1]), masks)
    usable = usable.to(intact.device, non_blocking=True)
    distances = [distance(predictions[stride], projections[stride], settings.normalize) for stride in masks]
    loss = torch.stack([(each.mean(dim=1) * usable).sum() for each in distances]).sum() / divisor(usable.sum())
    return loss, {"context": loss, "usable_overlap": usable.float().mean()}


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
def kept_statistics(nets: nn.Module) -> Iterator[None]:
    """Meanwhile batch norm within the networks normalises as ever, but its running statistics stay as they are."""
    norms = [module for module in nets.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def _masks(
    batch: Batch, crop: Crop, settings: ContextSettings, sampler: RegionSampler, generator: torch.Generator
) -> Mapping[int, Tensor]:
    """The places of the overlap where both networks are compared: stride -> (B or 1, K, h, w)."""
    if settings.pool == "masks":
        return drawn_masks(batch, crop, sampler, generator)
    cells, size = settings.grid if settings.pool == "grid" else 1, batch.recipes[0].size
    masks = grid_masks(cells, size, [size // stride for stride in sampler.strides], batch.source.device)
    return {stride: masks[size // stride] for stride in sampler.strides}
