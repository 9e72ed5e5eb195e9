"""What only the authors' code does (zhcz328/ANAUS): the switches of the preset `official`, and what they switch on.

The preset is that code where it runs. It does not reproduce what is a mistake there: the overlap with swapped axes,
other damage functions applied after normalisation and at times to the target, new damage per scale, and masks of the
views on the overlap.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import pydantic

from anaus_plugins.objectives.anaus.settings import PaperSettings

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from anaus_bench.corpus.batch import Batch
    from anaus_bench.corpus.view import Crop, View
    from anaus_bench.nn.regions import RegionSampler


class AnaUSSettings(PaperSettings):
    """The paper's settings, and the authors' switches, off by default; those of `context` stand among its choices."""

    loss: Literal["eq5", "detcon"] = pydantic.Field(
        default="eq5",
        description="Eq. 5, or DetCon-B's cross-entropy (the authors' code); equal if ids are unique in each image",
    )
    pairing: Literal["shared", "independent"] = pydantic.Field(
        default="shared",
        description="One draw of ids per image for both views and networks, of those visible in both views; "
        "or a draw of its own for each (the authors' code)",
    )
    weighting: Literal["coverage", "uniform"] = pydantic.Field(
        default="coverage", description="Ids are drawn by the area they cover (paper), or uniformly (the authors' code)"
    )
    masks: Literal["soft", "hard"] = pydantic.Field(
        default="soft",
        description="A cell belongs to each id by its share (paper), or to the largest one (the authors' code)",
    )
    heads: Literal["per_scale", "shared"] = pydantic.Field(
        default="per_scale",
        description="g_s and q_s per scale (paper); or one projector for all but the coarsest scale and "
        "one predictor for all (the authors' code)",
    )
    momentum_updates: int = pydantic.Field(
        default=1,
        ge=1,
        description="Moving-average updates per step, made as one of momentum m^n; the authors' code: one per scale",
    )

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        **PaperSettings.presets,
        "official": {
            "loss": "detcon",
            "pairing": "independent",
            "weighting": "uniform",
            "masks": "hard",
            "heads": "shared",
            "momentum_updates": 4,
            "crop_area": (0.08, 1.0),
            "lambda_ctx": 1 / 256,  # its mean over elements is the printed sum over 256 dimensions / 256
            "context": {"pool": "masks", "normalize": False, "photometric": "shared", "damaged_statistics": True},
        },
    }


def share_heads(projectors: nn.ModuleDict, predictors: nn.ModuleDict) -> None:
    """Of heads by scale, coarsest first, leaves one projector for all but the coarsest and one predictor for all."""
    coarsest, *finer = projectors
    for scale in finer:
        projectors[scale], predictors[scale] = projectors[finer[0]], predictors[coarsest]


def shared_photometry(images: Tensor, recipe: View, generator: torch.Generator) -> Tensor:
    """The images (B, 1, H, H) in [0, 1] after a new draw of the recipe, which both networks see."""
    from anaus_bench.corpus.draw import draw_photometry
    from anaus_bench.corpus.pixels import photometric
    from anaus_bench.distributed.group import own_rows, world_size

    count, own = world_size() * len(images), own_rows(len(images))
    return photometric(images, recipe, draw_photometry(recipe, count, generator, own))


def drawn_masks(batch: Batch, crop: Crop, sampler: RegionSampler, generator: torch.Generator) -> Mapping[int, Tensor]:
    """Masks of regions drawn from the label maps of crops: stride -> (B, K, h, w)."""
    from anaus_bench.corpus.pixels import resample_labels

    label_maps = resample_labels(cast("Tensor", batch.source_masks), crop, batch.recipes[0].size)
    return sampler.draw(label_maps, generator).masks
