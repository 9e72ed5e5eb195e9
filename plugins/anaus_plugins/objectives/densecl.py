"""DenseCL (Wang et al. 2021, arXiv:2011.09157): MoCo v2 and, cell by cell, a contrast of matched dense features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, cast

import pydantic

from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import Objective
from anaus_bench.lazy import F, nn, torch
from anaus_bench.settings.base import Settings
from anaus_bench.settings.fields import CropArea

if TYPE_CHECKING:
    from torch import Tensor

    from anaus_bench.corpus.batch import Batch
    from anaus_bench.corpus.packed import PackedCorpus
    from anaus_bench.corpus.sampling import Sampler
    from anaus_bench.corpus.view import View
    from anaus_bench.nn.encoder import Encoder
    from anaus_bench.nn.queue import Queue

STRIDE = 32
FOLLOWED = ("encoder", "projector", "dense_projector")  # what the target network follows


class DenseCLSettings(Settings):
    """Defaults are the paper's (Sec. 4.1) but for the length of the queues."""

    dense_weight: float = pydantic.Field(
        0.5, ge=0, le=1, description="lambda of Eq. 3, weight of the dense loss; that of the global one is 1 - lambda"
    )
    warmup_steps: int = pydantic.Field(
        1000, ge=0, description="Steps for which lambda is 0, until features match at all (the authors' code)"
    )
    temperature: float = pydantic.Field(0.2, gt=0, description="tau of both losses, Eq. 1 and 2")
    queue_size: int = pydantic.Field(
        4032,
        ge=1,
        description="Keys in each of the two queues, at most the images of the corpus: more would be stale copies of "
        "every image, the query's own among them; 21 batches of 192; the paper has 65536",
    )
    hidden_dim: int | None = pydantic.Field(
        None, ge=1, description="Hidden width of both heads; none: that of the backbone's features (2048 of ResNet-50)"
    )
    projection_dim: int = pydantic.Field(128, ge=1, description="Width of global and dense projections")
    momentum: float = pydantic.Field(0.999, ge=0, le=1, description="Momentum of the target network (MoCo)")
    bn_splits: int = pydantic.Field(
        8,
        ge=1,
        description="Parts of the permuted batch that pass the target network one by one, so that batch norm does not "
        "give the positive away; stands for MoCo's shuffling over 8 devices; 1 is none",
    )
    crop_area: CropArea = pydantic.Field((0.2, 1.0), description="Range of a crop's share of the image (MoCo v2)")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "demo": {"queue_size": 128, "hidden_dim": 256, "warmup_steps": 10, "momentum": 0.99, "bn_splits": 2},
        "tiny": {"queue_size": 6, "hidden_dim": 32, "projection_dim": 16, "warmup_steps": 0, "bn_splits": 2},
    }


class DenseCL(Objective[DenseCLSettings]):
    """MoCo v2, and the same contrast between matched cells of the feature maps.

    Networks: `encoder`, `projector`, `dense_projector`, each with a `target_` twin; `queue` and `dense_queue`.
    """

    name = "densecl"
    settings_class = DenseCLSettings
    reference = (
        "Wang et al., Dense contrastive learning for self-supervised visual pre-training, CVPR 2021, arXiv:2011.09157"
    )
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "native": {
            "batch": 256,
            "epochs": 800,  # those of COCO
            "optimiser": "sgd",
            "base_lr": 0.3,
            "weight_decay": 1e-4,
            "decay_norms": True,
            "warmup_epochs": 0,
            "init": "random",
        }
    }

    def views(self, size: int) -> tuple[View, ...]:
        """MoCo v2's recipe, the same for query and key."""
        from anaus_bench.corpus.view import View

        view = View(size, self.settings.crop_area, saturation=0.4, blur=0.5)
        return view, view

    def sampler(self, corpus: PackedCorpus, batch: int, seed: int) -> Sampler:
        """Single images.

        Raises:
            SettingsError: The queues hold more keys than there are images, or parts of the batch have one image.
        """
        from anaus_bench.nn.queue import check_queue

        check_queue(self.settings.queue_size, self.settings.bn_splits, len(corpus), batch)
        return super().sampler(corpus, batch, seed)

    def build(self, encoder: Encoder, num_classes: int = 0) -> nn.ModuleDict:
        """Two heads side by side (Sec. 3.2), without batch norm; the dense one takes the cells as rows."""
        from anaus_bench.nn.heads import mlp
        from anaus_bench.nn.momentum import frozen_copy
        from anaus_bench.nn.queue import Queue

        settings, width = self.settings, encoder.feature_dim
        hidden = settings.hidden_dim or width
        online = {
            "encoder": encoder,
            "projector": mlp(width, hidden, settings.projection_dim, norm=False),
            "dense_projector": mlp(width, hidden, settings.projection_dim, norm=False),
        }
        target = {f"target_{name}": frozen_copy(online[name]) for name in FOLLOWED}
        queues = {name: Queue(settings.queue_size, settings.projection_dim) for name in ("queue", "dense_queue")}
        return nn.ModuleDict({**online, **target, **queues})

    def loss(self, nets: nn.ModuleDict, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """(1 - lambda) L_q + lambda L_r (Eq. 3): view 1 holds the queries, view 2 the keys.

        A query's cell is paired with the key's cell of the most similar backbone features (Sec. 3.4). Negatives of
        cells are the mean dense projections of earlier images. The keys are queued after the losses.
        """
        from anaus_bench.distributed.group import gather_rows
        from anaus_bench.nn.contrast_images import queue_nce
        from anaus_bench.nn.pooling import embedding_spread

        settings = self.settings
        query_view, key_view = batch.views
        query_cells, query, dense_query = self._project(nets, query_view)
        with torch.no_grad():
            key_cells, key, dense_key = self._keys(nets, key_view, batch.seed)
            matched = match(query_cells, key_cells)  # (B, N)
            positives = F.normalize(dense_key, dim=2).gather(1, matched[..., None].expand_as(dense_key))
            key, mean_dense_key = F.normalize(key, dim=1), F.normalize(dense_key.mean(dim=1), dim=1)

        queue, dense_queue = cast("Queue", nets["queue"]), cast("Queue", nets["dense_queue"])
        image = queue_nce(query, key, queue.keys.clone(), settings.temperature)
        dense = queue_nce(
            dense_query.flatten(0, 1), positives.flatten(0, 1), dense_queue.keys.clone(), settings.temperature
        )
        queue.enqueue(gather_rows(key)[0])
        dense_queue.enqueue(gather_rows(mean_dense_key)[0])
        weight = settings.dense_weight if batch.step >= settings.warmup_steps else 0.0
        logs = {
            "global": image.detach(),
            "dense": dense.detach(),
            "positive_cosine": F.cosine_similarity(query.detach(), key).mean(),
            "dense_positive_cosine": F.cosine_similarity(dense_query.detach(), positives, dim=2).mean(),
            "projection_std": embedding_spread(key),
        }
        return (1 - weight) * image + weight * dense, logs

    def before_forward(self, nets: nn.ModuleDict, progress: float) -> None:
        """Moves the target network towards the online one, before the keys are made as in MoCo."""
        from anaus_bench.nn.momentum import momentum_update

        for name in FOLLOWED:
            momentum_update(nets[f"target_{name}"], nets[name], self.settings.momentum)

    def _keys(self, nets: nn.ModuleDict, images: Tensor, seed: int) -> tuple[Tensor, ...]:
        """As `_project` by the target network, in `bn_splits` parts of a permutation of the batch."""
        from anaus_bench.nn.synced_norm import in_shuffled_parts

        return in_shuffled_parts(
            lambda part: self._project(nets, part, "target_"), images, self.settings.bn_splits, seed
        )

    def _project(self, nets: nn.ModuleDict, images: Tensor, network: str = "") -> tuple[Tensor, Tensor, Tensor]:
        """Features (B, N, C) of the N cells, global (B, D) and dense projections (B, N, D), all float32."""
        cells = nets[f"{network}encoder"](images, (STRIDE,))[STRIDE].flatten(2).transpose(1, 2)
        projection, dense = nets[f"{network}projector"](cells.mean(dim=1)), nets[f"{network}dense_projector"](cells)
        return cells.float(), projection.float(), dense.float()


def match(queries: Tensor, keys: Tensor) -> Tensor:
    """For each query cell (B, N, C) the key cell (B, M, C) of the highest cosine (Eq. 4): (B, N) int64."""
    with torch.autocast(queries.device.type, enabled=False):
        return (F.normalize(queries, dim=2) @ F.normalize(keys, dim=2).transpose(1, 2)).argmax(dim=2)


@hookimpl
def anaus_objectives() -> list[type[Objective[Any]]]:
    """The objective of this module."""
    return [DenseCL]
