"""Supervised pre-training: class labels of the corpus, a linear head on the encoder's vector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import pydantic

from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import Need, Objective
from anaus_bench.lazy import F, nn
from anaus_bench.settings.fields import CropArea, LabelSettings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from anaus_bench.corpus.batch import Batch
    from anaus_bench.corpus.packed import PackedCorpus
    from anaus_bench.corpus.sampling import Sampler
    from anaus_bench.corpus.view import View
    from anaus_bench.nn.encoder import Encoder


class SupervisedSettings(LabelSettings):
    """One weakly augmented view: crop and flip."""

    sampling: Literal["balanced", "images"] = pydantic.Field(
        "balanced",
        description="Labelled images, every class as often; or all images, those without a label adding nothing",
    )
    crop_area: CropArea = pydantic.Field(
        (0.8, 1.0), description="Range of the crop's share of the image; 0.8 to 1 as in USCL's supervised runs"
    )
    label_smoothing: float = pydantic.Field(0.0, ge=0, lt=1, description="Label smoothing of the cross-entropy")


class Supervised(Objective[SupervisedSettings]):
    """Learns the class labels of the corpus.

    Networks: `encoder` and the linear `classifier`.
    """

    name = "supervised"
    version = 2
    settings_class = SupervisedSettings
    reference = "Cross-entropy on the corpus's class labels, the row 'Supervised' of arXiv:2605.25402, Table 1"
    needs: ClassVar[frozenset[Need]] = frozenset({"labels"})
    without: ClassVar[Mapping[str, str]] = {
        "labels of some data sets": "the view in their clips' ids is the label; images without one are left out",
    }

    def describe(self) -> dict[str, str]:
        """Says what the labels may be."""
        return {"supervision": "sees class labels of the corpus, which may be diagnoses that the task tests"}

    def views(self, size: int) -> tuple[View, ...]:
        """Crop and flip only."""
        from anaus_bench.corpus.view import View

        return (View(size, self.settings.crop_area),)

    def labels(self, corpus: PackedCorpus) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """Class labels, and views if asked for."""
        from anaus_bench.corpus.tags import labels_of

        return labels_of(corpus, self.settings)

    def corpus_facts(self, corpus: PackedCorpus, seed: int) -> dict[str, str]:
        """The labels, which may be diagnoses that a task tests."""
        from anaus_bench.corpus.tags import count_names

        return {"labels": f"{count_names(*self.labels(corpus))} (sampling {self.settings.sampling})"}

    def sampler(self, corpus: PackedCorpus, batch: int, seed: int) -> Sampler:
        """Labelled images, every class as often, or all images.

        Raises:
            LabelError: Images of fewer than two classes.
        """
        from anaus_bench.corpus.labels import BalancedSampler
        from anaus_bench.corpus.tags import check_classes

        labels, names = self.labels(corpus)
        check_classes(labels, names, self.name)
        if self.settings.sampling == "images":
            return super().sampler(corpus, batch, seed)
        return BalancedSampler(labels, batch, seed)

    def build(self, encoder: Encoder, num_classes: int = 0) -> nn.ModuleDict:
        """Encoder and classifier."""
        return nn.ModuleDict({"encoder": encoder, "classifier": nn.Linear(encoder.feature_dim, num_classes)})

    def loss(self, nets: nn.ModuleDict, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean cross-entropy over the labelled images, 0 without any; logs their accuracy and their share."""
        from anaus_bench.distributed.group import divisor

        logits = nets["classifier"](cast("Encoder", nets["encoder"]).vector(batch.views[0])).float()  # (B, classes)
        labelled = batch.labels >= 0
        count = divisor(labelled.sum())
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
