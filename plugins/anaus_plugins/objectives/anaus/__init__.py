"""AnaUS (arXiv:2605.25402): anatomy-aware contrast of regions at several scales, and contextual prediction.

Online and target networks see two views. At each scale the features under K masks drawn from the label map are
contrasted with the target's (Eq. 4 and 5); the online network also predicts the target's features of the views'
overlap from a damaged copy of it (Eq. 6).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import pydantic

from anaus_bench.settings.base import Settings
from anaus_bench.errors import SettingsError
from anaus_bench.settings.fields import CropArea
from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import Need, Objective
from anaus_bench.lazy import F, nn, torch

if TYPE_CHECKING:
    from torch import Tensor

    from anaus_bench.corpus.batch import Batch, Crop, View
    from anaus_bench.nn.encoder import Encoder
    from anaus_bench.nn.regions import RegionSampler

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


class AnaUS(Objective[AnaUSSettings]):
    """Contrasts anatomical regions of two views at several scales and predicts a damaged crop's features.

    Networks: `encoder`, `projectors` and `predictors` by stride; `target_encoder` and `target_projectors`.
    """

    name = "anaus"
    settings_class = AnaUSSettings
    reference = "AnaUS: anatomy-aware self-supervised pre-training for ultrasound, arXiv:2605.25402"
    needs: ClassVar[frozenset[Need]] = frozenset({"masks"})
    masks_become: ClassVar[str] = "the regions that are pooled and contrasted; one region per image is legal"

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the scales in use, coarsest first."""
        return SCALES[: self.settings.scales]

    def finest_stride(self) -> int:
        """The finest of the scales in use."""
        return self.strides[-1]

    def views(self, size: int) -> tuple[View, ...]:
        """BYOL's two recipes with the supplement's crop area.

        Raises:
            SettingsError: The cells of the masks or the patches would not divide the view.
        """
        from anaus_bench.corpus.batch import View

        context, divisors = self.settings.context, {"the coarsest stride": DEEPEST}
        if context.enabled:
            divisors["objective.context.damage.patch"] = context.damage.patch
        if context.enabled and context.pool == "grid":
            divisors["objective.context.grid"] = context.grid
        for what, divisor in divisors.items():
            if size % divisor:
                raise SettingsError(f"view size {size} is no multiple of {divisor} ({what}); change one of them")
        area = self.settings.crop_area
        return View(size, area, blur=1.0, solarise=0.0), View(size, area, blur=0.1, solarise=0.2)

    def build(self, encoder: Encoder, num_classes: int = 0) -> nn.ModuleDict:
        """Online and target networks; the heads take the B * K pooled vectors as rows."""
        from anaus_bench.nn.heads import mlp
        from anaus_bench.nn.momentum import frozen_copy

        settings = self.settings
        projectors, predictors = nn.ModuleDict(), nn.ModuleDict()
        for stride in self.strides:
            shared = str(SCALES[1]) if settings.heads == "shared" and stride < SCALES[1] else None
            projectors[str(stride)] = (
                projectors[shared]
                if shared
                else mlp(encoder.channels[stride], settings.projector_hidden, settings.projection_dim)
            )
            predictors[str(stride)] = (
                predictors[str(DEEPEST)]
                if settings.heads == "shared" and stride != DEEPEST
                else mlp(settings.projection_dim, settings.predictor_hidden, settings.projection_dim)
            )
        return nn.ModuleDict(
            {
                "encoder": encoder,
                "projectors": projectors,
                "predictors": predictors,
                "target_encoder": frozen_copy(encoder),
                "target_projectors": frozen_copy(projectors),
            }
        )

    def loss(self, nets: nn.ModuleDict, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """L_ana + lambda_ctx L_ctx, each summed over the scales.

        Logs both, the contrast of each scale, the mean cosine of positives, the spread of the target's projections and
        the share of usable overlaps.
        """
        generator = torch.Generator().manual_seed(batch.seed)
        loss, logs = self._contrast(nets, batch, generator)
        if self.settings.context.enabled:
            context, context_logs = self._context(nets, batch, generator)
            loss = loss + self.settings.lambda_ctx * context
            logs.update(context_logs)
        return loss, {name: value.detach() for name, value in logs.items()}

    def after_step(self, nets: nn.ModuleDict, progress: float) -> None:
        """Moves target encoder and projectors towards the online ones."""
        from anaus_bench.nn.momentum import momentum_schedule, momentum_update

        momentum = momentum_schedule(self.settings.base_momentum, progress) ** self.settings.momentum_updates
        for name in ("encoder", "projectors"):
            momentum_update(nets[f"target_{name}"], nets[name], momentum)

    def _contrast(
        self, nets: nn.ModuleDict, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """L_ana: Eq. 5 over directions and scales."""
        from anaus_bench.nn.contrast import detcon_nce, gather_images, positive_cosine, region_nce
        from anaus_bench.nn.pooling import embedding_spread

        settings = self.settings
        nce = region_nce if settings.loss == "eq5" else detcon_nce
        directions = ((0, 1), (1, 0)) if settings.symmetric else ((0, 1),)
        needed = sorted({other for _, other in directions} if settings.negatives == "cross" else {0, 1})
        first, second = batch.label_maps
        online, target = self._sampler().draw_pair(first, second, generator)
        predictions = {view: self._predict(nets, batch.views[view], online[view].masks) for view, _ in directions}
        projections = {view: self._project_target(nets, batch.views[view], target[view].masks) for view in needed}
        all_ids = {view: gather_images(target[view].ids)[0] for view in needed}

        logs: dict[str, Tensor] = {}
        cosines: list[Tensor] = []
        for stride in self.strides:
            gathered = {view: gather_images(projections[view][stride]) for view in needed}
            losses = []
            for view, other in directions:
                blocks = (other, view) if settings.negatives == "both" else (other,)
                losses.append(
                    nce(
                        predictions[view][stride],
                        torch.stack([gathered[block][0] for block in blocks]),
                        online[view].ids,
                        torch.stack([all_ids[block] for block in blocks]),
                        settings.temperature,
                        first_image=gathered[other][1],
                    )
                )
                pair = predictions[view][stride].detach(), projections[other][stride]
                cosines.append(positive_cosine(*pair, online[view].ids, target[other].ids))
            logs[f"contrast_stride{stride}"] = torch.stack(losses).sum()
        loss = torch.stack(list(logs.values())).sum()
        logs["contrast"] = loss
        logs["positive_cosine"] = torch.stack(cosines).mean()
        logs["projection_std"] = embedding_spread(projections[1][DEEPEST])
        return loss, logs

    def _context(
        self, nets: nn.ModuleDict, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """L_ctx: distance of the damaged crop's predictions to the intact crop's projections, usable overlaps only."""
        from anaus_plugins.objectives.anaus.damage import damage
        from anaus_bench.corpus.batch import Crop, normalise, overlap_box, resample
        from anaus_bench.distributed.team import divisor
        from anaus_bench.nn.norms import kept_statistics

        settings, recipe = self.settings.context, batch.recipes[0]
        box = overlap_box(batch.crops[0], batch.crops[1])
        usable = is_usable(box, batch.source.shape[-1], settings)
        # An unusable overlap is replaced by view 1's crop, with weight 0, so that shapes do not depend on the draw.
        crop = Crop(torch.where(usable[:, None], box, batch.crops[0].box), torch.zeros_like(usable))
        intact = resample(batch.source.float().div(255), crop, recipe.size, recipe.interpolation)
        seen, hidden = self._context_photometry(intact, batch, generator)
        damaged = damage(seen, **settings.damage.model_dump(), seed=batch.seed)

        masks = self._context_masks(batch, crop, generator)
        kept = () if settings.damaged_statistics else (nets["encoder"], nets["projectors"], nets["predictors"])
        with kept_statistics(*kept):
            predictions = self._predict(nets, normalise(damaged, recipe), masks)
        projections = self._project_target(nets, normalise(hidden, batch.recipes[1]), masks)
        usable = usable.to(intact.device, non_blocking=True)
        loss = torch.stack(
            [
                (distance(predictions[stride], projections[stride], settings.normalize).mean(dim=1) * usable).sum()
                for stride in self.strides
            ]
        ).sum() / divisor(usable.sum())
        return loss, {"context": loss, "usable_overlap": usable.float().mean()}

    def _context_photometry(self, intact: Tensor, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """What is damaged for the online network, and what the target network sees."""
        from anaus_bench.corpus.batch import draw_photometry, photometric
        from anaus_bench.distributed.team import own_rows, world_size

        if self.settings.context.photometric == "none":
            return intact, intact
        if self.settings.context.photometric == "shared":
            drawn = draw_photometry(batch.recipes[0], world_size() * len(intact), generator)
            seen = photometric(intact, drawn.part(own_rows(len(intact))))
            return seen, seen
        return photometric(intact, batch.photometry[0]), photometric(intact, batch.photometry[1])

    def _context_masks(self, batch: Batch, crop: Crop, generator: torch.Generator) -> Mapping[int, Tensor]:
        """Masks of the overlap for both networks: stride -> (B or 1, K, h, w)."""
        from anaus_bench.corpus.batch import resample_labels
        from anaus_bench.nn.pooling import grid_masks

        context, size = self.settings.context, batch.recipes[0].size
        if context.pool == "masks":
            maps = resample_labels(cast("Tensor", batch.source_masks), crop, size)
            return self._sampler().draw(maps, generator).masks
        cells = context.grid if context.pool == "grid" else 1
        masks = grid_masks(cells, size, [size // stride for stride in self.strides], batch.source.device)
        return {stride: masks[size // stride] for stride in self.strides}

    def _sampler(self) -> RegionSampler:
        from anaus_bench.nn.regions import RegionSampler

        settings = self.settings
        return RegionSampler(
            self.strides,
            settings.num_masks,
            settings.pairing,
            settings.weighting,
            settings.masks,
            settings.include_background,
        )

    def _predict(self, nets: nn.ModuleDict, images: Tensor, masks: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Predictions q_s(g_s(h)) of the online network: stride -> (B, K, D)."""
        predictors = cast("nn.ModuleDict", nets["predictors"])
        projections = self._project(nets["encoder"], nets["projectors"], images, masks)
        return {stride: predictors[str(stride)](rows) for stride, rows in projections.items()}

    def _project_target(self, nets: nn.ModuleDict, images: Tensor, masks: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Projections g_s(h) of the target network, without gradients: stride -> (B, K, D)."""
        with torch.no_grad():
            return self._project(nets["target_encoder"], nets["target_projectors"], images, masks)

    def _project(
        self, encoder: nn.Module, projectors: nn.Module, images: Tensor, masks: Mapping[int, Tensor]
    ) -> dict[int, Tensor]:
        from anaus_bench.nn.pooling import mask_pool

        heads = cast("nn.ModuleDict", projectors)
        maps = encoder(images, self.strides)  # one pyramid pass for all scales
        return {stride: heads[str(stride)](mask_pool(maps[stride], masks[stride])) for stride in self.strides}


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


@hookimpl
def anaus_objectives() -> list[type[Objective[Any]]]:
    """The objective of this module."""
    return [AnaUS]
