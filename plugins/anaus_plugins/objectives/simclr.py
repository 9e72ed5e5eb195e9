"""SimCLR (Chen et al. 2020, arXiv:2002.05709): two views of an image against all other images of the batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, cast

import pydantic

from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import Objective
from anaus_bench.lazy import nn
from anaus_bench.settings.base import Settings
from anaus_bench.settings.fields import CropArea

if TYPE_CHECKING:
    from torch import Tensor

    from anaus_bench.corpus.batch import Batch
    from anaus_bench.corpus.view import View
    from anaus_bench.nn.encoder import Encoder


class SimCLRSettings(Settings):
    """Defaults are those of the paper's ImageNet runs (Sec. 2 and 4)."""

    temperature: float = pydantic.Field(0.1, gt=0, description="tau of Eq. 1; 0.1 on ImageNet (App. B.7)")
    hidden_dim: int | None = pydantic.Field(
        None, ge=1, description="Hidden width of the projector; null is the encoder's width, as in the paper"
    )
    projection_dim: int = pydantic.Field(128, ge=1, description="Width of the projections (Sec. 2.1)")
    head_norm: bool = pydantic.Field(
        False, description="Batch norm after the projector's first layer; the paper's equation has none"
    )
    crop_area: CropArea = pydantic.Field((0.08, 1.0), description="Range of a crop's share of the image (App. A)")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "demo": {"projection_dim": 64},
        "tiny": {"hidden_dim": 32, "projection_dim": 16},
    }


class SimCLR(Objective[SimCLRSettings]):
    """Contrasts two views of an image against all other images of the batch.

    Networks: `encoder` and `projector`; each view passes on its own, so batch norm sees B images.
    """

    name = "simclr"
    settings_class = SimCLRSettings
    reference = "Chen et al., A simple framework for contrastive learning, ICML 2020, arXiv:2002.05709"
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "native": {"epochs": 100, "warmup_epochs": 10, "base_lr": 0.3, "weight_decay": 1e-6, "init": "random"},
    }

    def views(self, size: int) -> tuple[View, ...]:
        """The same recipe twice: crop, flip, strong jitter, blur of every second image (App. A)."""
        from anaus_bench.corpus.view import Blur, Jitter, View

        view = View(size, self.settings.crop_area, (Jitter(brightness=0.8, contrast=0.8), Blur(0.5)))
        return view, view

    def build(self, encoder: Encoder, num_classes: int = 0) -> nn.ModuleDict:
        """Encoder and projector."""
        from anaus_bench.nn.heads import mlp

        settings, width = self.settings, encoder.feature_dim
        projector = mlp(width, settings.hidden_dim or width, settings.projection_dim, norm=settings.head_norm)
        return nn.ModuleDict({"encoder": encoder, "projector": projector})

    def loss(self, nets: nn.ModuleDict, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """NT-Xent, Eq. 1."""
        from anaus_bench.nn.contrast_images import nt_xent, pair_logs

        encoder = cast("Encoder", nets["encoder"])
        first, second = (nets["projector"](encoder.vector(view)) for view in batch.views)  # (B, D)
        return nt_xent(first, second, self.settings.temperature), pair_logs(first, second)


@hookimpl
def anaus_objectives() -> list[type[Objective[Any]]]:
    """The objective of this module."""
    return [SimCLR]
