"""Clips of a corpus, and samplers of their frames."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from anaus_bench.corpus.packed import PackedCorpus
from anaus_bench.corpus.sampling import Draw, ImageSampler
from anaus_bench.errors import CountMismatch, DataError
from anaus_bench.seeds import step_seed


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
        generator = torch.Generator().manual_seed(step_seed(step_seed(~self.seed, step), 1))
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
