"""USUCL (Basu et al., MICCAI 2022): a neighbouring frame against far frames of its clip and a synthetic negative.

Networks and sampling follow the released configuration. Of its code only what reaches the loss is here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import pydantic

from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import Need, Objective
from anaus_bench.lazy import F, nn, torch
from anaus_bench.settings.base import Settings

if TYPE_CHECKING:
    from torch import Tensor

    from anaus_bench.corpus.batch import Batch
    from anaus_bench.corpus.packed import PackedCorpus
    from anaus_bench.corpus.sampling import Sampler
    from anaus_bench.corpus.view import View
    from anaus_bench.nn.encoder import Encoder

LEAST_FRAMES = 3  # a shorter clip has no anchor with a neighbour
REACH = 3  # frames between anchor and positive, at most
FLOOR = 4  # frames between anchor and negative, at least
EPOCHS = 60  # of the released schedule; its milestones are shares of the run
FIRST_RANGE, SECOND_RANGE, THIRD_RANGE = (0.2, 0.4), (0.1, 0.15), (0.03, 0.07)


class USUCLSettings(Settings):
    """Defaults are those of the released scripts."""

    temperature: float = pydantic.Field(0.07, gt=0, description="T of the contrast")
    synthetic_temperature: float = pydantic.Field(
        0.07, gt=0, description="Of the softmax that weighs the parts of the synthetic negative"
    )
    momentum: float = pydantic.Field(0.999, ge=0, le=1, description="m of the key network's moving average")
    negatives: int = pydantic.Field(3, ge=1, description="N, far frames of the clip per item")
    nearest: int = pydantic.Field(
        2, ge=1, description="k_s, negatives of the batch that make a synthetic one: 2 on Butterfly, 4 on gall bladders"
    )
    exclude_own: bool = pydantic.Field(
        False, description="Whether an item's own negatives are left out of its synthetic one; in the code they are not"
    )
    curriculum: Literal["cosine", "table"] = pydantic.Field(
        "cosine",
        description="How negatives come nearer in the second half: the released scripts', or the paper's table",
    )
    hidden_dim: int | None = pydantic.Field(
        None, ge=1, description="Hidden width of the projector; null is the encoder's width, as in the code"
    )
    projection_dim: int = pydantic.Field(128, ge=1, description="Width of the projections")
    sampling: Literal["frames", "clips"] = pydantic.Field(
        "frames",
        description="An epoch has as many items as there are frames, or as there are clips (the authors' code)",
    )

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "native": {"sampling": "clips"},
        "demo": {"projection_dim": 64, "momentum": 0.99},
        "tiny": {"hidden_dim": 32, "projection_dim": 16, "momentum": 0.9, "negatives": 2},
    }


class USUCL(Objective[USUCLSettings]):
    """Contrasts neighbouring frames of a clip against distant ones and other clips, near to hard.

    Networks: `encoder`, `projector`; `target_encoder`, `target_projector` for the keys.

    An item is an anchor, a neighbour and N far frames, so that a step trains on batch x (1 + N) images. Clips of fewer
    than three frames are left out.
    """

    name = "usucl"
    settings_class = USUCLSettings
    reference = (
        "Basu et al., Unsupervised contrastive learning of image representations from ultrasound videos with hard "
        "negative mining, MICCAI 2022, arXiv:2207.13148"
    )
    needs: ClassVar[frozenset[Need]] = frozenset({"video"})
    without: ClassVar[Mapping[str, str]] = {
        "clips of three frames": "shorter clips are left out and counted; a corpus without any is refused",
        "frames far enough apart": "the farthest frames of the clip from the anchor are its negatives",
    }
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "native": {
            "optimiser": "sgd",
            "base_lr": 0.003,
            "lr_scaling": False,
            "batch": 32,
            "epochs": EPOCHS,
            "warmup_epochs": 0,
            "weight_decay": 1e-4,
            "decay_norms": True,
        },
    }

    def views(self, size: int) -> tuple[View, ...]:
        """Of every frame the largest square at a random place; no flip, no photometry."""
        from anaus_bench.corpus.view import View

        return tuple(
            View(
                size,
                interpolation="bilinear",
                flip=0.0,
                jitter=0.0,
                grayscale=0.0,
                blur=0.0,
                square=True,
                frame=frame,
            )
            for frame in range(2 + self.settings.negatives)
        )

    def sampler(self, corpus: PackedCorpus, batch: int, seed: int) -> Sampler:
        """Anchor, neighbour and N far frames of each clip; the weight says whether the far frames are contrasted.

        Raises:
            DataError: Images that belong to no clip, or no clip of three frames.
        """
        from anaus_bench.corpus.clips import ClipSampler, find_clips

        clips = find_clips(corpus, self.name, LEAST_FRAMES)
        settings = self.settings

        def choose(numbers: Tensor, progress: float, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
            within_clip, bounds = curriculum(progress, settings.curriculum)
            frames = choose_frames(clips.lengths[numbers], bounds, settings.negatives, generator)
            return frames, torch.full((len(numbers),), float(within_clip))

        return ClipSampler(clips, batch, seed, choose, settings.sampling)

    def corpus_facts(self, corpus: PackedCorpus, seed: int) -> dict[str, str]:
        """The clips, and how many are too short."""
        from anaus_bench.corpus.clips import find_clips

        return {"clips": find_clips(corpus, self.name, LEAST_FRAMES).in_words(LEAST_FRAMES)}

    def build(self, encoder: Encoder, num_classes: int = 0) -> nn.ModuleDict:
        """Trained and key networks, no batch norm in the heads."""
        from anaus_bench.nn.heads import mlp
        from anaus_bench.nn.momentum import frozen_copy

        settings, width = self.settings, encoder.feature_dim
        projector = mlp(width, settings.hidden_dim or width, settings.projection_dim, norm=False)
        return nn.ModuleDict(
            {
                "encoder": encoder,
                "projector": projector,
                "target_encoder": frozen_copy(encoder),
                "target_projector": frozen_copy(projector),
            }
        )

    def before_forward(self, nets: nn.ModuleDict, progress: float) -> None:
        """Moves the key networks towards the trained ones, before the keys are made."""
        from anaus_bench.nn.momentum import momentum_update

        for name in ("encoder", "projector"):
            momentum_update(nets[f"target_{name}"], nets[name], self.settings.momentum)

    def loss(self, nets: nn.ModuleDict, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of the neighbour against the far frames of the clip and the synthetic negative.

        The far frames pass together and with gradients; the memory of which synthetic negatives are made are those of
        this batch, of all processes, without gradients.
        """
        from anaus_bench.distributed.group import gather_rows
        from anaus_bench.nn.contrast_images import pair_logs

        settings, count = self.settings, len(batch.labels)
        anchor_view, neighbour, *far = batch.views
        anchors = self._embed(nets, "", anchor_view)  # (B, D)
        negatives = self._embed(nets, "", torch.cat(far)).view(settings.negatives, count, -1).transpose(0, 1)
        with torch.no_grad():
            keys = self._embed(nets, "target_", neighbour)
            memory, first_item = gather_rows(negatives.detach())  # (U, N, D)
        synthetic = synthetic_negatives(
            anchors,
            memory,
            settings.nearest,
            settings.synthetic_temperature,
            first_item if settings.exclude_own else None,
        )
        within_clip = cast("Tensor", batch.weights) > 0
        loss = hard_negative_nce(anchors, keys, negatives, synthetic, within_clip, settings.temperature)
        far_cosine = torch.einsum("bd,bnd->bn", anchors, negatives).detach().mean()
        synthetic_cosine = (anchors * synthetic).sum(dim=1).detach().mean()
        logs = {"far_cosine": far_cosine, "synthetic_cosine": synthetic_cosine}
        return loss, {**logs, **pair_logs(anchors, keys)}

    def _embed(self, nets: nn.ModuleDict, prefix: str, images: Tensor) -> Tensor:
        """Unit rows (B, D) float32."""
        encoder = cast("Encoder", nets[f"{prefix}encoder"])
        return F.normalize(nets[f"{prefix}projector"](encoder.vector(images)).float(), dim=1)


def curriculum(progress: float, variant: Literal["cosine", "table"]) -> tuple[bool, tuple[float, float]]:
    """Whether far frames of the clip are negatives, and between which shares of the clip's length they lie.

    The first sixth has the synthetic negative alone; the distances shrink from the middle on. In the cosine variant the
    released code multiplies them anew each epoch, so that the factors compound.
    """
    epoch = math.floor(progress * EPOCHS + 1e-9)
    if variant == "table":
        return epoch >= 10, FIRST_RANGE if epoch < 30 else SECOND_RANGE if epoch < 50 else THIRD_RANGE
    factor = math.prod((1 + math.cos(math.pi * (past - 30) / 30)) / 2 for past in range(30, epoch + 1))
    return epoch >= 10, (FIRST_RANGE[0] * factor, FIRST_RANGE[1] * factor)


def choose_frames(lengths: Tensor, bounds: tuple[float, float], negatives: int, generator: torch.Generator) -> Tensor:
    """(B, 2 + negatives) int64 frames of clips of (B,) >= 3 frames: anchor, neighbour, far frames with replacement.

    Where a clip has no frame in the range, the farthest from the anchor are taken.
    """
    from anaus_bench.corpus.clips import uniform_integers

    anchor = uniform_integers((lengths + 4) // 5, (lengths + 1) // 2, generator)
    low, high = (anchor - REACH).clamp(min=0), torch.minimum(anchor + REACH, lengths - 1)
    neighbour = uniform_integers(low, high, generator)  # as if the anchor were not there
    neighbour = neighbour + (neighbour >= anchor)
    left, right = far_ranges(anchor, lengths, bounds)
    size_left, size_right = left[1] - left[0], right[1] - right[0]
    shape = (len(lengths), negatives)
    drawn = uniform_integers(
        torch.zeros(shape, dtype=torch.long), (size_left + size_right)[:, None].expand(shape), generator
    )
    in_right = drawn >= size_left[:, None]
    far = torch.where(in_right, drawn - size_left[:, None] + right[0][:, None], drawn + left[0][:, None])
    return torch.cat([anchor[:, None], neighbour[:, None], far], dim=1)


def far_ranges(
    anchor: Tensor, lengths: Tensor, bounds: tuple[float, float]
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Half-open ranges of far frames before and after anchors (B,) in clips of (B,) frames; together not empty."""
    near = (bounds[0] * lengths.double()).floor().long().clamp(min=FLOOR)
    share = bounds[1] * lengths.double()
    before, after = share.floor().long().clamp(min=FLOOR + 2), share.ceil().long().clamp(min=FLOOR + 2)
    zero = torch.zeros_like(anchor)
    left = (anchor - before).clamp(min=0), (anchor - near).clamp(min=0)
    right = torch.minimum(lengths, anchor + near), torch.minimum(lengths, anchor + after)
    empty = (left[1] - left[0]) + (right[1] - right[0]) == 0
    ahead = lengths - 1 - anchor  # frames after the anchor
    left_end = torch.where(empty, (anchor >= ahead).long(), left[1])
    right_start = torch.where(empty, lengths - (ahead >= anchor).long(), right[0])
    return (torch.where(empty, zero, left[0]), left_end), (right_start, torch.where(empty, lengths, right[1]))


def synthetic_negatives(
    anchors: Tensor, memory: Tensor, nearest: int, temperature: float, exclude_from: int | None = None
) -> Tensor:
    """(B, D): the mean of an anchor's nearest rows in memory, weighted by the softmax of their cosines / temperature.

    Gradients flow to the anchors, through the weights. With fewer than `nearest` rows all are taken.

    Args:
        anchors: (B, D) unit rows.
        memory: (U, N, D) unit rows of all U items, without gradients.
        nearest: k_s.
        temperature: Of the softmax.
        exclude_from: Position of the anchors' first item among the U; an anchor's own rows are then left out.
    """
    (items, per_item), rows = memory.shape[:2], memory.flatten(0, 1)
    usable = len(rows) if exclude_from is None else len(rows) - per_item
    with torch.autocast(anchors.device.type, enabled=False):
        similarity = anchors @ rows.T  # (B, U * N)
        if exclude_from is not None:
            owner = torch.arange(items, device=anchors.device).repeat_interleave(per_item)
            own = owner == torch.arange(len(anchors), device=anchors.device)[:, None] + exclude_from
            similarity = similarity.masked_fill(own, -torch.inf)
        top = similarity.topk(min(nearest, usable), dim=1)
        weights = F.softmax(top.values / temperature, dim=1)  # (B, k)
        return torch.einsum("bk,bkd->bd", weights, rows[top.indices])


def hard_negative_nce(
    anchors: Tensor, keys: Tensor, negatives: Tensor, synthetic: Tensor, within_clip: Tensor, temperature: float
) -> Tensor:
    """Mean cross-entropy of [key, far frames, synthetic negative] with the key as the class, in float32.

    Args:
        anchors: (B, D) unit rows.
        keys: (B, D).
        negatives: (B, N, D).
        synthetic: (B, D).
        within_clip: (B,) bool, whether the far frames of an item take part.
        temperature: T.
    """
    with torch.autocast(anchors.device.type, enabled=False):
        candidates = torch.cat([keys[:, None], synthetic[:, None], negatives], dim=1).float()  # (B, 2 + N, D)
        logits = torch.einsum("bd,bkd->bk", anchors.float(), candidates) / temperature
        unused = torch.zeros_like(logits, dtype=torch.bool)
        unused[:, 2:] = ~within_clip[:, None]
        logits = logits.masked_fill(unused, -torch.inf)
        return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))


@hookimpl
def anaus_objectives() -> list[type[Objective[Any]]]:
    """The objective of this module."""
    return [USUCL]
