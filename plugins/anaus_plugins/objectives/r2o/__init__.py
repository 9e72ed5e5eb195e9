"""R2O (Gokul et al. 2022, arXiv:2208.11821): K-means refines regions in every step, BYOL predicts them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pydantic

from anaus_bench.errors import SettingsError
from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import Objective
from anaus_bench.lazy import F, nn, torch
from anaus_bench.settings.base import Settings
from anaus_bench.settings.fields import CropArea

if TYPE_CHECKING:
    from torch import Tensor

    from anaus_bench.corpus.batch import Batch
    from anaus_bench.corpus.view import View
    from anaus_bench.nn.encoder import Encoder

STRIDE = 32
REFINEMENT_STRIDE = 16  # stage 3: 14 x 14 cells at 224 pixels
MIN_CELLS = 1e-3  # of a region in a view, to be there


class R2OSettings(Settings):
    """Defaults are the paper's text and, where it is silent, the authors' code.

    What is a mistake in that code is not reproduced: views that are always flipped, centres that are not numbers,
    absent regions that enter K-means and batch norm.
    """

    stored_masks: Literal["replace", "prior"] = pydantic.Field(
        "replace",
        description="What masks replace, where there are any. replace: superpixels and K-means, the masks are the "
        "regions; prior: the superpixels, and K-means merges the masks",
    )
    start_clusters: int = pydantic.Field(
        128, ge=1, le=256, description="K of the first step (the authors' configuration)"
    )
    end_clusters: int = pydantic.Field(
        4, ge=1, le=256, description="K of the last step, reached along a quarter cosine: a slow start, a steep end"
    )
    points_per_cluster: int = pydantic.Field(
        4, ge=1, description="Least superpixels of the batch per cluster, which limits K in small batches"
    )
    superpixel_grid: int = pydantic.Field(
        10, ge=1, le=16, description="Superpixels per side of the image: 10 x 10 are the paper's 100"
    )
    compactness: float = pydantic.Field(
        10.0, gt=0, description="Weight of distance in the image against grey level, 0 to 100, of the superpixels"
    )
    lr_clusters: int | None = pydantic.Field(
        None,
        ge=1,
        description="The learning rate is multiplied by K over this, while K-means makes the regions (the authors' "
        "code: 16); null: it is not",
    )
    area_weights: bool = pydantic.Field(
        False, description="Weigh a region by its mean area in the two views (off in the authors' code)"
    )
    hidden_dim: int = pydantic.Field(4096, ge=1, description="Hidden width of projector and predictor (BYOL)")
    projection_dim: int = pydantic.Field(256, ge=1, description="Width of projections and predictions (BYOL)")
    base_momentum: float = pydantic.Field(
        0.99, ge=0, le=1, description="Momentum of the target network, raised to 1 along a half cosine"
    )
    crop_area: CropArea = pydantic.Field((0.08, 1.0), description="Range of a crop's share of the image (BYOL)")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "native": {"points_per_cluster": 1, "lr_clusters": 16},
        "demo": {"hidden_dim": 512, "projection_dim": 128, "start_clusters": 32},
        "tiny": {"hidden_dim": 32, "projection_dim": 16, "superpixel_grid": 4, "start_clusters": 8},
    }


class R2O(Objective[R2OSettings]):
    """BYOL between regions that K-means refines in every step, or of masks.

    Networks: `encoder`, `projector`, `predictor`; `target_encoder`, `target_projector`.

    Attributes:
        num_clusters: K of the step under way, from the progress alone.
    """

    name = "r2o"
    settings_class = R2OSettings
    reference = "Gokul et al., Refine and represent: region-to-object representation learning, 2022, arXiv:2208.11821"
    makes_own_groups: ClassVar[bool] = True
    masks_become: ClassVar[str] = (
        "the regions: in place of superpixels and K-means (objective.stored_masks=replace), or in place of the "
        "superpixels, which K-means then merges (prior); without masks, K-means groups superpixels"
    )
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "native": {
            "batch": 4096,
            "epochs": 300,
            "base_lr": 0.3,
            "weight_decay": 1e-6,
            "warmup_epochs": 3,
            "init": "random",
        }
    }

    def __init__(self, settings: R2OSettings) -> None:
        super().__init__(settings)
        self.num_clusters = settings.start_clusters

    def views(self, size: int) -> tuple[View, ...]:
        """BYOL's two recipes.

        Raises:
            SettingsError: The cells of the masks would not divide the view.
        """
        from anaus_bench.corpus.view import Blur, Jitter, Solarise, View

        if size % STRIDE:
            raise SettingsError(f"view size {size} is no multiple of {STRIDE}, the stride of the masks; change it")
        area = self.settings.crop_area
        return View(size, area, (Jitter(), Blur())), View(size, area, (Jitter(), Blur(0.1), Solarise(0.2)))

    def build(self, encoder: Encoder, num_classes: int = 0) -> nn.ModuleDict:
        """BYOL's networks; the heads take the pooled vectors of all regions as rows."""
        from anaus_bench.nn.heads import mlp
        from anaus_bench.nn.momentum import frozen_copy

        hidden, width = self.settings.hidden_dim, self.settings.projection_dim
        projector = mlp(encoder.feature_dim, hidden, width, out_bias=False)
        predictor = mlp(width, hidden, width, out_bias=False)
        target = {"target_encoder": frozen_copy(encoder), "target_projector": frozen_copy(projector)}
        return nn.ModuleDict({"encoder": encoder, "projector": projector, "predictor": predictor, **target})

    def lr_factor(self, batch: Batch, progress: float) -> float:
        """K of the step over `lr_clusters`; 1 where masks replace K-means."""
        settings = self.settings
        if settings.lr_clusters is None or (batch.source_masks is not None and settings.stored_masks == "replace"):
            return 1.0
        return scheduled_clusters(progress, settings.start_clusters, settings.end_clusters) / settings.lr_clusters

    def before_forward(self, nets: nn.ModuleDict, progress: float) -> None:
        """Sets the number of clusters of this step."""
        self.num_clusters = scheduled_clusters(progress, self.settings.start_clusters, self.settings.end_clusters)

    def loss(self, nets: nn.ModuleDict, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared distance of unit vectors, in [0, 4], over both directions and all regions seen in both views.

        Other regions do not enter the heads, so that their batch norm sees no empty vectors. Fewer than two regions in
        any process, which batch norm cannot take, give 0. Each process clusters its own images.
        """
        from anaus_bench.distributed.group import divisor, least, zero_loss
        from anaus_bench.nn.pooling import embedding_spread, mask_pool, soft_masks

        label_maps, num_regions = self._regions(nets, batch)
        side = batch.views[0].shape[-1] // STRIDE
        ids = torch.arange(num_regions, device=batch.source.device).expand(len(batch.source), -1)
        masks = [soft_masks(maps, ids, (side,))[side] for maps in label_maps]  # (B, K, h, w) of each view
        areas = torch.stack([view.sum(dim=(2, 3)) for view in masks])  # (2, B, K) in cells
        in_both = (areas > MIN_CELLS).all(dim=0)
        weights = areas.mean(dim=0)[in_both] if self.settings.area_weights else in_both[in_both].float()  # (R,)

        def pooled(encoder: nn.Module) -> list[Tensor]:  # (R, C) of each view: the regions seen in both
            maps = [encoder(view, (STRIDE,))[STRIDE] for view in batch.views]
            return [mask_pool(features, mask)[in_both] for features, mask in zip(maps, masks, strict=True)]

        online = pooled(nets["encoder"])
        with torch.no_grad():
            target = pooled(nets["target_encoder"])
        zero = torch.zeros((), device=weights.device)
        logs = {"regions": in_both.float().sum(dim=1).mean(), "positive_cosine": zero, "projection_std": zero}
        if least(len(weights)) < 2:
            return zero_loss(online, nets["projector"], nets["predictor"]), logs
        predictions = [nets["predictor"](nets["projector"](rows)) for rows in online]
        with torch.no_grad():
            projections = [nets["target_projector"](rows) for rows in target]
        pairs = zip(predictions, projections[::-1], strict=True)
        cosines = torch.stack([F.cosine_similarity(first.float(), second.float()) for first, second in pairs])  # (2, R)
        cosine = (cosines.mean(dim=0) * weights).sum() / divisor(weights.sum())
        logs |= {"positive_cosine": cosine.detach(), "projection_std": embedding_spread(projections[0])}
        return 2 - 2 * cosine, logs

    def after_step(self, nets: nn.ModuleDict, progress: float) -> None:
        """Moves target encoder and projector towards the online ones."""
        from anaus_bench.nn.momentum import momentum_schedule, momentum_update

        momentum = momentum_schedule(self.settings.base_momentum, progress)
        for name in ("encoder", "projector"):
            momentum_update(nets[f"target_{name}"], nets[name], momentum)

    def _regions(self, nets: nn.ModuleDict, batch: Batch) -> tuple[Sequence[Tensor], int]:
        """Label maps (B, H, W) of each view, and a number that all their ids are below."""
        from anaus_bench.corpus.pixels import resample_labels
        from anaus_bench.nn.pooling import NUM_IDS
        from anaus_plugins.objectives.r2o.clustering import superpixels

        settings = self.settings
        if batch.source_masks is not None and settings.stored_masks == "replace":
            return batch.label_maps, NUM_IDS
        if batch.source_masks is not None:
            clusters = self._refine(nets, batch, batch.source_masks, NUM_IDS, points_per_cluster=1)
        else:
            prior = superpixels(batch.source, settings.superpixel_grid, settings.compactness)
            clusters = self._refine(nets, batch, prior, settings.superpixel_grid**2, settings.points_per_cluster)
        size = batch.views[0].shape[-1]
        return [resample_labels(clusters, crop, size) for crop in batch.crops], self.num_clusters

    def _refine(
        self, nets: nn.ModuleDict, batch: Batch, prior: Tensor, num_regions: int, points_per_cluster: int
    ) -> Tensor:
        """Label maps (B, S, S) uint8 in which regions of the whole batch are merged by the target's features of them.

        Args:
            nets: Networks.
            batch: Gives the whole images.
            prior: (B, S, S) uint8 label maps.
            num_regions: All ids of `prior` are below this.
            points_per_cluster: Least regions per cluster.
        """
        from anaus_bench.corpus.pixels import normalise, resample, resample_labels
        from anaus_bench.corpus.view import Crop
        from anaus_bench.nn.pooling import NUM_IDS, mask_pool, soft_masks
        from anaus_plugins.objectives.r2o.clustering import kmeans

        recipe, count = batch.recipes[0], len(prior)
        whole = Crop(batch.boxes, torch.zeros(count, dtype=torch.bool))  # the picture: its letterbox is no region
        images = normalise(resample(batch.source.float().div(255), whole, recipe.size, recipe.interpolation), recipe)
        with torch.no_grad():
            maps = nets["target_encoder"](images, (REFINEMENT_STRIDE,))[REFINEMENT_STRIDE]
        cells = maps.shape[-1]
        ids = torch.arange(num_regions, device=prior.device).expand(count, -1)
        masks = soft_masks(resample_labels(prior, whole, recipe.size), ids, (cells,))[cells]
        present = masks.sum(dim=(2, 3)) > 0  # (B, num_regions)
        points = F.normalize(mask_pool(maps, masks)[present].float(), dim=1)

        limit = max(1, len(points) // points_per_cluster)
        labels = kmeans(points, min(self.num_clusters, limit), torch.Generator().manual_seed(batch.seed))
        table = torch.zeros(count, NUM_IDS, dtype=torch.uint8, device=prior.device)
        table[:, :num_regions][present] = labels.to(torch.uint8)
        return table.gather(1, prior.flatten(1).long()).view_as(prior)


def scheduled_clusters(progress: float, start: int, end: int) -> int:
    """K at `progress` in [0, 1): from `start` to `end` along a quarter cosine, rounded down."""
    return int((start - end) * math.cos(math.pi / 2 * progress) + end)


@hookimpl
def anaus_objectives() -> list[type[Objective[Any]]]:
    """The objective of this module."""
    return [R2O]
