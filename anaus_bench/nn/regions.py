"""Which regions of an image are contrasted: ids drawn from label maps, and their masks on the feature grids.

AnaUS draws one list of ids per image by area, from those visible in both views; DetCon draws for each view uniformly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from anaus_bench.nn.pooling import coverage, draw_ids, majority, soft_masks

MIN_COVERAGE = 1e-3

Grids = dict[int, Tensor]  # side -> label maps (B, side, side) uint8


@dataclass(frozen=True)
class Regions:
    """Drawn regions of one view: ids (B, K) int64 and masks, stride -> (B, K, h, w) float32 in [0, 1]."""

    ids: Tensor
    masks: Mapping[int, Tensor]


@dataclass(frozen=True)
class RegionSampler:
    """Draws regions with replacement, so that images of few structures give K of them too.

    An id that covers less than 0.1 % of a view is not drawn. An image without any id to draw (for `shared`: whose views
    have no id in common) gets K times the whole view.

    Attributes:
        strides: Strides of the feature maps, coarsest first; they divide the side of the label maps.
        num_masks: K.
        pairing: `shared`: one draw per image for both views and networks; `independent`: one for each.
        weighting: Ids are drawn in proportion to the area they cover (of both views, if shared) or uniformly.
        masks: `soft`: a cell belongs to each id by its share; `hard`: to the id that covers most of it.
        include_background: Whether id 0 is drawn where there is another.
    """

    strides: Sequence[int]
    num_masks: int
    pairing: Literal["shared", "independent"] = "shared"
    weighting: Literal["coverage", "uniform"] = "coverage"
    masks: Literal["soft", "hard"] = "soft"
    include_background: bool = True

    def draw(self, label_maps: Tensor, generator: torch.Generator) -> Regions:
        """Regions of label maps (B, H, H) uint8; `generator` is on the CPU."""
        grids = self._grids(label_maps)
        return self._regions(self._weights(grids), [grids], generator)[0]

    def draw_pair(
        self, first: Tensor, second: Tensor, generator: torch.Generator
    ) -> tuple[list[Regions], list[Regions]]:
        """Regions of two views for the online network, and for the target network."""
        grids = [self._grids(first), self._grids(second)]
        weights = [self._weights(view) for view in grids]
        if self.pairing == "shared":
            in_both = (weights[0] > 0) & (weights[1] > 0)
            regions = self._regions(torch.where(in_both, weights[0] + weights[1], 0.0), grids, generator)
            return regions, regions
        online, target = (
            [self._regions(weight, [view], generator)[0] for weight, view in zip(weights, grids, strict=True)]
            for _ in ("online", "target")
        )
        return online, target

    def _grids(self, label_maps: Tensor) -> Grids:
        """The label maps at full size for soft masks; those of each scale, coarsest first, for hard masks."""
        side = label_maps.shape[-1]
        if self.masks == "soft":
            return {side: label_maps}
        return {side // stride: majority(label_maps, side // stride) for stride in self.strides}

    def _weights(self, grids: Grids) -> Tensor:
        """(B, 256): an id's least coverage over the grids, 0 where it is too small to draw."""
        least = torch.stack([coverage(maps) for maps in grids.values()]).amin(dim=0)
        least = least.where(least >= MIN_COVERAGE, 0.0)
        if not self.include_background:
            least[:, 0] *= (least[:, 1:] == 0).all(dim=1)
        return least

    def _regions(self, weights: Tensor, views: Sequence[Grids], generator: torch.Generator) -> list[Regions]:
        """One draw from `weights` (B, 256), with its masks in each view."""
        nothing = (weights == 0).all(dim=1)
        weights = (weights > 0).float() if self.weighting == "uniform" else weights.clone()
        weights[:, 0] += nothing  # id 0 is then the whole view, see below
        ids = draw_ids(weights, self.num_masks, generator)
        whole = nothing[:, None, None]
        return [
            Regions(ids, self._masks({side: maps.masked_fill(whole, 0) for side, maps in view.items()}, ids))
            for view in views
        ]

    def _masks(self, grids: Grids, ids: Tensor) -> dict[int, Tensor]:
        if self.masks == "hard":
            by_stride = zip(self.strides, grids.items(), strict=True)
            return {stride: soft_masks(maps, ids, (side,))[side] for stride, (side, maps) in by_stride}
        ((side, maps),) = grids.items()
        masks = soft_masks(maps, ids, [side // stride for stride in self.strides])
        return {stride: masks[side // stride] for stride in self.strides}
