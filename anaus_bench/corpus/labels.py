"""Samplers that know the class labels."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anaus_bench.corpus.packed import Entry, PackedCorpus
from anaus_bench.corpus.sampling import Draw
from anaus_bench.errors import CountMismatch, LabelError
from anaus_bench.seeds import stream


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
