"""VICReg (Bardes et al. 2022, arXiv:2105.04906): equal embeddings of two views, spread out and decorrelated."""

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


class VICRegSettings(Settings):
    """Defaults are those of the paper's ImageNet runs (Sec. 4)."""

    invariance: float = pydantic.Field(25.0, ge=0, description="lambda of Eq. 6")
    variance: float = pydantic.Field(25.0, ge=0, description="mu of Eq. 6")
    covariance: float = pydantic.Field(1.0, ge=0, description="nu of Eq. 6")
    expander_dim: int = pydantic.Field(8192, ge=2, description="Width of the expander's three layers (Sec. 4.2)")
    crop_area: CropArea = pydantic.Field((0.08, 1.0), description="Range of a crop's share of the image (App. C)")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"demo": {"expander_dim": 512}, "tiny": {"expander_dim": 32}}


class VICReg(Objective[VICRegSettings]):
    """Draws two views together while every output keeps its variance and its own content.

    Networks: `encoder` and `expander`.
    """

    name = "vicreg"
    settings_class = VICRegSettings
    reference = "Bardes et al., VICReg: variance-invariance-covariance regularization, ICLR 2022, arXiv:2105.04906"
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "native": {
            "base_lr": 0.2,
            "batch": 2048,
            "epochs": 1000,
            "warmup_epochs": 10,
            "lr_end": 0.01,
            "weight_decay": 1e-6,
            "init": "random",
        },
    }

    def views(self, size: int) -> tuple[View, ...]:
        """The same recipe twice (App. C)."""
        from anaus_bench.corpus.view import Blur, Jitter, Solarise, View

        view = View(size, self.settings.crop_area, (Jitter(), Blur(0.5), Solarise(0.1)))
        return view, view

    def build(self, encoder: Encoder, num_classes: int = 0) -> nn.ModuleDict:
        """Encoder and expander: three linear layers, batch norm and ReLU after the first two."""
        width = self.settings.expander_dim
        expander = nn.Sequential(
            nn.Linear(encoder.feature_dim, width),
            nn.BatchNorm1d(width),
            nn.ReLU(inplace=True),
            nn.Linear(width, width),
            nn.BatchNorm1d(width),
            nn.ReLU(inplace=True),
            nn.Linear(width, width, bias=False),
        )
        return nn.ModuleDict({"encoder": encoder, "expander": expander})

    def loss(self, nets: nn.ModuleDict, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Eq. 6; logs its three terms."""
        from anaus_bench.nn.contrast_images import pair_logs, vicreg_terms

        settings, encoder = self.settings, cast("Encoder", nets["encoder"])
        first, second = (nets["expander"](encoder.vector(view)) for view in batch.views)  # (B, D)
        invariance, variance, covariance = vicreg_terms(first, second)
        loss = settings.invariance * invariance + settings.variance * variance + settings.covariance * covariance
        terms = {"invariance": invariance, "variance": variance, "covariance": covariance}
        return loss, {**{name: term.detach() for name, term in terms.items()}, **pair_logs(first, second)}


@hookimpl
def anaus_objectives() -> list[type[Objective[Any]]]:
    """The objective of this module."""
    return [VICReg]
