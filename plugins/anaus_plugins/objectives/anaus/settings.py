"""Settings of AnaUS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import pydantic

from anaus_bench.settings.base import Settings
from anaus_bench.settings.fields import CropArea

SCALES = (32, 16, 8, 4)  # strides, coarsest first: 7, 14, 28 and 56 cells at 224 pixels
DEEPEST = SCALES[0]


class DamageSettings(Settings):
    """The damage D of Eq. 6: shuffle, then noise, then occlusion; 0 switches a factor off."""

    patch: int = pydantic.Field(
        default=16, ge=1, description="Side of a patch in pixels, dividing the view size; the paper says 'patches' only"
    )
    shuffle: float = pydantic.Field(
        default=0.15, ge=0, le=1, description="alpha: probability that the pixels of a patch are permuted (Table 3)"
    )
    noise: float = pydantic.Field(
        default=0.2, ge=0, description="beta: standard deviation of Gaussian noise on intensities in [0, 1]"
    )
    occlusion: float = pydantic.Field(
        default=0.05, ge=0, le=1, description="gamma: probability that a patch is set to 0"
    )


class ContextSettings(Settings):
    """Contextual prediction: the target's features of the views' overlap from a damaged copy of it."""

    enabled: bool = pydantic.Field(
        default=True, description="Off is the ablation 'w/o CP' of Table 2, and saves two of six passes"
    )
    pool: Literal["grid", "global", "masks"] = pydantic.Field(
        default="grid",
        description="Where features are compared: cells of a grid, the whole crop, or drawn masks; not in the paper",
    )
    grid: int = pydantic.Field(
        default=4, ge=1, le=16, description="Cells per side of the grid of `pool: grid`, dividing the view size"
    )
    normalize: bool = pydantic.Field(
        default=True,
        description="L2-normalise both sides: 2 - 2 cos per vector; false is the squared distance as printed",
    )
    photometric: Literal["views", "shared", "none"] = pydantic.Field(
        default="views",
        description="Photometry of the overlap: view 1's for the damaged and view 2's for the intact crop; "
        "one new draw of view 1's recipe for both (the authors' code); or none",
    )
    min_area: float = pydantic.Field(
        default=0.05, ge=0, le=1, description="Least share of the packed image that an overlap must have to count"
    )
    min_side: int = pydantic.Field(
        default=32, ge=1, description="Least side in packed pixels that an overlap must have to count"
    )
    damaged_statistics: bool = pydantic.Field(
        default=False,
        description="Whether damaged crops move the running statistics of the batch norms too (the authors' code), "
        "which are exported; the paper does not say",
    )
    damage: DamageSettings = pydantic.Field(default=DamageSettings(), description="The damage D of Eq. 6")


class AnaUSSettings(Settings):
    """Defaults are the paper's text, and where it is silent the choice named in the description.

    `official` is the authors' code where it runs. It does not reproduce what is a mistake there: the overlap with
    swapped axes, other damage functions applied after normalisation and at times to the target, new damage per scale,
    and masks of the views on the overlap.
    """

    symmetric: bool = pydantic.Field(default=True, description="Contrast view 2 with the target's view 1 too (Table 2)")
    scales: int = pydantic.Field(
        default=4, ge=1, le=4, description="S, the coarsest of 7, 14, 28 and 56 cells at 224 pixels (Table 3)"
    )
    num_masks: int = pydantic.Field(default=16, ge=1, description="K, masks drawn per image, with replacement (Fig. 5)")
    temperature: float = pydantic.Field(default=0.1, gt=0, description="tau of Eq. 5 (Table 3)")
    lambda_ctx: float = pydantic.Field(default=1.0, ge=0, description="Weight of the context loss (Table 3)")
    loss: Literal["eq5", "detcon"] = pydantic.Field(
        default="eq5",
        description="Eq. 5, or DetCon-B's cross-entropy (the authors' code); equal if ids are unique in each image",
    )
    negatives: Literal["both", "cross"] = pydantic.Field(
        default="both", description="Negatives from both views (the authors' code), or from the opposite view only"
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
    include_background: bool = pydantic.Field(
        default=True, description="Whether id 0 is drawn where an image has another id; the paper does not say"
    )
    heads: Literal["per_scale", "shared"] = pydantic.Field(
        default="per_scale",
        description="g_s and q_s per scale (paper); or one projector for all but the coarsest scale and "
        "one predictor for all (the authors' code)",
    )
    projector_hidden: int = pydantic.Field(default=1024, ge=1, description="Hidden width of the projectors")
    predictor_hidden: int = pydantic.Field(default=4096, ge=1, description="Hidden width of the predictors")
    projection_dim: int = pydantic.Field(default=256, ge=1, description="Width of projections and predictions")
    base_momentum: float = pydantic.Field(
        default=0.99,
        ge=0,
        le=1,
        description="m0 of the target's moving average, raised to 1 along a half cosine (the authors' configuration)",
    )
    momentum_updates: int = pydantic.Field(
        default=1,
        ge=1,
        description="Moving-average updates per step, made as one of momentum m^n; the authors' code: one per scale",
    )
    crop_area: CropArea = pydantic.Field(
        default=(0.2, 1.0), description="Range of a crop's share of the image (supplement)"
    )
    context: ContextSettings = pydantic.Field(default=ContextSettings(), description="Contextual prediction")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
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
        "demo": {"projector_hidden": 256, "predictor_hidden": 512, "projection_dim": 128, "context": {"min_side": 16}},
        "tiny": {
            "num_masks": 4,
            "projector_hidden": 32,
            "predictor_hidden": 32,
            "projection_dim": 16,
            "context": {"min_side": 8},
        },
    }
