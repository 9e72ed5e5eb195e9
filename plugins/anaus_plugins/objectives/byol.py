"""BYOL (Grill et al. 2020, arXiv:2006.07733): one view predicts the target's projection of the other; no negatives."""

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
    from anaus_bench.corpus.view import View
    from anaus_bench.nn.encoder import Encoder


class BYOLSettings(Settings):
    """Defaults are those of the paper's ImageNet runs (Sec. 3.3), with the momentum of its 300-epoch schedule."""

    hidden_dim: int = pydantic.Field(4096, ge=1, description="Hidden width of projector and predictor (Sec. 3.3)")
    projection_dim: int = pydantic.Field(256, ge=1, description="Width of projections and predictions (Sec. 3.3)")
    base_momentum: float = pydantic.Field(
        0.99,
        ge=0,
        le=1,
        description="tau_base, raised to 1 along a half cosine: 0.99 for up to 300 epochs, 0.996 for 1000",
    )
    crop_area: CropArea = pydantic.Field((0.08, 1.0), description="Range of a crop's share of the image (App. B)")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "demo": {"hidden_dim": 512, "projection_dim": 128},
        "tiny": {"hidden_dim": 32, "projection_dim": 16},
    }


class BYOL(Objective[BYOLSettings]):
    """One view predicts the other one's projection by a slowly moving target; no negatives.

    Networks: `encoder`, `projector`, `predictor`; `target_encoder`, `target_projector`.
    """

    name = "byol"
    settings_class = BYOLSettings
    reference = "Grill et al., Bootstrap your own latent, NeurIPS 2020, arXiv:2006.07733"
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "native": {  # that of 300 epochs
            "batch": 4096,
            "epochs": 300,
            "base_lr": 0.3,
            "weight_decay": 1e-6,
            "warmup_epochs": 10,
            "init": "random",
        },
    }

    def views(self, size: int) -> tuple[View, ...]:
        """The paper's two recipes T and T' (App. B)."""
        from anaus_bench.corpus.view import Blur, Jitter, Solarise, View

        area = self.settings.crop_area
        return View(size, area, (Jitter(), Blur())), View(size, area, (Jitter(), Blur(0.1), Solarise(0.2)))

    def build(self, encoder: Encoder, num_classes: int = 0) -> nn.ModuleDict:
        """Online and target networks, asymmetric by the predictor; the last layer of a head has no bias."""
        from anaus_bench.nn.heads import mlp
        from anaus_bench.nn.momentum import frozen_copy

        hidden, width = self.settings.hidden_dim, self.settings.projection_dim
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
        """Symmetrised loss of Sec. 3.1, in [0, 8]."""
        from anaus_bench.nn.pooling import embedding_spread

        predictions, projections = [], []
        for view in batch.views:
            predictions.append(nets["predictor"](nets["projector"](_encoder(nets, "encoder").vector(view))))  # (B, D)
            with torch.no_grad():
                projections.append(nets["target_projector"](_encoder(nets, "target_encoder").vector(view)))  # (B, D)
        loss = regression(predictions[0], projections[1]) + regression(predictions[1], projections[0])
        logs = {
            "positive_cosine": 1 - loss.detach() / 4,
            "projection_std": embedding_spread(projections[0]),
        }
        return loss, logs

    def after_step(self, nets: nn.ModuleDict, progress: float) -> None:
        """Moves target encoder and projector towards the online ones (Eq. 1)."""
        from anaus_bench.nn.momentum import momentum_schedule, momentum_update

        momentum = momentum_schedule(self.settings.base_momentum, progress)
        for name in ("encoder", "projector"):
            momentum_update(nets[f"target_{name}"], nets[name], momentum)


def regression(predictions: Tensor, projections: Tensor) -> Tensor:
    """Eq. 2 in float32, mean over rows (B, D): the squared distance of unit vectors, 2 - 2 cos."""
    return (2 - 2 * F.cosine_similarity(predictions.float(), projections.float())).mean()


def _encoder(nets: nn.ModuleDict, name: str) -> Encoder:
    return cast("Encoder", nets[name])


@hookimpl
def anaus_objectives() -> list[type[Objective[Any]]]:
    """The objective of this module."""
    return [BYOL]
