"""Losses between embeddings of whole images: NT-Xent, SupCon, queue contrast, VICReg and Barlow Twins.

Embeddings are (B, D), in any float type; everything is computed in float32 whatever the autocast. With several
processes each one takes the mean over its own rows against the rows of all, and gradients flow through the gathered
rows, so that the mean over the processes of losses and of gradients is that of one process on the whole batch.
"""

from __future__ import annotations

import torch
from lightly.loss import NTXentLoss
from torch import Tensor
from torch.nn import functional as F

from anaus_bench.distributed.group import gather_rows, rank
from anaus_bench.nn.pooling import embedding_spread

VARIANCE_EPS = 1e-4  # VICReg Eq. 2
STANDARD_EPS = 1e-5  # that of batch norm, with which Barlow Twins standardises


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """SimCLR's loss (Chen et al. 2020, Eq. 1), mean over the 2B rows; rows are normalised here."""
    loss = NTXentLoss(temperature, gather_distributed=torch.distributed.is_available())
    with torch.autocast(first.device.type, enabled=False):
        result: Tensor = loss(first.float(), second.float())
    return result


def sup_con(first: Tensor, second: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Supervised contrast (Khosla et al. 2020, Eq. 2: the sum over positives outside the logarithm) of every row.

    Positives of a row are all other rows of its label, its own other view among them. A row without a label has that
    view alone: with no label at all the mean is NT-Xent.

    Args:
        first: (B, D) embeddings of the first views; normalised here.
        second: (B, D) those of the second.
        labels: (B,) int64; negative = none.
        temperature: T.

    Returns:
        (2, B) float32 losses.
    """
    with torch.autocast(first.device.type, enabled=False):
        rows = F.normalize(torch.stack([first, second]).float(), dim=2)  # (2, B, D)
        count = labels.numel()
        private = -1 - rank() * count - torch.arange(count, device=labels.device)
        ids = torch.where(labels < 0, private, labels).expand(2, -1)  # (2, B)
        everything, first_view = gather_rows(rows, gradients=True)  # (2W, B, D)
        logits = rows.flatten(0, 1) @ everything.flatten(0, 1).T / temperature  # (2B, 2WB)
        same = ids.flatten()[:, None] == gather_rows(ids)[0].flatten()
        own = torch.arange(2 * count, device=labels.device)
        itself = F.one_hot(own + first_view * count, logits.shape[1]).bool()
        positives = same & ~itself
        log_sum = logits.masked_fill(itself, -torch.inf).logsumexp(dim=1)
        mean_positive = logits.masked_fill(~positives, 0).sum(dim=1) / positives.sum(dim=1)
        return (log_sum - mean_positive).view(2, -1)


def queue_nce(queries: Tensor, keys: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """InfoNCE of MoCo (He et al. 2020, Eq. 1): a query's own key against the queue, mean over the queries.

    Args:
        queries: (B, D); normalised here.
        keys: (B, D) unit rows, without gradients.
        negatives: (K, D) unit rows, without gradients.
        temperature: tau.
    """
    with torch.autocast(queries.device.type, enabled=False):
        queries = F.normalize(queries.float(), dim=1)
        positive = (queries * keys.float()).sum(dim=1, keepdim=True)
        logits = torch.cat([positive, queries @ negatives.float().T], dim=1) / temperature  # (B, 1 + K)
        return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))


def vicreg_terms(first: Tensor, second: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Invariance, variance and covariance of VICReg (Bardes et al. 2022, Eq. 1 to 6), each unscaled.

    As in its code, the invariance is the mean over rows and dimensions, the variance that of both views, the
    covariance their sum.

    Args:
        first: (B, D), B at least 2.
        second: (B, D).
        weights: (B,) factors of the rows' invariance (IVPP), or None.
    """
    with torch.autocast(first.device.type, enabled=False):
        first, second = first.float(), second.float()
        distances = (first - second).square().mean(dim=1)
        invariance = (distances if weights is None else weights * distances).mean()
        views = [gather_rows(view, gradients=True)[0] for view in (first, second)]
        variance = torch.stack([F.relu(1 - (view.var(dim=0) + VARIANCE_EPS).sqrt()).mean() for view in views]).mean()
        return invariance, variance, torch.stack([_covariance(view) for view in views]).sum()


def barlow_twins(first: Tensor, second: Tensor, redundancy: float, weights: Tensor | None = None) -> Tensor:
    """Barlow Twins (Zbontar et al. 2021, Eq. 1), with IVPP's weighted standardisation.

    Args:
        first: (B, D), B at least 2.
        second: (B, D).
        redundancy: lambda, the factor of the off-diagonal terms.
        weights: (B,) of the rows in mean and variance; None weighs all alike.
    """
    with torch.autocast(first.device.type, enabled=False):
        weights = first.new_ones(len(first)) if weights is None else weights
        weights, _ = gather_rows(weights.float())
        gathered = [gather_rows(view.float(), gradients=True)[0] for view in (first, second)]
        views = [_standardise(rows, weights) for rows in gathered]
        correlation = views[0].T @ views[1] / len(weights)
        on_diagonal = (correlation.diagonal() - 1).square().sum()
        return on_diagonal + redundancy * (correlation.square().sum() - correlation.diagonal().square().sum())


@torch.no_grad()
def pair_logs(first: Tensor, second: Tensor) -> dict[str, Tensor]:
    """What to watch in pairs of embeddings (B, D): cosine of the pairs, how often a pair is nearest, spread."""
    first, second = F.normalize(first.float(), dim=1), F.normalize(second.float(), dim=1)
    similarity = first @ second.T
    nearest = similarity.argmax(dim=1) == torch.arange(len(first), device=first.device)
    return {
        "positive_cosine": similarity.diagonal().mean(),
        "contrast_top1": nearest.float().mean(),
        "projection_std": embedding_spread(first),
    }


def _covariance(rows: Tensor) -> Tensor:
    """Sum of the squared off-diagonal entries of the covariance matrix of rows (N, D), divided by D.

    The squares of X^T X and of X X^T sum to the same, and the smaller of the two is built.
    """
    centred = rows - rows.mean(dim=0)
    product = centred @ centred.T if len(rows) < rows.shape[1] else centred.T @ centred
    variances = centred.square().sum(dim=0)
    return (product.square().sum() - variances.square().sum()) / ((len(rows) - 1) ** 2 * rows.shape[1])


def _standardise(rows: Tensor, weights: Tensor) -> Tensor:
    """Rows less their weighted mean, over the weighted standard deviation with N - 1 of the N rows of weight > 0."""
    total, used = weights.sum(), (weights > 0).sum()
    mean = (weights[:, None] * rows).sum(dim=0) / total
    squares = (weights[:, None] * (rows - mean).square()).sum(dim=0)
    variance = squares * used / ((used - 1).clamp(min=1) * total)
    return (rows - mean) / (variance + STANDARD_EPS).sqrt()
