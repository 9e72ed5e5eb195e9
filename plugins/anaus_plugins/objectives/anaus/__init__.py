"""AnaUS (arXiv:2605.25402): anatomy-aware contrast of regions at several scales, and contextual prediction.

Online and target networks see two views. At each scale the features under K masks drawn from the label map are
contrasted with the target's (Eq. 4 and 5); the online network also predicts the target's features of the views'
overlap from a damaged copy of it (Eq. 6, `context`). What only the authors' code does is in `official`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from anaus_bench.errors import SettingsError
from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import Need, Objective
from anaus_bench.lazy import nn, torch
from anaus_plugins.objectives.anaus.official import AnaUSSettings, share_heads
from anaus_plugins.objectives.anaus.settings import SCALES

if TYPE_CHECKING:
    from torch import Tensor

    from anaus_bench.corpus.batch import Batch
    from anaus_bench.corpus.view import View
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
        from anaus_bench.corpus.view import Blur, Jitter, Solarise, View

        context, divisors = self.settings.context, {"the coarsest stride": SCALES[0]}
        if context.enabled:
            divisors["objective.context.damage.patch"] = context.damage.patch
        if context.enabled and context.pool == "grid":
            divisors["objective.context.grid"] = context.grid
        for what, divisor in divisors.items():
            if size % divisor:
                raise SettingsError(f"view size {size} is no multiple of {divisor} ({what}); change one of them")
        area = self.settings.crop_area
        return View(size, area, (Jitter(), Blur())), View(size, area, (Jitter(), Blur(0.1), Solarise(0.2)))

    def build(self, encoder: Encoder, num_classes: int = 0) -> nn.ModuleDict:
        """Online and target networks; the heads take the B * K pooled vectors as rows."""
        from anaus_bench.nn.heads import mlp
        from anaus_bench.nn.momentum import frozen_copy

        settings, projectors, predictors = self.settings, nn.ModuleDict(), nn.ModuleDict()
        width = settings.projection_dim
        for stride in self.strides:
            projectors[str(stride)] = mlp(encoder.channels[stride], settings.projector_hidden, width)
            predictors[str(stride)] = mlp(width, settings.predictor_hidden, width)
        if settings.heads == "shared":
            share_heads(projectors, predictors)
        target = {"target_encoder": frozen_copy(encoder), "target_projectors": frozen_copy(projectors)}
        return nn.ModuleDict({"encoder": encoder, "projectors": projectors, "predictors": predictors, **target})

    def loss(self, nets: nn.ModuleDict, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """L_ana + lambda_ctx L_ctx, each summed over the scales.

        Logs both, the contrast of each scale, the mean cosine of positives, the spread of the target's projections and
        the share of usable overlaps.
        """
        from anaus_plugins.objectives.anaus.context import context_loss

        sampler, generator = self._sampler(), torch.Generator().manual_seed(batch.seed)
        loss, logs = self._contrast(nets, batch, sampler, generator)
        if self.settings.context.enabled:
            context, context_logs = context_loss(nets, batch, self.settings.context, sampler, generator)
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
        self, nets: nn.ModuleDict, batch: Batch, sampler: RegionSampler, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """L_ana: Eq. 5 over directions and scales."""
        from anaus_bench.distributed.group import gather_rows
        from anaus_bench.nn.contrast import detcon_nce, positive_cosine, region_nce
        from anaus_bench.nn.pooling import embedding_spread
        from anaus_plugins.objectives.anaus.networks import predict, project_target

        settings = self.settings
        nce = region_nce if settings.loss == "eq5" else detcon_nce
        directions = ((0, 1), (1, 0)) if settings.symmetric else ((0, 1),)
        needed = sorted({other for _, other in directions} if settings.negatives == "cross" else {0, 1})
        first, second = batch.label_maps
        online, target = sampler.draw_pair(first, second, generator)
        predictions = {view: predict(nets, batch.views[view], online[view].masks) for view, _ in directions}
        projections = {view: project_target(nets, batch.views[view], target[view].masks) for view in needed}
        all_ids = {view: gather_rows(target[view].ids)[0] for view in needed}

        logs: dict[str, Tensor] = {}
        cosines: list[Tensor] = []
        for stride in self.strides:
            gathered = {view: gather_rows(projections[view][stride]) for view in needed}
            losses = []
            for view, other in directions:
                blocks = (other, view) if settings.negatives == "both" else (other,)
                anchors, own = predictions[view][stride], online[view].ids
                candidates = torch.stack([gathered[block][0] for block in blocks])
                ids = torch.stack([all_ids[block] for block in blocks])
                losses.append(nce(anchors, candidates, own, ids, settings.temperature, gathered[other][1]))
                cosines.append(positive_cosine(anchors.detach(), projections[other][stride], own, target[other].ids))
            logs[f"contrast_stride{stride}"] = torch.stack(losses).sum()
        loss = torch.stack(list(logs.values())).sum()
        logs["contrast"] = loss
        logs["positive_cosine"] = torch.stack(cosines).mean()
        logs["projection_std"] = embedding_spread(projections[1][SCALES[0]])
        return loss, logs

    def _sampler(self) -> RegionSampler:
        from anaus_bench.nn.regions import RegionSampler

        settings = self.settings
        drawn = settings.pairing, settings.weighting, settings.masks
        return RegionSampler(self.strides, settings.num_masks, *drawn, settings.include_background)


@hookimpl
def anaus_objectives() -> list[type[Objective[Any]]]:
    """The objective of this module."""
    return [AnaUS]
