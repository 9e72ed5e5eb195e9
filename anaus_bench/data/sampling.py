"""Which images make up a batch, as a function of (seed, step).

An item of a batch is one image, or several: the frames of a clip that a clip method compares, or a labelled image with
its unlabelled ones.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anaus_bench.data.corpus import Entry, PackedCorpus
from anaus_bench.errors import CountMismatch, DataError, LabelError
from anaus_bench.seeds import stream


@dataclass(frozen=True)
class Draw:
    """The images of one step.

    Attributes:
        images: (B, M) int64 positions in the corpus: M images per item.
        weights: (B,) float32 number of each item for the loss, such as its weight, or None.
    """

    images: Tensor
    weights: Tensor | None = None


class Sampler(Protocol):
    """Draws batches.

    Attributes:
        steps_per_epoch: Steps in which the corpus is passed once.
    """

    steps_per_epoch: int

    def draw(self, step: int, progress: float) -> Draw:
        """The images of step `step`; `progress` = step / steps in [0, 1) is for curricula."""


class ImageSampler:
    """Every image once per epoch, in an order of the epoch's; the rest that makes no full batch is left out.

    Args:
        count: Images of the corpus.
        batch: Images per step.
        seed: Seed of the run.

    Raises:
        CountMismatch: Fewer images than one batch.
    """

    def __init__(self, count: int, batch: int, seed: int) -> None:
        if count < batch:
            raise CountMismatch(f"corpus has {count} images, fewer than one batch of {batch}; lower pretrain.batch")
        self.count, self.batch, self.seed = count, batch, seed
        self.steps_per_epoch = count // batch
        self._held: tuple[int, Tensor] = (-1, torch.empty(0))

    def draw(self, step: int, progress: float) -> Draw:
        """Consecutive parts of the epoch's permutation."""
        epoch, part = divmod(step, self.steps_per_epoch)
        if self._held[0] != epoch:
            generator = torch.Generator().manual_seed(stream(self.seed, "order of images", epoch))
            self._held = epoch, torch.randperm(self.count, generator=generator)
        return Draw(self._held[1][part * self.batch : (part + 1) * self.batch, None])


class WeightedSampler:
    """The draws of another sampler with a number of each item: that of its first image.

    Args:
        sampler: Draws the images.
        weights: (N,) float32, one of each image of the corpus.
    """

    def __init__(self, sampler: Sampler, weights: Tensor) -> None:
        self.sampler, self.weights = sampler, weights
        self.steps_per_epoch = sampler.steps_per_epoch

    def draw(self, step: int, progress: float) -> Draw:
        """The other sampler's images, with their numbers."""
        images = self.sampler.draw(step, progress).images
        return Draw(images, self.weights[images[:, 0]])


# ---- clips -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clips:
    """The clips of a corpus, in order of their first frame; a frame's number is its place among those of the corpus.

    Attributes:
        positions: (F,) int64 positions in the corpus of all frames, clip after clip, in the order of `frame_index`.
        starts: (C,) int64 where a clip begins in `positions`.
        lengths: (C,) int64 frames of each clip.
        datasets: Data set of each clip.
        too_short: Number of clips left out, because they have too few frames.
    """

    positions: Tensor
    starts: Tensor
    lengths: Tensor
    datasets: tuple[str, ...]
    too_short: int

    def __len__(self) -> int:
        return len(self.lengths)

    def at(self, clips: Tensor, frames: Tensor) -> Tensor:
        """Positions in the corpus (B, M) of the frames (B, M) of clips (B,)."""
        return self.positions[self.starts[clips, None] + frames]

    def in_words(self, least: int = 1) -> str:
        """How many there are, how long, and how many were left out for having fewer than `least` frames."""
        left_out = f"; {self.too_short} of fewer than {least} frames are left out" if self.too_short else ""
        return f"{len(self)} of {span(self.lengths)} frames{left_out}"


def span(numbers: Tensor) -> str:
    """The range of whole numbers in words: `3 to 5`, or `3` if all are alike."""
    low, high = int(numbers.min()), int(numbers.max())
    return f"{low} to {high}" if low < high else str(low)


def find_clips(corpus: PackedCorpus, method: str, least: int = 1) -> Clips:
    """All clips of at least `least` frames.

    Args:
        corpus: Its entries give video ids and frame numbers.
        method: Names the objective in errors.
        least: Frames that the method compares.

    Raises:
        DataError: Images that belong to no clip, or no clip that is long enough.
    """
    lone = [entry.dataset for entry in corpus.entries if entry.video_id is None or entry.frame_index is None]
    if lone:
        raise DataError(
            f"objective {method!r} compares the frames of clips, but {len(lone)} of {len(corpus)} images belong to "
            f"none (data sets: {', '.join(sorted(set(lone)))}); pass a --corpus of videos"
        )
    members: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for position, entry in enumerate(corpus.entries):
        members.setdefault((entry.dataset, entry.video_id or ""), []).append((entry.frame_index or 0, position))
    kept = {clip: sorted(frames) for clip, frames in members.items() if len(frames) >= least}
    if not kept:
        longest = max((len(frames) for frames in members.values()), default=0)
        raise DataError(
            f"objective {method!r} needs clips of at least {least} frames; the longest of {len(members)} clips of this "
            f"corpus has {longest}; pass another --corpus"
        )
    lengths = torch.tensor([len(frames) for frames in kept.values()])
    return Clips(
        positions=torch.tensor([position for frames in kept.values() for _, position in frames]),
        starts=lengths.cumsum(0) - lengths,
        lengths=lengths,
        datasets=tuple(dataset for dataset, _ in kept),
        too_short=len(members) - len(kept),
    )


ClipSampling = Literal["frames", "clips"]

FrameChoice = Callable[[Tensor, float, torch.Generator], tuple[Tensor, Tensor | None]]
"""(clips (B,), progress, generator) -> frames (B, M) of each clip, and the weight (B,) of each item or None."""


class ClipSampler:
    """Draws clips, then frames of each.

    `frames`: clips by their number of frames, and an epoch has as many items as there are frames, so that a method on
    clips takes as many steps as one on images. The clips of a batch differ, where there are enough of them.
    `clips`: every clip once per epoch, in an order of the epoch's (the authors' way); the rest is left out.

    Args:
        clips: Those of the corpus.
        batch: Items per step.
        seed: Seed of the run.
        choose: Draws the frames.
        sampling: See above.

    Raises:
        CountMismatch: Fewer frames (or clips) than one batch.
    """

    def __init__(self, clips: Clips, batch: int, seed: int, choose: FrameChoice, sampling: ClipSampling) -> None:
        count = len(clips) if sampling == "clips" else len(clips.positions)
        if count < batch:
            raise CountMismatch(f"corpus has {count} {sampling}, fewer than one batch of {batch}; lower pretrain.batch")
        self.clips, self.batch, self.seed, self.choose = clips, batch, seed, choose
        self.steps_per_epoch = count // batch
        self._order = ImageSampler(len(clips), batch, seed) if sampling == "clips" else None

    def draw(self, step: int, progress: float) -> Draw:
        """Frames and weights of the step's clips."""
        generator = torch.Generator().manual_seed(stream(self.seed, "frames", step))
        if self._order is None:
            few = len(self.clips) < self.batch
            clips = torch.multinomial(self.clips.lengths.double(), self.batch, replacement=few, generator=generator)
        else:
            clips = self._order.draw(step, progress).images[:, 0]
        frames, weights = self.choose(clips, progress, generator)
        return Draw(self.clips.at(clips, frames), weights)


def uniform_integers(low: Tensor, high: Tensor, generator: torch.Generator) -> Tensor:
    """Integers drawn uniformly from [low, high), elementwise; int64 bounds of one shape, low < high."""
    share = torch.rand(low.shape, generator=generator, dtype=torch.float64)
    return torch.minimum(low + (share * (high - low)).long(), high - 1)


# ---- labels ----------------------------------------------------------------------------------------------------------


class BalancedSampler:
    """Labelled images only, each class as often: the classes and the images of each run through permutations.

    An epoch is the number of steps in which an objective on single images passes the corpus, so that all take as many.

    Args:
        labels: (N,) int64 class of each image of the corpus, -1 = none; at least one image has one.
        batch: Items per step.
        seed: Seed of the run.

    Raises:
        CountMismatch: Fewer images than one batch.
    """

    def __init__(self, labels: NDArray[np.int64], batch: int, seed: int) -> None:
        if len(labels) < batch:
            raise CountMismatch(
                f"corpus has {len(labels)} images, fewer than one batch of {batch}; lower pretrain.batch"
            )
        self.batch = batch
        self.steps_per_epoch = len(labels) // batch
        present = np.unique(labels[labels >= 0]).tolist()
        self._members = [torch.from_numpy(np.flatnonzero(labels == label)) for label in present]
        self._classes = _Stream(len(present), stream(seed, "classes"))
        self._images = [
            _Stream(len(members), stream(seed, "images of a class", number))
            for number, members in enumerate(self._members)
        ]

    def draw(self, step: int, progress: float) -> Draw:
        """A round shows every class once, with the next image of each."""
        places = torch.arange(step * self.batch, (step + 1) * self.batch)
        rounds = places // len(self._members)
        first, number = int(rounds[0]), int(rounds[-1] - rounds[0]) + 1
        pairs = zip(self._members, self._images, strict=True)
        images = torch.stack([members[stream.take(first, number)] for members, stream in pairs])  # (classes, rounds)
        classes = self._classes.take(step * self.batch, self.batch)
        return Draw(images[classes, rounds - first][:, None])


class SemiSupervisedSampler:
    """Items of one labelled image and several of all images: both run through permutations without end.

    An epoch is the number of steps in which an objective on single images passes the corpus, so that all take as many.

    Args:
        labelled: (L,) int64 positions of the labelled images, L at least 1.
        count: Images of the corpus.
        batch: Items per step.
        unlabelled: Images without label per item; the labelled ones are among those drawn from.
        seed: Seed of the run.

    Raises:
        CountMismatch: Fewer images than one batch.
    """

    def __init__(self, labelled: Tensor, count: int, batch: int, unlabelled: int, seed: int) -> None:
        if count < batch:
            raise CountMismatch(f"corpus has {count} images, fewer than one batch of {batch}; lower pretrain.batch")
        self.labelled, self.batch, self.unlabelled = labelled, batch, unlabelled
        self.steps_per_epoch = count // batch
        self._labelled = _Stream(len(labelled), stream(seed, "labelled images"))
        self._all = _Stream(count, stream(seed, "unlabelled images"))

    def draw(self, step: int, progress: float) -> Draw:
        """The labelled image of each item first."""
        labelled = self.labelled[self._labelled.take(step * self.batch, self.batch)]
        number = self.batch * self.unlabelled
        others = self._all.take(step * number, number).view(self.batch, self.unlabelled)
        return Draw(torch.cat([labelled[:, None], others], dim=1))


def labelled_part(corpus: PackedCorpus, labels: NDArray[np.int64], fraction: float, seed: int) -> NDArray[np.bool_]:
    """(N,) bool: the images that keep their label: a fraction of the clips of each class, at least one.

    A clip is never split, because its frames are near duplicates; without video ids the unit is the group.

    Args:
        corpus: N images.
        labels: (N,) classes, -1 = none.
        fraction: In (0, 1].
        seed: Of the choice.

    Raises:
        LabelError: No image has a label.
    """
    units: dict[int, dict[tuple[str, str], list[int]]] = {}
    for position, (entry, label) in enumerate(zip(corpus.entries, labels.tolist(), strict=True)):
        if label >= 0:
            units.setdefault(label, {}).setdefault(_clip_of(entry), []).append(position)
    if not units:
        raise LabelError(f"none of the {len(corpus)} images of this corpus has a class label; pass another --corpus")
    keeps = np.zeros(len(corpus), dtype=bool)
    for label, clips in units.items():
        keeps[_first_clips(clips.values(), fraction, stream(seed, "labels that are kept", label))] = True
    return keeps


def share_of_clips(corpus: PackedCorpus, rows: NDArray[np.int64], share: float, seed: int) -> NDArray[np.int64]:
    """(m,) int64: the rows of a share of the clips of each data set, at least one, in their order.

    A clip is never split, because its frames are near duplicates; without video ids the unit is the group. The rows of
    a smaller share are among those of a larger one.

    Args:
        corpus: The images.
        rows: (n,) int64 rows to take from.
        share: In (0, 1].
        seed: Of the choice.
    """
    units: dict[str, dict[tuple[str, str], list[int]]] = {}
    for row in rows.tolist():
        clip = _clip_of(corpus.entries[row])
        units.setdefault(clip[0], {}).setdefault(clip, []).append(row)
    kept = [_first_clips(clips.values(), share, stream(seed, f"share of {name}")) for name, clips in units.items()]
    return np.sort(np.array([row for part in kept for row in part], dtype=np.int64))


def _clip_of(entry: Entry) -> tuple[str, str]:
    """Data set and clip of an image, or its group where it belongs to no clip."""
    return entry.dataset, entry.video_id or entry.group_id


def _first_clips(clips: Collection[list[int]], share: float, seed: int) -> list[int]:
    """Positions of the first clips of a random order that does not depend on the share; at least one clip's."""
    order = np.random.default_rng(seed).permutation(len(clips))[: max(1, round(share * len(clips)))]
    positions = list(clips)
    return [position for number in order.tolist() for position in positions[number]]


class _Stream:
    """The numbers 0 to count - 1 in one random order after another, without end."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self._held: tuple[int, Tensor] = (-1, torch.empty(0))

    def take(self, start: int, number: int) -> Tensor:
        """(number,) int64: those from place `start` on."""
        first, last = start // self.count, (start + number - 1) // self.count
        parts = torch.cat([self._order(epoch) for epoch in range(first, last + 1)])
        return parts[start - first * self.count :][:number]

    def _order(self, epoch: int) -> Tensor:
        if self._held[0] != epoch:
            generator = torch.Generator().manual_seed(stream(self.seed, "order", epoch))
            self._held = epoch, torch.randperm(self.count, generator=generator)
        return self._held[1]
