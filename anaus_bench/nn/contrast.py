"""Contrastive losses between regions: AnaUS Eq. 5 and DetCon-B (Henaff et al. 2021, arXiv:2103.10957).

Shapes: anchors (B, K, D) are the predictions of one view. Candidates (V, U, K, D) are the target projections of all U
images of all processes; V = 0 is the other view, V = 1 the anchors' own view, which may be left out. Rows are
normalised here, and everything is float32 whatever the autocast.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from anaus_bench.distributed.group import divisor

REMOVED = -1e9  # a logit that adds nothing; finite, so that a row of nothing else has finite gradients


def region_nce(
    anchors: Tensor,
    candidates: Tensor,
    anchor_ids: Tensor,
    candidate_ids: Tensor,
    temperature: float,
    first_image: int = 0,
) -> Tensor:
    """Eq. 5: one positive against the negatives, mean over the anchors (of all processes, see `divisor`).

    The positive of an anchor is its own id in the other view of its image. Negatives are all targets of another
    (image, id); each (image, id, view) counts once, however often its id was drawn. An anchor whose id was not drawn in
    the other view (independent draws only) is left out of the mean; without any anchor the loss is 0. An anchor without
    negatives has loss 0.

    Args:
        anchors: (B, K, D).
        candidates: (V, U, K, D).
        anchor_ids: (B, K).
        candidate_ids: (V, U, K).
        temperature: tau.
        first_image: Position of the anchors' first image among the U images.
    """
    with torch.autocast(anchors.device.type, enabled=False):
        logits = _logits(anchors, candidates, temperature)
        own, same_id = _own_image(logits, anchor_ids, candidate_ids, first_image)
        positive, has_positive = _mean_positive(own, same_id)
        repeats = (candidate_ids[..., :, None] == candidate_ids[..., None, :]).sum(dim=-1)  # (V, U, K)
        logits.sub_(repeats.log())
        own.masked_fill_(same_id, REMOVED)
        negatives = logits.flatten(2).logsumexp(dim=2)  # (B, K)
        losses = F.softplus(negatives - positive)  # = -log(e^p / (e^p + sum of e^n))
        return (losses * has_positive).sum() / divisor(has_positive.sum())


def detcon_nce(
    anchors: Tensor,
    candidates: Tensor,
    anchor_ids: Tensor,
    candidate_ids: Tensor,
    temperature: float,
    first_image: int = 0,
) -> Tensor:
    """DetCon-B's cross-entropy of one direction, mean over all anchors; arguments as those of `region_nce`.

    All draws of the anchor's id in the other view share the label, and those in its own view are removed. An anchor
    weighs 1 / (draws of its id among the anchors of its image), and 0 without a positive; the mean divides by the
    number of anchors all the same.
    """
    with torch.autocast(anchors.device.type, enabled=False):
        logits = _logits(anchors, candidates, temperature)
        own, same_id = _own_image(logits, anchor_ids, candidate_ids, first_image)
        positive, has_positive = _mean_positive(own, same_id)
        own[:, 1:].masked_fill_(same_id[:, 1:], REMOVED)
        losses = logits.flatten(2).logsumexp(dim=2) - positive  # (B, K)
        repeats = (anchor_ids[:, :, None] == anchor_ids[:, None, :]).sum(dim=2)
        return (losses * has_positive / repeats).mean()


def positive_cosine(anchors: Tensor, candidates: Tensor, anchor_ids: Tensor, candidate_ids: Tensor) -> Tensor:
    """Mean cosine of anchors (B, K, D) and their positives among candidates (B, K, D); a scalar to log."""
    cosines = F.normalize(anchors.float(), dim=2) @ F.normalize(candidates.float(), dim=2).transpose(1, 2)
    same_id = anchor_ids[:, :, None] == candidate_ids[:, None, :]
    return (cosines * same_id).sum() / same_id.sum().clamp(min=1)


def _logits(anchors: Tensor, candidates: Tensor, temperature: float) -> Tensor:
    """(B, K, V, U, K) scaled cosines."""
    queries = F.normalize(anchors.float(), dim=-1).flatten(0, 1) / temperature
    keys = F.normalize(candidates.float(), dim=-1).flatten(0, 2)
    return (queries @ keys.T).view(*anchors.shape[:2], *candidates.shape[:3])


def _own_image(logits: Tensor, anchor_ids: Tensor, candidate_ids: Tensor, first_image: int) -> tuple[Tensor, Tensor]:
    """The logits of an anchor's own image, a view (K, V, K, B) into `logits`, and where its ids are the anchor's."""
    own = slice(first_image, first_image + len(anchor_ids))
    same_id = anchor_ids[None, :, :, None] == candidate_ids[:, own, None, :]  # (V, B, K, K)
    return logits[:, :, :, own].diagonal(dim1=0, dim2=3), same_id.permute(2, 0, 3, 1)


def _mean_positive(own: Tensor, same_id: Tensor) -> tuple[Tensor, Tensor]:
    """Mean logit (B, K) over the draws of the anchor's id in the other view, and whether there is any (else 0)."""
    positives = same_id[:, 0]  # (K, K, B)
    number = positives.sum(dim=1)
    mean = (own[:, 0] * positives).sum(dim=1) / number.clamp(min=1)
    return mean.T, number.T > 0
