"""FixMatch (Sohn et al. 2020, arXiv:2001.07685): pseudo-labels of weak views teach strong views of unlabelled images.

As pre-training, its labels are the corpus's class labels, of a fraction of the clips; all images are its unlabelled
set. What is exported is the moving average of the encoder, which the paper evaluates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, cast

import pydantic

from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import Need, Objective
from anaus_bench.lazy import F, nn, torch
from anaus_bench.settings.fields import LabelSettings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from anaus_bench.corpus.batch import Batch
    from anaus_bench.corpus.packed import PackedCorpus
    from anaus_bench.corpus.sampling import Sampler
    from anaus_bench.corpus.view import Operation, View
    from anaus_bench.nn.encoder import Encoder


class FixMatchSettings(LabelSettings):
    """Defaults are the paper's (Sec. 4, App. B)."""

    label_fraction: float = pydantic.Field(
        0.1, gt=0, le=1, description="Share of the labelled clips of each class that keep their label, at least one"
    )
    unlabelled: int = pydantic.Field(7, ge=1, description="mu, unlabelled images per labelled one (Sec. 2.2)")
    threshold: float = pydantic.Field(0.95, ge=0, le=1, description="tau, least confidence of a pseudo-label (Eq. 4)")
    temperature: float = pydantic.Field(1.0, gt=0, description="T of the softmax that is compared with the threshold")
    lambda_u: float = pydantic.Field(1.0, ge=0, description="Weight of the unlabelled loss")
    average_momentum: float = pydantic.Field(
        0.999,
        ge=0,
        lt=1,
        description="Of the moving average of the weights that is exported; 0 exports the last weights",
    )
    translate: float = pydantic.Field(0.125, ge=0, lt=1, description="Largest shift of the weak view (Sec. 2.3)")
    operations: int = pydantic.Field(2, ge=0, description="Rounds of RandAugment in the strong view")
    cutout: float = pydantic.Field(0.5, ge=0, le=1, description="Side of the gray square of the strong view")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "demo": {"unlabelled": 2, "label_fraction": 0.5, "average_momentum": 0.9},
        "tiny": {"unlabelled": 1, "label_fraction": 0.5, "average_momentum": 0.5, "threshold": 0.2},
    }


class FixMatch(Objective[FixMatchSettings]):
    """Learns labels, and its own confident guesses on weak views as labels of strong views.

    Networks: `encoder`, `classifier`; `average_encoder`.

    An item is a labelled image and `unlabelled` others, so that a step passes batch x (1 + 2 mu) views.
    """

    name = "fixmatch"
    version = 2
    settings_class = FixMatchSettings
    reference = "Sohn et al., FixMatch: simplifying semi-supervised learning, NeurIPS 2020, arXiv:2001.07685"
    needs: ClassVar[frozenset[Need]] = frozenset({"labels"})
    without: ClassVar[Mapping[str, str]] = {
        "labels of some data sets": "the view in their clips' ids is the label; images without one are unlabelled",
        "unlabelled images": "the labelled ones are among the unlabelled ones in any case, as in the paper",
    }
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "native": {
            "optimiser": "sgd",
            "nesterov": True,
            "base_lr": 0.03,
            "lr_scaling": False,
            "schedule": "fixmatch",
            "batch": 64,
            "steps": 2**20,
            "warmup_epochs": 0,
            "weight_decay": 5e-4,
            "init": "random",
        },
    }

    def describe(self) -> dict[str, str]:
        """Says what the labels may be."""
        return {"supervision": "sees class labels of the corpus, which may be diagnoses that the task tests"}

    def views(self, size: int) -> tuple[View, ...]:
        """Weak view of the labelled image; weak views of the others; their strong views. All show the whole image."""
        from anaus_bench.corpus.view import View
        from anaus_plugins.objectives.fixmatch.operations import CutOut, RandAugment, Translate

        settings = self.settings
        weak = (Translate(settings.translate),) if settings.translate else ()
        hole = (CutOut(settings.cutout),) if settings.cutout else ()
        strong = (*weak, RandAugment(settings.operations), *hole)

        def recipe(frame: int, operations: tuple[Operation, ...]) -> View:
            whole = (1.0, 1.0)
            return View(size, whole, operations, crop_ratio=(1 / 3, 3.0), interpolation="bilinear", frame=frame)

        others = range(1, 1 + settings.unlabelled)
        return (*[recipe(frame, weak) for frame in (0, *others)], *[recipe(frame, strong) for frame in others])

    def labels(self, corpus: PackedCorpus) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """Class labels, and views if asked for."""
        from anaus_bench.corpus.tags import labels_of

        return labels_of(corpus, self.settings)

    def corpus_facts(self, corpus: PackedCorpus, seed: int) -> dict[str, str]:
        """The labels that are kept, and from which share of the clips of each class."""
        import numpy as np

        from anaus_bench.corpus.tags import count_names

        labels, names = self.labels(corpus)
        kept = np.where(self._keeps_label(corpus, seed), labels, -1)
        return {"labels": f"{count_names(kept, names)} (label_fraction {self.settings.label_fraction:g}, seed {seed})"}

    def sampler(self, corpus: PackedCorpus, batch: int, seed: int) -> Sampler:
        """Labelled images of the clips that keep their label, each with `unlabelled` of all images.

        Raises:
            LabelError: Images of fewer than two classes.
        """
        from anaus_bench.corpus.labels import SemiSupervisedSampler
        from anaus_bench.corpus.tags import check_classes

        check_classes(*self.labels(corpus), self.name)
        labelled = torch.from_numpy(self._keeps_label(corpus, seed)).nonzero()[:, 0]
        return SemiSupervisedSampler(labelled, len(corpus), batch, self.settings.unlabelled, seed)

    def build(self, encoder: Encoder, num_classes: int = 0) -> nn.ModuleDict:
        """Encoder, linear classifier and the moving average of the encoder."""
        from anaus_bench.nn.momentum import frozen_copy

        return nn.ModuleDict(
            {
                "encoder": encoder,
                "classifier": nn.Linear(encoder.feature_dim, num_classes),
                "average_encoder": frozen_copy(encoder),
            }
        )

    def loss(self, nets: nn.ModuleDict, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Eq. 3 plus lambda_u times Eq. 4; all views pass together, so that batch norm sees their mixture."""
        settings, count = self.settings, len(batch.labels)
        logits = nets["classifier"](cast("Encoder", nets["encoder"]).vector(torch.cat(batch.views))).float()
        labelled, weak, strong = logits.split([count, *[settings.unlabelled * count] * 2])
        supervised = F.cross_entropy(labelled, batch.labels)
        unsupervised, confident = consistency(weak, strong, settings.threshold, settings.temperature)
        accuracy = (labelled.detach().argmax(dim=1) == batch.labels).float().mean()
        logs = {
            "supervised": supervised.detach(),
            "unsupervised": unsupervised.detach(),
            "confident": confident,
            "accuracy": accuracy,
        }
        return supervised + settings.lambda_u * unsupervised, logs

    def after_step(self, nets: nn.ModuleDict, progress: float) -> None:
        """Averages parameters and copies buffers; the last step hands the average to the encoder, for export."""
        from anaus_bench.nn.momentum import momentum_update

        encoder, average = nets["encoder"], nets["average_encoder"]
        momentum_update(average, encoder, self.settings.average_momentum)
        for ours, theirs in zip(average.buffers(), encoder.buffers(), strict=True):
            ours.copy_(theirs)
        if progress >= 1:
            encoder.load_state_dict(average.state_dict())

    def _keeps_label(self, corpus: PackedCorpus, seed: int) -> NDArray[np.bool_]:
        from anaus_bench.corpus.labels import labelled_part

        labels, _ = self.labels(corpus)
        return labelled_part(corpus, labels, self.settings.label_fraction, seed)


def consistency(weak: Tensor, strong: Tensor, threshold: float, temperature: float) -> tuple[Tensor, Tensor]:
    """Eq. 4, the mean over all rows, confident or not; and the share of confident rows.

    Args:
        weak: (R, C) logits that make the pseudo-labels; no gradient flows to them.
        strong: (R, C) logits of the same images.
        threshold: A row is confident if its largest probability is at least this.
        temperature: Divides the weak logits.
    """
    confidence, pseudo_labels = F.softmax(weak.detach().float() / temperature, dim=1).max(dim=1)
    confident = (confidence >= threshold).float()
    losses = F.cross_entropy(strong.float(), pseudo_labels, reduction="none")
    return (confident * losses).mean(), confident.mean()


@hookimpl
def anaus_objectives() -> list[type[Objective[Any]]]:
    """The objective of this module."""
    return [FixMatch]
