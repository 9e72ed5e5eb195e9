"""IVPP (VanBerlo et al. 2024, arXiv:2403.07715): pairs of near frames of a clip, weighted by how near they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import pydantic

from anaus_bench.errors import SettingsError
from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import Need, Objective
from anaus_bench.lazy import nn, torch
from anaus_bench.settings.base import Settings
from anaus_bench.settings.fields import CropArea

if TYPE_CHECKING:
    from torch import Tensor

    from anaus_bench.corpus.batch import Batch
    from anaus_bench.corpus.clips import Clips
    from anaus_bench.corpus.packed import PackedCorpus
    from anaus_bench.corpus.sampling import Sampler
    from anaus_bench.corpus.view import View
    from anaus_bench.nn.encoder import Encoder


class IVPPSettings(Settings):
    """Defaults are the paper's contrastive variant, but for the unit of the distance.

    The paper's 1.5 seconds is about half of one of its clips. Not every corpus knows its frame rate, so the default is
    half of the clip; with `delta_unit: seconds` the rate of every data set must be given.
    """

    base: Literal["simclr", "vicreg", "barlow"] = pydantic.Field(
        "simclr", description="The loss that is weighted; the contrastive one is best on POCUS in the paper"
    )
    delta: float = pydantic.Field(
        0.5, ge=0, description="Largest distance of a pair; the paper in seconds: simclr 1.5, vicreg 0.5, barlow 3"
    )
    delta_unit: Literal["fraction", "frames", "seconds"] = pydantic.Field(
        "fraction", description="Unit of delta: share of the clip's frames, frames, or seconds"
    )
    fps: dict[str, pydantic.PositiveFloat] = pydantic.Field(
        {}, description="Frames per second of each data set, for delta_unit: seconds"
    )
    weighted: bool = pydantic.Field(True, description="Whether pairs weigh less the farther apart they are")
    temperature: float = pydantic.Field(0.1, gt=0, description="Of the base simclr")
    invariance: float = pydantic.Field(25.0, ge=0, description="lambda of the base vicreg")
    variance: float = pydantic.Field(25.0, ge=0, description="mu of the base vicreg")
    covariance: float = pydantic.Field(1.0, ge=0, description="nu of the base vicreg")
    redundancy: float = pydantic.Field(0.005, ge=0, description="lambda of the base barlow")
    projection_dim: int = pydantic.Field(768, ge=2, description="Width of both layers of the projector")
    crop_area: CropArea = pydantic.Field((0.4, 1.0), description="Range of a crop's share of the image")
    sampling: Literal["frames", "clips"] = pydantic.Field(
        "frames",
        description="An epoch has as many items as there are frames, or as there are clips (the authors' code)",
    )

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "native": {"sampling": "clips"},
        "demo": {"projection_dim": 128},
        "tiny": {"projection_dim": 16},
    }


class IVPP(Objective[IVPPSettings]):
    """Contrasts near frames of a clip, weighted by their distance (SimCLR, VICReg or Barlow Twins).

    Networks: `encoder` and `projector`. An item is two frames of a clip, which may be the same.
    """

    name = "ivpp"
    settings_class = IVPPSettings
    reference = (
        "VanBerlo et al., Intra-video positive pairs in self-supervised learning for ultrasound, Frontiers in Imaging "
        "2024, arXiv:2403.07715"
    )
    needs: ClassVar[frozenset[Need]] = frozenset({"video"})
    without: ClassVar[Mapping[str, str]] = {
        "frame rates": "the distance is a share of the clip or a number of frames (delta_unit); with seconds the rate "
        "of every data set must be set",
        "clips of two frames": "the two frames of a pair may be one frame, cut twice",
    }
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "native": {
            "base_lr": 0.2,
            "batch": 384,
            "epochs": 500,
            "warmup_epochs": 2,
            "lr_end": 0.001,
            "weight_decay": 1e-6,
        },
    }

    def views(self, size: int) -> tuple[View, ...]:
        """The same recipe for both frames; one draw of brightness and contrast, at 1/2, where the paper has two."""
        from anaus_bench.corpus.view import Blur, Jitter, View

        operations = Jitter(0.5, brightness=0.25, contrast=0.25), Blur(0.25)
        return tuple(
            View(size, self.settings.crop_area, operations, interpolation="bilinear", frame=frame) for frame in range(2)
        )

    def sampler(self, corpus: PackedCorpus, batch: int, seed: int) -> Sampler:
        """Two near frames of each clip and the weight of the pair.

        Raises:
            DataError: Images that belong to no clip.
            SettingsError: delta is in seconds and a data set has no frame rate.
        """
        from anaus_bench.corpus.clips import ClipSampler, find_clips

        clips = find_clips(corpus, self.name)
        reach = self._reach(clips)

        def choose(numbers: Tensor, progress: float, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
            frames = near_pair(clips.lengths[numbers], reach[numbers], generator)
            return frames, pair_weights(frames, reach[numbers]) if self.settings.weighted else None

        return ClipSampler(clips, batch, seed, choose, self.settings.sampling)

    def corpus_facts(self, corpus: PackedCorpus, seed: int) -> dict[str, str]:
        """The clips, the largest distance of a pair, and where frame rates are from."""
        from anaus_bench.corpus.clips import find_clips, span

        settings, clips = self.settings, find_clips(corpus, self.name)
        reach = self._reach(clips)
        rates = ", ".join(
            f"{name} {settings.fps[name]:g} a second" for name in sorted(set(clips.datasets) & set(settings.fps))
        )
        return {
            "clips": clips.in_words(),
            "distance": f"at most {settings.delta:g} ({settings.delta_unit}): {span(reach)} frames",
            "frame rates": f"{rates}, as set" if settings.delta_unit == "seconds" else "not used",
        }

    def build(self, encoder: Encoder, num_classes: int = 0) -> nn.ModuleDict:
        """Encoder and projector, whose last layer has no bias."""
        from anaus_bench.nn.heads import mlp

        width = self.settings.projection_dim
        return nn.ModuleDict({"encoder": encoder, "projector": mlp(encoder.feature_dim, width, width, out_bias=False)})

    def loss(self, nets: nn.ModuleDict, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted loss of the base."""
        from anaus_bench.nn.contrast_images import barlow_twins, pair_logs, sup_con, vicreg_terms

        settings, encoder, weights = self.settings, cast("Encoder", nets["encoder"]), batch.weights
        first, second = (nets["projector"](encoder.vector(view)) for view in batch.views)  # (B, D)
        if settings.base == "simclr":
            rows = sup_con(first, second, torch.full_like(batch.labels, -1), settings.temperature).sum(dim=0)
            loss = (rows if weights is None else weights * rows).mean()
        elif settings.base == "vicreg":
            invariance, variance, covariance = vicreg_terms(first, second, weights)
            loss = settings.invariance * invariance + settings.variance * variance + settings.covariance * covariance
        else:
            loss = barlow_twins(first, second, settings.redundancy, weights)
        logs = pair_logs(first, second)
        return loss, logs if weights is None else {**logs, "pair_weight": weights.mean()}

    def _reach(self, clips: Clips) -> Tensor:
        """Delta_max of each clip in frames, (C,) int64."""
        settings = self.settings
        if settings.delta_unit == "frames":
            return torch.full_like(clips.lengths, int(settings.delta))
        if settings.delta_unit == "fraction":
            return (settings.delta * clips.lengths.double()).floor().long()
        unknown = sorted(set(clips.datasets) - set(settings.fps))
        if unknown:
            raise SettingsError(
                f"objective.delta_unit='seconds' needs the frame rate of {', '.join(unknown)}; give it with "
                f"--set objective.fps.{unknown[0]}=NUMBER, or choose another unit"
            )
        return torch.tensor([int(settings.delta * settings.fps[name]) for name in clips.datasets])


def near_pair(lengths: Tensor, reach: Tensor, generator: torch.Generator) -> Tensor:
    """(B, 2) int64 frames of clips of (B,) frames: any frame, and one at most `reach` (B,) away, itself included."""
    from anaus_bench.corpus.clips import uniform_integers

    first = uniform_integers(torch.zeros_like(lengths), lengths, generator)
    low, high = (first - reach).clamp(min=0), torch.minimum(first + reach, lengths - 1)
    return torch.stack([first, uniform_integers(low, high + 1, generator)], dim=1)


def pair_weights(frames: Tensor, reach: Tensor) -> Tensor:
    """(B,) float32 in (0, 1]: 1 for one frame twice, falling linearly to 1 / (reach + 1) at the largest distance."""
    distance = (frames[:, 1] - frames[:, 0]).abs()
    return (reach - distance + 1) / (reach + 1)


@hookimpl
def anaus_objectives() -> list[type[Objective[Any]]]:
    """The objective of this module."""
    return [IVPP]
