"""Batches as functions of (seed, step), the same after resuming."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

from anaus_bench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from anaus_bench.nn.encoder import Encoder, EncoderCard


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Steps in which every one of `count` images is seen once."""
    return math.ceil(count / batch_size)


def batch_indices(seed: int, step: int, count: int, batch_size: int) -> Tensor:
    """Positions (B,) int64 of a step's images: a slice of the epoch's random order of all `count` images.

    The last batch of an epoch holds what is left.
    """
    from anaus_bench.seeds import stream

    epoch, position = divmod(step, steps_per_epoch(count, batch_size))
    generator = torch.Generator().manual_seed(stream(seed, "order", epoch))
    order = torch.randperm(count, generator=generator)
    return order[position * batch_size : (position + 1) * batch_size]


def step_generator(seed: int, step: int) -> torch.Generator:
    """A CPU generator for a step's augmentation."""
    from anaus_bench.seeds import stream

    return torch.Generator().manual_seed(stream(seed, "augmentation", step))


def encoder_card(encoder: Encoder) -> EncoderCard:
    """The card of a loaded encoder: its normalisation travels with it."""
    return cast("EncoderCard", encoder.card)
