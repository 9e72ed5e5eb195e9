"""Slots: vectors of groups of pixels, and how they are told apart (SlotCon, Wen et al. 2022, arXiv:2205.15288).

Shapes: dense projections (B, D, h, w), scores of K groups per cell (B, K, h, w), slots (B, K, D). Scores, losses and
slots are float32 whatever the autocast.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anaus_bench.distributed.group import divisor, gather_rows, least
from anaus_bench.nn.pooling import mask_pool

ATTENTION_FLOOR = 1e-6  # of a group in a cell: a group that no cell chooses is the plain mean of the view


def dense_head(in_dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    """Maps (B, in_dim, h, w) to (B, out_dim, h, w) by three 1x1 convolutions with batch norm and GELU between."""
    return _initialised(
        nn.Conv2d(in_dim, hidden_dim, 1),
        nn.BatchNorm2d(hidden_dim),
        nn.GELU(),
        nn.Conv2d(hidden_dim, hidden_dim, 1),
        nn.BatchNorm2d(hidden_dim),
        nn.GELU(),
        nn.Conv2d(hidden_dim, out_dim, 1),
    )


def slot_head(dim: int, hidden_dim: int) -> nn.Sequential:
    """Maps rows (R, dim) to (R, dim) by three linear layers with batch norm and GELU between."""
    return _initialised(
        nn.Linear(dim, hidden_dim),
        nn.BatchNorm1d(hidden_dim),
        nn.GELU(),
        nn.Linear(hidden_dim, hidden_dim),
        nn.BatchNorm1d(hidden_dim),
        nn.GELU(),
        nn.Linear(hidden_dim, dim),
    )


def prototype_scores(projections: Tensor, prototypes: Tensor) -> Tensor:
    """Cosine of each cell of projections (B, D, h, w) with each prototype (K, D): (B, K, h, w)."""
    with torch.autocast(projections.device.type, enabled=False):
        cells = F.normalize(projections.float(), dim=1)
        return torch.einsum("kd,bdhw->bkhw", F.normalize(prototypes.float(), dim=1), cells)


def prototype_slots(projections: Tensor, scores: Tensor, temperature: float) -> Tensor:
    """Mean of the projections (B, D, h, w), not normalised, by each group's share of the cells: (B, K, D)."""
    with torch.autocast(projections.device.type, enabled=False):
        attention = (scores / temperature).softmax(dim=1) + ATTENTION_FLOOR
        return mask_pool(projections.float(), attention)


def wins_a_cell(scores: Tensor) -> Tensor:
    """(B, K) bool: whether a group has the highest of scores (B, K, h, w) in any cell; the first wins a tie."""
    winners = scores.argmax(dim=1).flatten(1)  # (B, h * w)
    return torch.zeros_like(scores[:, :, 0, 0], dtype=torch.bool).scatter_(1, winners, True)


def grouping_loss(online: Tensor, targets: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of the online network's groups to the target's, cell by cell; 0 where no image counts.

    Args:
        online: (B, K, h, w) scores, aligned with `targets`.
        targets: (B, h, w, K) distributions of the target network, without gradients.
        weights: (B,) of the images; the mean is over their cells.
        temperature: Of the softmax over the online scores.
    """
    shares = (online / temperature).log_softmax(dim=1).permute(0, 2, 3, 1)
    losses = -(targets * shares).sum(dim=3).mean(dim=(1, 2))  # (B,)
    return (losses * weights).sum() / divisor(weights.sum())


def slot_contrast(
    predictor: nn.Module, slots: Tensor, targets: Tensor, anchors: Tensor, valid: Tensor, temperature: float
) -> Tensor:
    """Which target slot is the same group of the same image, times 2 * temperature; mean over the anchors.

    Negatives are all other valid target slots of all images, those of the same group too. The predictor, and so its
    batch norm, sees the anchors alone. Fewer than two anchors in any process, which batch norm cannot take, give 0.

    Args:
        predictor: Maps rows (R, D) to (R, D).
        slots: (B, K, D) of the online network.
        targets: (B, K, D) of the target network in the other view, without gradients.
        anchors: (B, K) bool, within `valid`.
        valid: (B, K) bool, which targets exist.
        temperature: tau.
    """
    rows = slots[anchors]  # (R, D)
    (keys, first), (is_key, _) = gather_rows(targets), gather_rows(valid)
    place = (is_key.flatten().cumsum(dim=0) - 1).view_as(is_key)[first : first + len(anchors)]  # among the keys
    if least(len(rows)) < 2:
        return zero_loss([slots], predictor)
    predictions = predictor(rows)
    with torch.autocast(rows.device.type, enabled=False):
        queries, keys = F.normalize(predictions.float(), dim=1), F.normalize(keys[is_key].float(), dim=1)
        loss = F.cross_entropy(queries @ keys.T / temperature, place[anchors])
        return 2 * temperature * loss * (len(rows) / divisor(anchors.sum()))


def zero_loss(features: Sequence[Tensor], *heads: nn.Module) -> Tensor:
    """0, with gradients of 0 for the features and the heads' parameters: every process must have them."""
    sums = [tensor.float().sum() for tensor in features]
    sums += [parameter.sum() for head in heads for parameter in head.parameters()]
    return torch.stack(sums).sum() * 0


def _initialised(*layers: nn.Module) -> nn.Sequential:
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)
