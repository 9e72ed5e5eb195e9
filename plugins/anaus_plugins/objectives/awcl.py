"""AWCL (Fu et al. 2022, arXiv:2208.10642): supervised contrast of anatomies; SimCLR for images of unknown anatomy.

The paper has fetal standard planes. Here the anatomy is what the corpus says of an image without its diagnosis: the
data set (organ) and the acoustic window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import pydantic

from anaus_bench.errors import DataError
from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import Objective
from anaus_bench.lazy import nn, torch
from anaus_bench.settings.base import Settings
from anaus_bench.settings.fields import CAMUS_VIEWS, CropArea, ViewPattern

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from anaus_bench.corpus.batch import Batch
    from anaus_bench.corpus.packed import PackedCorpus
    from anaus_bench.corpus.sampling import Sampler
    from anaus_bench.corpus.view import View
    from anaus_bench.nn.encoder import Encoder

Granularity = Literal["organ", "view", "phase", "class"]


class AWCLSettings(Settings):
    """Defaults are the paper's, and its code's where the text is silent."""

    temperature: float = pydantic.Field(
        0.5, gt=0, description="T; the loss is not scaled by T / 0.07 as it is in the released code"
    )
    granularity: Granularity = pydantic.Field(
        "view",
        description="Anatomy of an image: its data set (organ); also the view of its clip (view); also end-diastole or "
        "-systole in the first and last third of clips with a view, the middle being unknown (phase); or its data set "
        "and class label, which are no anatomy and leak the diagnosis (class)",
    )
    view_pattern: ViewPattern = pydantic.Field(
        CAMUS_VIEWS, description="Regular expression whose group is the view in the id of a clip, as CAMUS has it"
    )
    anatomy_ratio: float = pydantic.Field(
        1.0, gt=0, le=1, description="Share of the clips of each anatomy, at least one, whose anatomy is used"
    )
    hidden_dim: int | None = pydantic.Field(
        None, ge=1, description="Hidden width of the projector; null is the encoder's width, as in the code"
    )
    projection_dim: int = pydantic.Field(128, ge=1, description="Width of the projections")
    crop_area: CropArea = pydantic.Field((0.08, 1.0), description="Range of a crop's share of the image")

    # Generated images have one organ and no view, so that the classes stand for anatomies.
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "demo": {"projection_dim": 64, "granularity": "class"},
        "tiny": {"hidden_dim": 32, "projection_dim": 16, "granularity": "class"},
    }


class AWCL(Objective[AWCLSettings]):
    """Contrasts images of one anatomy against the others; SimCLR where the anatomy is unknown.

    Networks: `encoder` and `projector`. The sampler's weight of an image is the number of its anatomy.
    """

    name = "awcl"
    settings_class = AWCLSettings
    reference = (
        "Fu et al., Anatomy-aware contrastive representation learning for fetal ultrasound, ECCV workshops 2022, "
        "arXiv:2208.10642"
    )
    without: ClassVar[Mapping[str, str]] = {
        "views of clips": "the data set (the organ) is the anatomy; fewer than two anatomies in all are refused",
        "class labels": "they are not used, unless granularity=class",
    }
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "native": {
            "optimiser": "adam",
            "base_lr": 1e-3,
            "lr_scaling": False,
            "schedule": "constant",
            "batch": 32,
            "epochs": 10,
            "warmup_epochs": 0,
            "weight_decay": 1e-6,
            "decay_norms": True,
            "init": "random",
        },
    }

    def views(self, size: int) -> tuple[View, ...]:
        """The same recipe twice; no blur, but random exponents of the intensities."""
        from anaus_bench.corpus.view import Jitter, View

        view = View(size, self.settings.crop_area, (Gamma(0.25), Jitter()))
        return view, view

    def sampler(self, corpus: PackedCorpus, batch: int, seed: int) -> Sampler:
        """Single images with the number of their anatomy as their weight, -1 where it is unknown or not used.

        Raises:
            DataError: The corpus has fewer than two anatomies, so that nothing would be pushed apart.
        """
        from anaus_bench.corpus.sampling import WeightedSampler

        labels, known = self._used_anatomies(corpus, seed)
        if len(known) < 2:
            raise DataError(
                f"objective 'awcl' needs at least 2 anatomies, the corpus has {known!r} at "
                f"objective.granularity={self.settings.granularity!r}; pass a --corpus of several organs or views"
            )
        return WeightedSampler(super().sampler(corpus, batch, seed), torch.from_numpy(labels).float())

    def corpus_facts(self, corpus: PackedCorpus, seed: int) -> dict[str, str]:
        """The anatomies that are used, with their images."""
        from anaus_bench.corpus.tags import count_names

        settings = self.settings
        counts = count_names(*self._used_anatomies(corpus, seed))
        return {"anatomies": f"{counts} (granularity {settings.granularity}, ratio {settings.anatomy_ratio:g})"}

    def _used_anatomies(self, corpus: PackedCorpus, seed: int) -> tuple[NDArray[np.int64], list[str]]:
        """Number (N,) of each image's anatomy, -1 where it is unknown or not used; the anatomies."""
        import numpy as np

        from anaus_bench.corpus.labels import labelled_part

        settings = self.settings
        names = anatomies(corpus, settings.granularity, settings.view_pattern)
        known = sorted({name for name in names if name is not None})
        labels = np.array([-1 if name is None else known.index(name) for name in names])
        if not known:
            return labels, known
        return np.where(labelled_part(corpus, labels, settings.anatomy_ratio, seed), labels, -1), known

    def build(self, encoder: Encoder, num_classes: int = 0) -> nn.ModuleDict:
        """Encoder and projector without batch norm."""
        from anaus_bench.nn.heads import mlp

        settings, width = self.settings, encoder.feature_dim
        projector = mlp(width, settings.hidden_dim or width, settings.projection_dim, norm=False)
        return nn.ModuleDict({"encoder": encoder, "projector": projector})

    def loss(self, nets: nn.ModuleDict, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """SupCon over anatomies, where an unknown one has its other view as the only positive."""
        from anaus_bench.nn.contrast_images import pair_logs, sup_con

        encoder = cast("Encoder", nets["encoder"])
        first, second = (nets["projector"](encoder.vector(view)) for view in batch.views)  # (B, D)
        labels = cast("Tensor", batch.weights).long()
        loss = sup_con(first, second, labels, self.settings.temperature).mean()
        return loss, {"known_anatomy": (labels >= 0).float().mean(), **pair_logs(first, second)}


@dataclass(frozen=True)
class Gamma:
    """Raises intensities to a random exponent, at most `half_range` from 1."""

    half_range: float

    def draw(self, count: int, generator: torch.Generator, size: int) -> Tensor:
        """(count,) float32: exponents."""
        return 1 - self.half_range + 2 * self.half_range * torch.rand(count, generator=generator)

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Each image to its exponent."""
        return images ** parameters.to(images.device, non_blocking=True)[:, None, None, None]


def anatomies(corpus: PackedCorpus, granularity: Granularity, view_pattern: str) -> list[str | None]:
    """Anatomy of each image at a granularity, None where it is unknown."""
    from anaus_bench.corpus.tags import clip_views

    if granularity == "class":
        return [corpus.classes[entry.label] if entry.label >= 0 else None for entry in corpus.entries]
    if granularity == "organ":
        return [entry.dataset for entry in corpus.entries]
    views = clip_views(corpus, view_pattern)
    names: list[str | None] = [
        f"{entry.dataset} {view}" if view else entry.dataset for entry, view in zip(corpus.entries, views, strict=True)
    ]
    if granularity == "view":
        return names
    members: dict[tuple[str, str | None], list[int]] = {}
    for position, (entry, view) in enumerate(zip(corpus.entries, views, strict=True)):
        if view:
            members.setdefault((entry.dataset, entry.video_id), []).append(position)
    for frames in members.values():
        frames.sort(key=lambda position: corpus.entries[position].frame_index or 0)
        for place, position in enumerate(frames):
            phase = ("diastole", None, "systole")[3 * place // len(frames)]
            names[position] = f"{names[position]} {phase}" if phase else None
    return names


@hookimpl
def anaus_objectives() -> list[type[Objective[Any]]]:
    """The objective of this module."""
    return [AWCL]
