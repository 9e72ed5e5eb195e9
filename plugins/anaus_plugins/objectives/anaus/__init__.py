"""AnaUS (arXiv:2605.25402): anatomy-aware contrast of regions at several scales, and contextual prediction.

Online and target networks see two views. At each scale the features under K masks drawn from the label map are
contrasted with the target's (Eq. 4 and 5); the online network also predicts the target's features of the views'
overlap from a damaged copy of it (Eq. 6).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, cast

from anaus_bench.errors import SettingsError
from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import Need, Objective
from anaus_bench.lazy import nn, torch
from anaus_plugins.objectives.anaus.context import distance, is_usable
from anaus_plugins.objectives.anaus.settings import DEEPEST, SCALES, AnaUSSettings

if TYPE_CHECKING:
    from torch import Tensor

    from anaus_bench.corpus.batch import Batch
    from anaus_bench.corpus.view import Crop, View
    from anaus_bench.nn.encoder import Encoder
    from anaus_bench.nn.regions import RegionSampler


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
        from anaus_bench.corpus.view import View

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
        from anaus_bench.distributed.group import gather_rows
        from anaus_bench.nn.contrast import detcon_nce, positive_cosine, region_nce
        from anaus_bench.nn.pooling import embedding_spread

        settings = self.settings
        nce = region_nce if settings.loss == "eq5" else detcon_nce
        directions = ((0, 1), (1, 0)) if settings.symmetric else ((0, 1),)
        needed = sorted({other for _, other in directions} if settings.negatives == "cross" else {0, 1})
        first, second = batch.label_maps
        online, target = self._sampler().draw_pair(first, second, generator)
        predictions = {view: self._predict(nets, batch.views[view], online[view].masks) for view, _ in directions}
        projections = {view: self._project_target(nets, batch.views[view], target[view].masks) for view in needed}
        all_ids = {view: gather_rows(target[view].ids)[0] for view in needed}

        logs: dict[str, Tensor] = {}
        cosines: list[Tensor] = []
        for stride in self.strides:
            gathered = {view: gather_rows(projections[view][stride]) for view in needed}
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
        from anaus_bench.corpus.draw import overlap_box
        from anaus_bench.corpus.pixels import normalise, resample
        from anaus_bench.corpus.view import Crop
        from anaus_bench.distributed.group import divisor
        from anaus_plugins.objectives.anaus.context import kept_statistics
        from anaus_plugins.objectives.anaus.damage import damage

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
        from anaus_bench.corpus.draw import draw_photometry
        from anaus_bench.corpus.pixels import photometric
        from anaus_bench.distributed.group import own_rows, world_size

        if self.settings.context.photometric == "none":
            return intact, intact
        if self.settings.context.photometric == "shared":
            drawn = draw_photometry(batch.recipes[0], world_size() * len(intact), generator)
            seen = photometric(intact, drawn.part(own_rows(len(intact))))
            return seen, seen
        return photometric(intact, batch.photometry[0]), photometric(intact, batch.photometry[1])

    def _context_masks(self, batch: Batch, crop: Crop, generator: torch.Generator) -> Mapping[int, Tensor]:
        """Masks of the overlap for both networks: stride -> (B or 1, K, h, w)."""
        from anaus_bench.corpus.pixels import resample_labels
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


@hookimpl
def anaus_objectives() -> list[type[Objective[Any]]]:
    """The objective of this module."""
    return [AnaUS]
