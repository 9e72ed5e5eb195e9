"""USCL (Chen et al. 2021, arXiv:2011.13066): contrast of mixed frames of a clip, and the classes of labelled clips."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import pydantic

from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import Need, Objective
from anaus_bench.lazy import F, nn, torch
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

LEAST_FRAMES = 3  # of a clip, to be mixed
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


class USCLSettings(LabelSettings):
    """Defaults are the paper's, and its code's where the text is silent."""

    temperature: float = pydantic.Field(0.5, gt=0, description="T of the contrast")
    lambda_label: float = pydantic.Field(
        0.2, ge=0, description="Weight of the cross-entropy of labelled clips; 0 is the self-supervised variant"
    )
    label_set: Literal["classes", "classes+views"] = pydantic.Field(
        "classes",
        description="The class labels alone, so that clips of other data sets have none; or also the views of clips "
        "that have none",
    )
    mixing: float = pydantic.Field(
        0.5, gt=0, description="alpha of Beta(alpha, alpha), from which a frame's share in the mixture is drawn"
    )
    hidden_dim: int | None = pydantic.Field(
        None, ge=1, description="Hidden width of the projector; null is the encoder's width, as in the code"
    )
    projection_dim: int = pydantic.Field(256, ge=1, description="Width of the projections")
    crop_area: CropArea = pydantic.Field((0.8, 1.0), description="Range of a crop's share of the image")
    sampling: Literal["frames", "clips"] = pydantic.Field(
        "frames",
        description="An epoch has as many items as there are frames, or as there are clips (the authors' code)",
    )

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "native": {"sampling": "clips"},
        "demo": {"projection_dim": 64},
        "tiny": {"hidden_dim": 32, "projection_dim": 16},
    }


class USCL(Objective[USCLSettings]):
    """Contrasts mixtures of frames of a clip, and learns the clips' labels where there are any.

    Networks: `encoder`, `projector` and, where there are classes to learn, the linear `classifier` of projections.

    An item is three frames of a clip: the anchor and one to be mixed into each view.
    """

    name = "uscl"
    settings_class = USCLSettings
    reference = "Chen et al., USCL: Pretraining deep ultrasound image diagnosis model, MICCAI 2021, arXiv:2011.13066"
    needs: ClassVar[frozenset[Need]] = frozenset({"video"})
    without: ClassVar[Mapping[str, str]] = {
        "class labels": "the contrast alone, as with lambda_label=0",
        "clips of three frames": "of two frames each is a view, of one frame two views are cut; nothing is mixed",
    }
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "native": {
            "optimiser": "adam",
            "base_lr": 3e-4,
            "lr_scaling": False,
            "schedule": "held_cosine",
            "hold_epochs": 10,
            "batch": 32,
            "warmup_epochs": 0,
            "weight_decay": 1e-4,
            "decay_norms": True,
            "init": "random",
        },
    }

    def views(self, size: int) -> tuple[View, ...]:
        """The same recipe for each of the three frames: mild crop, flip, strong jitter."""
        from anaus_bench.corpus.view import Jitter, View

        return tuple(
            View(
                size,
                self.settings.crop_area,
                (Jitter(1.0, brightness=0.8, contrast=0.8),),
                crop_ratio=(0.8, 1.25),
                mean=MEAN,
                std=STD,
                frame=frame,
            )
            for frame in range(3)
        )

    def labels(self, corpus: PackedCorpus) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """Class labels, and views if asked for."""
        from anaus_bench.corpus.tags import labels_of

        return labels_of(corpus, self.settings)

    def corpus_facts(self, corpus: PackedCorpus, seed: int) -> dict[str, str]:
        """The clips, and the labels that are learned."""
        from anaus_bench.corpus.clips import find_clips
        from anaus_bench.corpus.tags import count_names

        clips = find_clips(corpus, self.name)
        short = int((clips.lengths < LEAST_FRAMES).sum())
        unmixed = f"; {short} of fewer than {LEAST_FRAMES} are not mixed" if short else ""
        labels, names = self.labels(corpus)
        learned = count_names(labels, names)
        if self.settings.lambda_label == 0 or not (labels >= 0).any():
            why = "lambda_label=0" if self.settings.lambda_label == 0 else "no image has one"
            learned = f"not used ({why}): the contrast alone"
        return {"clips": clips.in_words() + unmixed, "labels": learned}

    def sampler(self, corpus: PackedCorpus, batch: int, seed: int) -> Sampler:
        """Three frames of each clip; the weight is the share of the mixed-in frames.

        Raises:
            DataError: Images that belong to no clip.
        """
        from anaus_bench.corpus.clips import ClipSampler, find_clips

        clips = find_clips(corpus, self.name)

        def choose(numbers: Tensor, progress: float, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
            lengths = clips.lengths[numbers]
            return three_frames(lengths, generator), shares(lengths, self.settings.mixing, generator)

        return ClipSampler(clips, batch, seed, choose, self.settings.sampling)

    def build(self, encoder: Encoder, num_classes: int = 0) -> nn.ModuleDict:
        """Encoder, projector without batch norm, classifier on the projections (as in the code)."""
        from anaus_bench.nn.heads import mlp

        settings, width = self.settings, encoder.feature_dim
        nets = {
            "encoder": encoder,
            "projector": mlp(width, settings.hidden_dim or width, settings.projection_dim, norm=False),
        }
        if num_classes > 0 and settings.lambda_label > 0:
            nets["classifier"] = nn.Linear(settings.projection_dim, num_classes)
        return nn.ModuleDict(nets)

    def loss(self, nets: nn.ModuleDict, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """NT-Xent of the mixed views, plus lambda times the cross-entropy of both over the labelled items."""
        from anaus_bench.nn.contrast_images import nt_xent, pair_logs

        encoder = cast("Encoder", nets["encoder"])
        anchor, *others = batch.views
        share = cast("Tensor", batch.weights)[:, None, None, None]
        first, second = (nets["projector"](encoder.vector(torch.lerp(anchor, other, share))) for other in others)
        loss, logs = nt_xent(first, second, self.settings.temperature), pair_logs(first, second)
        if "classifier" in nets:
            logits = [nets["classifier"](rows).float() for rows in (first, second)]
            labelled = torch.stack([labelled_entropy(rows, batch.labels) for rows in logits]).sum()
            logs |= {"contrast": loss.detach(), "classes": labelled.detach()}
            loss = loss + self.settings.lambda_label * labelled
        return loss, logs


def three_frames(lengths: Tensor, generator: torch.Generator) -> Tensor:
    """(B, 3) int64 of clips of (B,) frames: the anchor and two more, all distinct where there are three frames.

    Of two frames, the first and the second are the last two columns; of one frame, it is all three.
    """
    from anaus_bench.corpus.clips import uniform_integers

    zero, pad = torch.zeros_like(lengths), lengths.clamp(min=LEAST_FRAMES)
    anchor = uniform_integers(zero, pad, generator)
    first = uniform_integers(zero, pad - 1, generator)
    first = first + (first >= anchor)
    second = uniform_integers(zero, pad - 2, generator)
    second = second + (second >= torch.minimum(anchor, first))
    second = second + (second >= torch.maximum(anchor, first))
    drawn = torch.stack([anchor, first, second], dim=1)
    short = torch.stack([zero, zero, (lengths - 1).clamp(max=1)], dim=1)
    return torch.where(lengths[:, None] >= LEAST_FRAMES, drawn, short)


def shares(lengths: Tensor, alpha: float, generator: torch.Generator) -> Tensor:
    """(B,) float32 xi ~ Beta(alpha, alpha) of each item; 1 (nothing is mixed) for clips of fewer than three frames."""
    import numpy as np

    seed = int(torch.randint(2**62, (), generator=generator))
    drawn = torch.from_numpy(np.random.default_rng(seed).beta(alpha, alpha, len(lengths))).float()
    return torch.where(lengths >= LEAST_FRAMES, drawn, 1.0)


def labelled_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the rows (B, C) whose label (B,) is not -1; 0 without any."""
    from anaus_bench.distributed.group import divisor

    losses = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum")
    return losses / divisor((labels >= 0).sum())


@hookimpl
def anaus_objectives() -> list[type[Objective[Any]]]:
    """The objective of this module."""
    return [USCL]
