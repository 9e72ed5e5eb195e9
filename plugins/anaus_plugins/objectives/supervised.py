"""Supervised pre-training: class labels of the corpus, a linear head on the encoder's vector."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, cast

import pydantic

from anaus_bench.config import Settings
from anaus_bench.errors import SettingsError
from anaus_bench.fields import CropArea
from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import Need, Objective
from anaus_bench.lazy import F, nn

if TYPE_CHECKING:
    from torch import Tensor

    from anaus_bench.data.views import Batch, View
    from anaus_bench.nn.encoder import Encoder


class SupervisedSettings(Settings):
    """One weakly augmented view: crop and flip."""

    crop_area: CropArea = pydantic.Field(
        (0.8, 1.0), description="Range of the crop's share of the image; 0.8 to 1 as in USCL's supervised runs"
    )
    label_smoothing: float = pydantic.Field(0.0, ge=0, lt=1, description="Label smoothing of the cross-entropy")


class Supervised(Objective[SupervisedSettings]):
    """Learns the class labels of the corpus.

    Networks: `encoder` and the linear `classifier`.
    """

    name = "supervised"
    settings_class = SupervisedSettings
    reference = "Cross-entropy on the corpus's class labels, the row 'Supervised' of arXiv:2605.25402, Table 1"
    needs: ClassVar[frozenset[Need]] = frozenset({"labels"})

    def views(self, size: int) -> tuple[View, ...]:
        """Crop and flip only."""
        from anaus_bench.data.views import View

        return (View(size, self.settings.crop_area, jitter=0.0, grayscale=0.0, blur=0.0),)

    def build(self, encoder: Encoder, num_classes: int = 0) -> nn.ModuleDict:
        """Encoder and classifier.

        Raises:
            SettingsError: The corpus has fewer than two classes.
        """
        if num_classes < 2:
            raise SettingsError(
                f"objective 'supervised' needs at least 2 classes, the corpus has {num_classes}; pass another --corpus"
            )
        return nn.ModuleDict({"encoder": encoder, "classifier": nn.Linear(encoder.feature_dim, num_classes)})

    def loss(self, nets: nn.ModuleDict, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean cross-entropy over the labelled images, 0 without any; logs their accuracy and their share."""
        logits = nets["classifier"](cast("Encoder", nets["encoder"]).vector(batch.views[0])).float()  # (B, classes)
        labelled = batch.labels >= 0
        count = labelled.sum().clamp(min=1)
        losses = F.cross_entropy(
            logits,
            batch.labels,
            ignore_index=-1,
            reduction="sum",
            label_smoothing=self.settings.label_smoothing,
        )
        correct = (logits.detach().argmax(dim=1) == batch.labels).sum()  # an unlabelled image never is
        return losses / count, {"accuracy": correct / count, "labelled": labelled.float().mean()}


@hookimpl
def anaus_objectives() -> list[type[Objective[Any]]]:
    """The objective of this module."""
    return [Supervised]
