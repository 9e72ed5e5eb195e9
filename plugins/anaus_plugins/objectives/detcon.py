"""DetCon (Henaff et al. 2021, arXiv:2103.10957): features pooled under masks are contrasted between two views."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pydantic

from anaus_bench.errors import SettingsError
from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import Need, Objective
from anaus_bench.lazy import nn, torch
from anaus_bench.settings.base import Settings
from anaus_bench.settings.fields import CropArea

if TYPE_CHECKING:
    from torch import Tensor

    from anaus_bench.corpus.batch import Batch
    from anaus_bench.corpus.view import View
    from anaus_bench.nn.encoder import Encoder
    from anaus_bench.nn.regions import Regions

STRIDE = 32
WIDTHS = {"b": (4096, 256), "s": (2048, 128)}  # hidden and last layer of the heads, those of BYOL and of SimCLR


class DetConSettings(Settings):
    """Defaults are the paper's, with the momentum of BYOL's 300-epoch schedule."""

    variant: Literal["b", "s"] = pydantic.Field(
        "b", description="b: BYOL's target network and predictor; s: SimCLR's one network for both views"
    )
    num_masks: int = pydantic.Field(16, ge=1, description="Masks drawn per view, with replacement")
    temperature: float = pydantic.Field(0.1, gt=0, description="tau of the softmax")
    weighting: Literal["uniform", "coverage"] = pydantic.Field(
        "uniform", description="Ids of a view are drawn uniformly (DetCon), or by the area they cover (AnaUS)"
    )
    masks: Literal["hard", "soft"] = pydantic.Field(
        "hard", description="A cell belongs to the id that covers most of it (DetCon), or to each by its share (AnaUS)"
    )
    hidden_dim: int | None = pydantic.Field(
        None, ge=1, description="Hidden width of the heads; none: 4096 for variant b, 2048 for s"
    )
    projection_dim: int | None = pydantic.Field(
        None, ge=1, description="Width of projections and predictions; none: 256 for variant b, 128 for s"
    )
    base_momentum: float = pydantic.Field(
        0.99,
        ge=0,
        le=1,
        description="Momentum of the target network (variant b), raised to 1 along a half cosine: 0.99 for up to 300 "
        "epochs, 0.996 for 1000",
    )
    crop_area: CropArea = pydantic.Field((0.08, 1.0), description="Range of a crop's share of the image (BYOL)")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "native": {"base_momentum": 0.996},
        "demo": {"hidden_dim": 512, "projection_dim": 128},
        "tiny": {"num_masks": 4, "hidden_dim": 32, "projection_dim": 16},
    }


class DetCon(Objective[DetConSettings]):
    """Features pooled under masks, contrasted between two views.

    Networks: `encoder`, `projector`; for variant b also `predictor`, `target_encoder`, `target_projector`.
    """

    name = "detcon"
    settings_class = DetConSettings
    reference = "Henaff et al., Efficient visual pretraining with contrastive detection, ICCV 2021, arXiv:2103.10957"
    needs: ClassVar[frozenset[Need]] = frozenset({"masks"})
    masks_become: ClassVar[str] = "the regions that are pooled and contrasted; one region per image is legal"
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "native": {
            "batch": 4096,
            "epochs": 1000,
            "base_lr": 0.2,
            "weight_decay": 1.5e-6,
            "warmup_epochs": 10,
            "init": "random",
        }
    }

    def views(self, size: int) -> tuple[View, ...]:
        """BYOL's two recipes.

        Raises:
            SettingsError: The cells of the masks would not divide the view.
        """
        from anaus_bench.corpus.view import View

        if size % STRIDE:
            raise SettingsError(f"view size {size} is no multiple of {STRIDE}, the stride of the masks; change it")
        area = self.settings.crop_area
        return View(size, area, blur=1.0, solarise=0.0), View(size, area, blur=0.1, solarise=0.2)

    def build(self, encoder: Encoder, num_classes: int = 0) -> nn.ModuleDict:
        """The heads take the B * M pooled vectors as rows; the last layer of variant b's has no bias, as BYOL's."""
        from anaus_bench.nn.heads import mlp
        from anaus_bench.nn.momentum import frozen_copy

        settings, (hidden, width) = self.settings, WIDTHS[self.settings.variant]
        hidden, width = settings.hidden_dim or hidden, settings.projection_dim or width
        if settings.variant == "s":
            return nn.ModuleDict({"encoder": encoder, "projector": mlp(encoder.feature_dim, hidden, width)})
        projector = mlp(encoder.feature_dim, hidden, width, out_bias=False)
        return nn.ModuleDict(
            {
                "encoder": encoder,
                "projector": projector,
                "predictor": mlp(width, hidden, width, out_bias=False),
                "target_encoder": frozen_copy(encoder),
                "target_projector": frozen_copy(projector),
            }
        )

    def loss(self, nets: nn.ModuleDict, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of view 1 to view 2, plus that of view 2 to view 1, all other regions as negatives.

        Each view draws its own masks, the same for both networks. An image whose views share no id adds 0.
        """
        from anaus_bench.distributed.group import gather_rows
        from anaus_bench.nn.contrast import detcon_nce, positive_cosine
        from anaus_bench.nn.pooling import embedding_spread

        generator = torch.Generator().manual_seed(batch.seed)
        regions = [self._draw(label_map, generator) for label_map in batch.label_maps]
        anchors = [self._project(nets, view, drawn) for view, drawn in zip(batch.views, regions, strict=True)]
        targets = anchors
        if self.settings.variant == "b":
            anchors = [nets["predictor"](rows) for rows in anchors]
            with torch.no_grad():
                targets = [
                    self._project(nets, view, drawn, "target_")
                    for view, drawn in zip(batch.views, regions, strict=True)
                ]
        (first, start), (second, _) = self._gather(targets[0]), self._gather(targets[1])
        candidates = torch.stack([first, second])
        ids = torch.stack([gather_rows(drawn.ids)[0] for drawn in regions])
        tau = self.settings.temperature
        loss = detcon_nce(anchors[0], candidates.flip(0), regions[0].ids, ids.flip(0), tau, start)
        loss = loss + detcon_nce(anchors[1], candidates, regions[1].ids, ids, tau, start)

        own = [drawn.ids for drawn in regions]
        shared = (own[0][:, :, None] == own[1][:, None]).any(dim=2)
        logs = {
            "positive_cosine": positive_cosine(anchors[0].detach(), targets[1].detach(), *own),
            "projection_std": embedding_spread(targets[0]),
            "anchors_with_positive": shared.float().mean(),
        }
        return loss, logs

    def after_step(self, nets: nn.ModuleDict, progress: float) -> None:
        """Moves target encoder and projector of variant b towards the online ones."""
        from anaus_bench.nn.momentum import momentum_schedule, momentum_update

        if self.settings.variant == "b":
            momentum = momentum_schedule(self.settings.base_momentum, progress)
            for name in ("encoder", "projector"):
                momentum_update(nets[f"target_{name}"], nets[name], momentum)

    def _draw(self, label_map: Tensor, generator: torch.Generator) -> Regions:
        from anaus_bench.nn.regions import RegionSampler

        settings = self.settings
        sampler = RegionSampler((STRIDE,), settings.num_masks, weighting=settings.weighting, masks=settings.masks)
        return sampler.draw(label_map, generator)

    def _project(self, nets: nn.ModuleDict, images: Tensor, regions: Regions, network: str = "") -> Tensor:
        """Projections (B, M, D) of the drawn regions by the online or the `target_` network."""
        from anaus_bench.nn.pooling import mask_pool

        maps = nets[f"{network}encoder"](images, (STRIDE,))[STRIDE]
        rows: Tensor = nets[f"{network}projector"](mask_pool(maps, regions.masks[STRIDE]))
        return rows

    def _gather(self, rows: Tensor) -> tuple[Tensor, int]:
        """Rows of all processes, and the position of the first of this one's; variant s keeps their gradients."""
        from anaus_bench.distributed.group import gather_rows

        return gather_rows(rows, gradients=self.settings.variant == "s")


@hookimpl
def anaus_objectives() -> list[type[Objective[Any]]]:
    """The objective of this module."""
    return [DetCon]
