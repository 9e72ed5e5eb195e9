"""One seed gives each use of randomness its own stream, the same on every platform."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anaus_bench.corpus.batch import Batch, make_batch
from anaus_bench.corpus.sampling import ImageSampler
from anaus_bench.interfaces import StageContext
from anaus_bench.kit.synthetic import synthetic_corpus
from anaus_bench.nn.encoder import Encoder
from anaus_bench.seeds import stream
from anaus_bench.settings.core import PretrainSettings
from anaus_bench.training.batching import batch_indices, step_generator
from anaus_bench.training.pretraining import pretrain
from anaus_plugins.objectives.byol import BYOL, BYOLSettings
from tests.training.test_loop import MakeContext

USES = ("views", "loss", "order of images", "loop pre-train")


def test_streams_differ_and_are_valid_seeds() -> None:
    seeds = [stream(seed, use, step) for seed in (0, 1, -1) for use in USES for step in range(200)]

    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert stream(0, "views") != stream(0, "views", 0) != stream(0, "views", 0, 0)


def test_a_stream_is_the_same_on_every_platform() -> None:
    assert stream(3, "views", 5) == 7157587031075591283


class Drawing(BYOL):
    """BYOL whose loss draws from torch's own generator, as a plugin might."""

    def loss(self, nets: nn.ModuleDict, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:  # type: ignore[override]
        self.drawn = torch.rand(64)
        self.step, self.batch = batch.step, batch
        loss, logs = super().loss(nets, batch)
        return loss, logs


@pytest.fixture
def drawing(stage_context: MakeContext) -> Drawing:
    """After one step of pre-training."""
    objective, corpus = Drawing(BYOLSettings(**BYOLSettings.presets["tiny"])), synthetic_corpus(8)
    settings = PretrainSettings(size=32, batch=4, steps=1)
    ctx: StageContext = stage_context()
    pretrain(objective, Encoder("resnet18"), corpus, None, np.arange(8), settings, ctx)
    return objective


def test_a_loss_that_draws_gets_neither_the_numbers_of_the_crops_nor_those_of_the_sampling(drawing: Drawing) -> None:
    def numbers(seed: int) -> Tensor:
        return torch.rand(64, generator=torch.Generator().manual_seed(seed))

    others = [stream(0, use, 0) for use in ("views", "loss", "order of images")]

    assert not any(torch.equal(drawing.drawn, numbers(seed)) for seed in [*others, 0])
    assert torch.equal(drawing.drawn, numbers(stream(0, "loop pre-train", 0, 0)))
    assert drawing.batch.seed == stream(0, "loss", 0)


def test_the_order_of_the_images_and_their_augmentation_are_not_drawn_from_the_same_numbers() -> None:
    # One process draws epoch 0's order and step 0's flips: with one seed for both, they would be correlated.
    order, places = batch_indices(0, 0, 32, 32), torch.rand(32, generator=step_generator(0, 0)).argsort()
    same = torch.randperm(32, generator=step_generator(0, 0))

    assert not torch.equal(order, same)
    assert not torch.equal(order, places)
    assert not torch.equal(ImageSampler(32, 32, 0).draw(0, 0.0).images[:, 0], same)


def test_views_follow_the_seed_and_the_step() -> None:
    corpus, recipes = synthetic_corpus(8), BYOL(BYOLSettings()).views(32)

    def views(seed: int, step: int) -> Tensor:
        made = make_batch(corpus.images, None, corpus.boxes(), corpus.labels(), torch.arange(4), recipes, seed, step)
        return made.views[0]

    assert torch.equal(views(0, 1), views(0, 1))
    assert not torch.equal(views(0, 1), views(0, 2))
    assert not torch.equal(views(0, 1), views(1, 1))
