"""Regions of label maps: how much they cover, which are drawn, and the features pooled over them (AnaUS Sec. 2, Eq. 4).

A label map holds ids 0..255. Masks are made per grid cell from the label map, never as K images of full size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from anaus_bench.distributed.group import rand_rows

NUM_IDS = 256


def coverage(label_maps: Tensor) -> Tensor:
    """Share of the pixels of label maps (B, H, W) uint8 that each id covers: (B, 256) float32, rows sum to 1."""
    index = label_maps.flatten(1).long()
    ones = torch.ones((), device=index.device).expand(index.shape)
    counts = ones.new_zeros(len(index), NUM_IDS).scatter_add_(1, index, ones)
    return counts / index.shape[1]


def draw_ids(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(B, count) int64 ids drawn with replacement; an id of weight 0 is never drawn from a row that has another.

    Args:
        weights: (B, 256) float32, at least 0; a row of zeros draws the last id.
        count: Draws per row.
        generator: On the CPU, so that the draw is the same on every device up to rounding of the weights.
    """
    # float64 holds a float32 in [0, 1) times the total exactly enough to stay below the total.
    shares = rand_rows(len(weights), count, generator=generator).to(weights.device, non_blocking=True)
    cumulated = weights.double().cumsum(dim=1)
    drawn = torch.searchsorted(cumulated, shares.double() * cumulated[:, -1:], right=True)
    return drawn.clamp(max=NUM_IDS - 1)


def soft_masks(label_maps: Tensor, ids: Tensor, sizes: Sequence[int]) -> dict[int, Tensor]:
    """Share of each grid cell that each id covers: size -> (B, K, size, size) float32 in [0, 1].

    Args:
        label_maps: (B, H, H) uint8.
        ids: (B, K) int64; an id may occur several times.
        sizes: Sides of the grids; each divides H and the largest of them.
    """
    count, num_masks = ids.shape
    side, finest = label_maps.shape[-1], max(sizes)
    cell = side // finest
    # Pixels vote for the slot of their id, so that the grid has K + 1 layers (the last: not drawn) and not 256.
    slots = ids.new_full((count, NUM_IDS), num_masks)
    slots.scatter_(1, ids, torch.arange(num_masks, device=ids.device).expand_as(ids))
    along = torch.arange(side, device=ids.device) // cell
    cells = (along[:, None] * finest + along).flatten()  # (H*H,)
    index = slots.gather(1, label_maps.flatten(1).long()) * finest**2 + cells
    vote = torch.full((), 1 / cell**2, device=ids.device).expand(index.shape)
    layers = vote.new_zeros(count, (num_masks + 1) * finest**2).scatter_add_(1, index, vote)
    layers = layers.view(count, num_masks + 1, finest, finest)
    masks = layers[torch.arange(count, device=ids.device)[:, None], slots.gather(1, ids)]  # (B, K, finest, finest)
    return {size: masks if size == finest else F.avg_pool2d(masks, finest // size) for size in sizes}


def majority(label_maps: Tensor, size: int) -> Tensor:
    """The id that covers most of each grid cell, the lowest at a tie: (B, size, size) uint8 (DetCon's hard masks)."""
    count, side = label_maps.shape[0], label_maps.shape[-1]
    along = torch.arange(side, device=label_maps.device) * size // side
    index = (along[:, None] * size + along).flatten() * NUM_IDS + label_maps.flatten(1).long()
    # Counts of a cell fit 16 bits; 256 layers of float32 would be four times the label map's size per scale.
    ones = torch.ones((), dtype=torch.int16, device=index.device).expand(index.shape)
    counts = ones.new_zeros(count, size * size * NUM_IDS).scatter_add_(1, index, ones)
    return counts.view(count, size, size, NUM_IDS).argmax(dim=-1).to(torch.uint8)


def grid_masks(cells: int, side: int, sizes: Sequence[int], device: torch.device) -> dict[int, Tensor]:
    """Soft masks of the cells of a (cells, cells) grid over a view: size -> (1, cells**2, size, size)."""
    along = torch.arange(side, device=device) * cells // side
    label_map = (along[:, None] * cells + along).to(torch.uint8)[None]
    return soft_masks(label_map, torch.arange(cells**2, device=device)[None], sizes)


def mask_pool(features: Tensor, masks: Tensor, eps: float = 1e-6) -> Tensor:
    """Mean of the features under each mask, Eq. 4: (B, K, C).

    Args:
        features: (B, C, h, w).
        masks: (B, K, h, w) or (1, K, h, w) in [0, 1]; an empty mask gives zeros.
        eps: Least sum of a mask.
    """
    weights = masks.flatten(2)
    weights = weights / weights.sum(dim=2, keepdim=True).clamp(min=eps)
    return weights.to(features.dtype) @ features.flatten(2).transpose(1, 2)


def embedding_spread(embeddings: Tensor) -> Tensor:
    """Mean standard deviation of unit embeddings (..., D) over all rows, a scalar to log.

    Near 1/sqrt(D) is healthy, 0 is collapse.
    """
    return F.normalize(embeddings.detach().float(), dim=-1).flatten(0, -2).std(dim=0, correction=0).mean()
