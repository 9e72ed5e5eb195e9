"""MoCo v2 (Chen et al. 2020, arXiv:2003.04297): a query against its key and a queue of the keys of earlier batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, cast

import pydantic

from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import Objective
from anaus_bench.lazy import F, nn
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


class MoCoV2Settings(Settings):
    """Defaults are the paper's, but for the queue, which must fit the corpus."""

    temperature: float = pydantic.Field(0.2, gt=0, description="tau of the softmax (Sec. 3)")
    momentum: float = pydantic.Field(0.999, ge=0, le=1, description="m of the key network's moving average")
    queue_size: int = pydantic.Field(
        4096,
        ge=1,
        description="Keys in the queue, at most the images of the corpus: more would be stale copies of every image, "
        "the query's own among them; the paper has 65536 for 1.28 million images",
    )
    hidden_dim: int | None = pydantic.Field(
        None, ge=1, description="Hidden width of the projector; null is the encoder's width, as in the paper"
    )
    projection_dim: int = pydantic.Field(128, ge=1, description="Width of queries and keys")
    bn_splits: int = pydantic.Field(
        8,
        ge=1,
        description="Parts of the permuted batch that pass the key network one by one, so that batch norm does not "
        "give the positive away; stands for the paper's shuffling over 8 devices; 1 is none",
    )
    crop_area: CropArea = pydantic.Field((0.2, 1.0), description="Range of a crop's share of the image")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "demo": {"queue_size": 128, "projection_dim": 64, "momentum": 0.99, "bn_splits": 2},
        "tiny": {"queue_size": 6, "hidden_dim": 32, "projection_dim": 16, "momentum": 0.9, "bn_splits": 2},
    }


class MoCoV2(Objective[MoCoV2Settings]):
    """Contrasts a view with the other one against a queue of keys of a slowly moving encoder.

    Networks: `encoder`, `projector`; `target_encoder`, `target_projector` for the keys; the `queue`.
    """

    name = "mocov2"
    settings_class = MoCoV2Settings
    reference = "Chen et al., Improved baselines with momentum contrastive learning, 2020, arXiv:2003.04297"
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "native": {
            "optimiser": "sgd",
            "base_lr": 0.03,
            "batch": 256,
            "epochs": 200,
            "warmup_epochs": 0,
            "weight_decay": 1e-4,
            "decay_norms": True,
            "init": "random",
        },
    }

    def views(self, size: int) -> tuple[View, ...]:
        """The same recipe twice; the first view is always the query."""
        from anaus_bench.corpus.view import View

        view = View(size, self.settings.crop_area, saturation=0.4, blur=0.5)
        return view, view

    def sampler(self, corpus: PackedCorpus, batch: int, seed: int) -> Sampler:
        """Single images.

        Raises:
            SettingsError: The queue holds more keys than there are images, or parts of the batch have one image.
        """
        from anaus_bench.nn.queue import check_queue

        check_queue(self.settings.queue_size, self.settings.bn_splits, len(corpus), batch)
        return super().sampler(corpus, batch, seed)

    def build(self, encoder: Encoder, num_classes: int = 0) -> nn.ModuleDict:
        """Query and key networks, no batch norm in the heads; the queue starts with random unit rows."""
        from anaus_bench.nn.heads import mlp
        from anaus_bench.nn.momentum import frozen_copy
        from anaus_bench.nn.queue import Queue

        settings, width = self.settings, encoder.feature_dim
        projector = mlp(width, settings.hidden_dim or width, settings.projection_dim, norm=False)
        return nn.ModuleDict(
            {
                "encoder": encoder,
                "projector": projector,
                "target_encoder": frozen_copy(encoder),
                "target_projector": frozen_copy(projector),
                "queue": Queue(settings.queue_size, settings.projection_dim),
            }
        )

    def before_forward(self, nets: nn.ModuleDict, progress: float) -> None:
        """Moves the key networks towards the query networks, before the keys are made."""
        from anaus_bench.nn.momentum import momentum_update

        for name in ("encoder", "projector"):
            momentum_update(nets[f"target_{name}"], nets[name], self.settings.momentum)

    def loss(self, nets: nn.ModuleDict, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """InfoNCE against the queue as it was; then the keys of all processes are written to it."""
        from anaus_bench.distributed.group import gather_rows
        from anaus_bench.nn.contrast_images import pair_logs, queue_nce

        query_view, key_view = batch.views
        queue = cast("Queue", nets["queue"])
        queries = nets["projector"](cast("Encoder", nets["encoder"]).vector(query_view))  # (B, D)
        keys = self._keys(nets, key_view, batch.seed)
        loss = queue_nce(queries, keys, queue.keys.clone(), self.settings.temperature)
        queue.enqueue(gather_rows(keys)[0])
        return loss, pair_logs(queries, keys)

    def _keys(self, nets: nn.ModuleDict, images: Tensor, seed: int) -> Tensor:
        """Unit rows (B, D) float32, without gradients, made in `bn_splits` parts of a permutation of the batch."""
        from anaus_bench.nn.synced_norm import in_shuffled_parts

        def project(part: Tensor) -> tuple[Tensor]:
            return (nets["target_projector"](cast("Encoder", nets["target_encoder"]).vector(part)).float(),)

        (keys,) = in_shuffled_parts(project, images, self.settings.bn_splits, seed)
        return F.normalize(keys, dim=1)


@hookimpl
def anaus_objectives() -> list[type[Objective[Any]]]:
    """The objective of this module."""
    return [MoCoV2]
