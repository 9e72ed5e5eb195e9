"""Which images make up a batch, as a function of (seed, step).

An item of a batch is one image, or several: the frames of a clip that a clip method compares, or a labelled image with
its unlabelled ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from anaus_bench.errors import CountMismatch
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


# ---- labels ----------------------------------------------------------------------------------------------------------
