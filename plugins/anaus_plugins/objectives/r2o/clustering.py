"""Regions found during training, on the device: superpixels of images, and K-means of their features."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def superpixels(images: Tensor, grid: int, compactness: float = 10.0, iterations: int = 10) -> Tensor:
    """SLIC (Achanta et al. 2012) of a batch on its device: label maps (B, S, S) uint8 with ids 0..grid^2 - 1.

    K-means of grey level and position from a grid of centres, where a pixel chooses among the nine centres around its
    cell of the grid. Superpixels need not be connected, and may be empty.

    Args:
        images: (B, 1, S, S) uint8.
        grid: Centres per side, at most 16.
        compactness: Weight of a distance of one grid spacing against grey levels, which count 0 to 100 as CIELAB's L.
        iterations: Of assignment and update.
    """
    count, side = len(images), images.shape[-1]
    along = torch.arange(side, device=images.device)
    home = along * grid // side
    position = along * (compactness * grid / side)
    features = torch.stack(
        [
            images[:, 0].float() * (100 / 255),
            position[:, None].expand(count, side, side),
            position.expand(count, side, side),
        ],
        dim=1,
    ).flatten(2)  # (B, 3, S * S)
    steps = torch.tensor([-1, 0, 1], device=images.device)
    near = (home[:, None] + steps).clamp(0, grid - 1)  # (S, 3)
    candidates = near[:, None, :, None] * grid + near[None, :, None, :]  # (S, S, 3, 3)
    candidates = candidates.flatten(2).permute(2, 0, 1).flatten(1)  # (9, S * S)

    labels = (home[:, None] * grid + home).flatten().expand(count, -1)  # (B, S * S)
    centres = features.new_zeros(count, 3, grid**2)
    for _ in range(iterations):
        centres = _means(features, labels, centres)
        nearest = torch.full_like(features[:, 0], math.inf)
        for candidate in candidates:
            distance = (features - centres[:, :, candidate]).square_().sum(dim=1)
            labels = torch.where(distance < nearest, candidate, labels)
            nearest = torch.minimum(distance, nearest)
    return labels.to(torch.uint8).view(count, side, side)


def kmeans(
    points: Tensor, count: int, generator: torch.Generator, iterations: int = 200, tolerance: float = 1e-6
) -> Tensor:
    """Cluster (N,) int64 of each point by Lloyd's algorithm from greedy k-means++ (Arthur and Vassilvitskii 2007).

    A cluster that loses all its points keeps its centre. Whether the sum of squared distances has settled is asked of
    the device once per iteration.

    Args:
        points: (N, D) float32, N at least 1.
        count: Number of clusters, at most N.
        generator: On the CPU, so that the draws are the same on every device.
        iterations: At most.
        tolerance: Change of the sum of squared distances below which it has settled.
    """
    with torch.autocast(points.device.type, enabled=False):
        centres = _plus_plus(points, count, generator)
        previous = points.new_full((), math.inf)
        for _ in range(iterations):
            distances, labels = _squared_distances(points, centres).min(dim=1)
            inertia = distances.sum()
            if (previous - inertia).abs() < tolerance:
                break
            previous = inertia
            centres = _means(points.T[None], labels[None], centres.T[None])[0].T
        return labels


def _plus_plus(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(K, D) centres: each the best of 2 + ln K points drawn by their squared distance to the nearest so far."""
    draws = torch.rand(count, 2 + int(math.log(count)), generator=generator).to(points.device, non_blocking=True)
    chosen = [(draws[0, :1] * len(points)).long().clamp(max=len(points) - 1)]
    nearest = _squared_distances(points, points[chosen[0]])[:, 0]
    for shares in draws[1:]:
        cumulated = nearest.double().cumsum(dim=0)
        drawn = torch.searchsorted(cumulated, shares.double() * cumulated[-1], right=True).clamp(max=len(points) - 1)
        remaining = torch.minimum(_squared_distances(points, points[drawn]), nearest[:, None])  # (N, candidates)
        best = remaining.sum(dim=0).argmin()
        chosen.append(drawn[best][None])
        nearest = remaining[:, best]
    return points[torch.cat(chosen)]


def _squared_distances(points: Tensor, centres: Tensor) -> Tensor:
    """(N, K) of points (N, D) and centres (K, D)."""
    squares = points.square().sum(dim=1)[:, None] + centres.square().sum(dim=1)
    return torch.addmm(squares, points, centres.T, alpha=-2).clamp_(min=0)


def _means(features: Tensor, labels: Tensor, empty: Tensor) -> Tensor:
    """Mean (B, D, K) of the features (B, D, N) of each label (B, N); that of `empty` (B, D, K) where it has none."""
    index = labels[:, None]
    sums = torch.zeros_like(empty).scatter_add_(2, index.expand_as(features), features)
    counts = torch.zeros_like(empty[:, :1]).scatter_add_(2, index, torch.ones_like(features[:, :1]))
    return torch.where(counts > 0, sums / counts.clamp(min=1), empty)
