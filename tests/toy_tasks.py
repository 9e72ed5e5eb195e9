"""Small tasks that protocols are tested on: discs to segment, shades to classify."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from anaus_bench.interfaces import Case, Fold, Picture, Protocol, Sample, StageContext, Task
from anaus_bench.nn.encoder import Encoder, EncoderCard
from anaus_bench.nn.network import NetworkCard, load_state, read_card, save_network
from anaus_bench.settings.task import TaskSettings
from anaus_bench.tasks.classification import ACCURACY, ClassificationTask
from anaus_bench.tasks.segmentation import DICE, SegmentationSettings, SegmentationTask

CLASSES = ("dark", "bright")


class Discs(SegmentationTask[SegmentationSettings]):
    name = "discs"
    dataset = "discs"
    metrics = (DICE,)


class Shades(ClassificationTask[TaskSettings]):
    name = "shades"
    dataset = "shades"
    metrics = (ACCURACY,)


DISCS = Discs(SegmentationSettings())
SHADES = Shades(TaskSettings())


def disc_case(number: int, side: int = 64) -> Case:
    """A bright disc on speckle, (side, side + 16)."""
    generator = np.random.default_rng(number)
    rows, columns = np.ogrid[:side, : side + 16]
    centre = generator.uniform(0.35 * side, 0.65 * side, size=2)
    mask = np.hypot(rows - centre[0], columns - centre[1]) < generator.uniform(0.15, 0.3) * side
    image = np.where(mask, 190, 70) * generator.uniform(0.6, 1.3, size=mask.shape)
    picture = Picture(image.clip(0, 255).astype(np.uint8), mask.astype(np.uint8))
    return Case(Sample(f"disc {number}.png", f"group {number}", f"disc {number}.png"), lambda: picture)


def disc_fold(train: int = 6, test: int = 3, side: int = 64) -> Fold:
    cases = [disc_case(number, side) for number in range(train + test)]
    return Fold(0, tuple(cases[:train]), tuple(cases[train:]))


def shade_case(number: int, label: int | None = None, group: str | None = None) -> Case:
    """A dark or bright speckled picture."""
    label = number % 2 if label is None else label
    generator = np.random.default_rng(number)
    image = (60 + 120 * label) * generator.uniform(0.7, 1.3, size=(40, 56))
    sample = Sample(f"shade {number}.png", group or f"group {number}", f"shade {number}.png", label=label)
    return Case(sample, lambda: Picture(image.astype(np.uint8)))


def shade_fold(train: int = 16, test: int = 6) -> Fold:
    cases = [shade_case(number) for number in range(train + test)]
    return Fold(0, tuple(cases[:train]), tuple(cases[train:]), CLASSES)


def toy_encoder(arch: str = "resnet18", finest_stride: int = 32) -> Encoder:
    """Random weights, the same each time, with a card."""
    torch.manual_seed(0)
    return Encoder.of(EncoderCard(arch, finest_stride, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "random", "random"))


def run_fold(
    protocol: Protocol[Any, Any], task: Task[Any], fold: Fold, ctx: StageContext, encoder: Encoder | None = None
) -> None:
    """Fine-tunes and predicts as the two stages do: the network passes through a file."""
    encoder = encoder or toy_encoder()
    assert encoder.card is not None
    torch.manual_seed(ctx.seed)
    network = protocol.build(encoder, fold.classes)
    protocol.fit(network, fold, task, ctx)
    path = ctx.out / "network.safetensors"
    save_network(path, network, NetworkCard(encoder.card, protocol.name, task.name, fold.number, fold.classes, False))
    card = read_card(path)
    restored = protocol.build(Encoder.of(card.encoder), card.classes)
    load_state(path, restored)
    protocol.predict(restored, fold, task, ctx)
