from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from anaus_bench.corpus.batch import Batch, make_batch
from anaus_bench.corpus.labels import BalancedSampler
from anaus_bench.corpus.sampling import ImageSampler
from anaus_bench.errors import LabelError
from anaus_bench.kit.synthetic import synthetic_corpus
from anaus_bench.nn.encoder import Encoder
from anaus_plugins.objectives.supervised import Supervised, SupervisedSettings


@pytest.fixture
def objective() -> Supervised:
    torch.set_num_threads(1)
    return Supervised(SupervisedSettings())


@pytest.fixture
def nets(objective: Supervised) -> nn.ModuleDict:
    torch.manual_seed(0)
    return objective.build(Encoder("resnet18"), num_classes=3).eval()


def draw_batch(objective: Supervised, labels: list[int]) -> Batch:
    count = len(labels)
    images = torch.randint(0, 256, (count, 48, 48), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    boxes = torch.tensor([[0.0, 0.0, 48.0, 48.0]]).repeat(count, 1)
    return make_batch(images, None, boxes, torch.tensor(labels), torch.arange(count), objective.views(32), 0, 0)


def logits(nets: nn.ModuleDict, batch: Batch) -> Tensor:
    rows: Tensor = nets["classifier"](nets["encoder"].vector(batch.views[0]))
    return rows


def test_loss_is_the_mean_cross_entropy_of_the_labelled_images(objective: Supervised, nets: nn.ModuleDict) -> None:
    labels = [2, -1, 0, 1]
    batch = draw_batch(objective, labels)

    loss, logs = objective.loss(nets, batch)

    losses, correct = [], []
    for row, label in zip(logits(nets, batch).tolist(), labels, strict=True):
        if label >= 0:
            losses.append(math.log(sum(math.exp(value) for value in row)) - row[label])
            correct.append(row.index(max(row)) == label)
    assert loss.item() == pytest.approx(sum(losses) / 3, rel=1e-5)
    assert logs["accuracy"].item() == pytest.approx(sum(correct) / 3)
    assert logs["labelled"].item() == 0.75


def test_a_batch_without_labels_has_loss_zero(objective: Supervised, nets: nn.ModuleDict) -> None:
    loss, logs = objective.loss(nets, draw_batch(objective, [-1, -1]))
    loss.backward()

    assert loss.item() == 0
    assert logs["accuracy"].item() == 0


def test_the_view_is_cropped_and_flipped_only(objective: Supervised) -> None:
    (view,) = objective.views(224)

    assert (view.operations, view.flip) == ((), 0.5)
    assert view.crop_area == (0.8, 1.0)


def test_images_of_fewer_than_two_classes_are_refused(objective: Supervised) -> None:
    corpus = synthetic_corpus(8)
    entries = tuple(dataclasses.replace(entry, label=min(entry.label, 0)) for entry in corpus.entries)

    with pytest.raises(LabelError, match="at least 2 classes, the corpus has a 8"):
        objective.sampler(dataclasses.replace(corpus, entries=entries), 4, 0)


@pytest.mark.parametrize(("sampling", "drawn"), [("balanced", BalancedSampler), ("images", ImageSampler)])
def test_labelled_images_of_every_class_are_drawn_as_often_unless_asked_otherwise(sampling: str, drawn: type) -> None:
    objective = Supervised(SupervisedSettings.model_validate({"sampling": sampling}))

    assert isinstance(objective.sampler(synthetic_corpus(8), 4, 0), drawn)


def test_all_parameters_are_trained(objective: Supervised, nets: nn.ModuleDict) -> None:
    objective.loss(nets.train(), draw_batch(objective, [0, 1, 2]))[0].backward()

    assert all(parameter.grad is not None for parameter in nets.parameters())
