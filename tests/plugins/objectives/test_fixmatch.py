from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

from anaus_bench.errors import LabelError
from anaus_bench.kit.check import check_objective
from anaus_bench.kit.synthetic import synthetic_batch, synthetic_corpus
from anaus_bench.nn.encoder import Encoder
from anaus_bench.settings.base import resolve
from anaus_plugins.objectives.fixmatch import FixMatch, FixMatchSettings, consistency
from anaus_plugins.objectives.fixmatch.operations import CutOut, RandAugment, Translate


@pytest.fixture
def objective() -> FixMatch:
    torch.set_num_threads(1)
    return FixMatch(resolve(FixMatchSettings, "objective", "tiny", {"unlabelled": 2, "lambda_u": 0.5}))


@pytest.fixture
def nets(objective: FixMatch) -> nn.ModuleDict:
    torch.manual_seed(0)
    return objective.build(Encoder("resnet18"), num_classes=3)


def softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in row)
    return [math.exp(value) / total for value in row]


def consistency_loop(weak: list[list[float]], strong: list[list[float]], threshold: float) -> float:
    loss = 0.0
    for seen, hard in zip(weak, strong, strict=True):
        probabilities = softmax(seen)
        if max(probabilities) >= threshold:
            loss -= math.log(softmax(hard)[probabilities.index(max(probabilities))]) / len(weak)
    return loss


def test_it_keeps_the_contract(objective: FixMatch) -> None:
    check_objective(objective)


def test_consistency_is_equation_4_with_the_mean_over_all_rows() -> None:
    weak, strong = 2 * torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(0))

    loss, confident = consistency(weak, strong, 0.7, 1.0)

    assert 0 < confident < 1
    assert loss.item() == pytest.approx(consistency_loop(weak.tolist(), strong.tolist(), 0.7), rel=1e-5)
    sharper, more = consistency(weak, strong, 0.7, 0.5)
    assert sharper.item() == pytest.approx(consistency_loop((2 * weak).tolist(), strong.tolist(), 0.7), rel=1e-5)
    assert more >= confident


def test_the_threshold_is_inclusive_and_no_gradient_flows_to_the_weak_view() -> None:
    weak = torch.zeros(4, 2, requires_grad=True)
    strong = torch.zeros(4, 2, requires_grad=True)

    loss, confident = consistency(weak, strong, 0.5, 1.0)
    loss.backward()

    assert confident == 1
    assert loss.item() == pytest.approx(math.log(2))
    assert weak.grad is None
    assert strong.grad is not None


def test_without_a_confident_row_the_loss_is_zero_with_finite_gradients() -> None:
    strong = torch.randn(4, 3, requires_grad=True)

    loss, confident = consistency(torch.zeros(4, 3), strong, 0.95, 1.0)
    loss.backward()

    assert loss.item() == 0
    assert confident == 0
    assert strong.grad is not None
    assert torch.equal(strong.grad, torch.zeros(4, 3))


def test_loss_adds_the_labelled_cross_entropy_in_one_pass(objective: FixMatch, nets: nn.ModuleDict) -> None:
    batch = synthetic_batch(objective, size=32, images=4)
    nets.eval()
    with torch.no_grad():
        logits = [nets["classifier"](nets["encoder"].vector(view)) for view in batch.views]
    weak, strong = torch.cat(logits[1:3]).tolist(), torch.cat(logits[3:]).tolist()
    supervised = sum(
        -math.log(softmax(row)[label]) / 4 for row, label in zip(logits[0].tolist(), batch.labels.tolist(), strict=True)
    )

    loss, logs = objective.loss(nets, batch)
    nets.train()
    objective.loss(nets, batch)

    expected = supervised + 0.5 * consistency_loop(weak, strong, objective.settings.threshold)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert logs["supervised"].item() == pytest.approx(supervised, rel=1e-4)
    assert nets["encoder"].backbone.bn1.num_batches_tracked == 1


def test_every_item_has_a_label_and_its_weak_and_strong_views_show_the_same_images(objective: FixMatch) -> None:
    batch = synthetic_batch(objective, size=32, images=4)
    frames = [view.frame for view in objective.views(32)]

    assert (batch.labels >= 0).all()
    assert frames == [0, 1, 2, 1, 2]
    strong = (Translate(0.125), RandAugment(2), CutOut(0.5))
    assert [view.operations for view in objective.views(32)] == [strong[:1]] * 3 + [strong] * 2
    assert all((crop.box == torch.tensor([0.0, 0.0, 64.0, 64.0])).all() for crop in batch.crops)


def test_labels_are_drawn_from_the_fraction_of_clips() -> None:
    corpus = synthetic_corpus(48)
    sampler = FixMatch(FixMatchSettings(label_fraction=0.2)).sampler(corpus, 4, 0)

    drawn = {int(row) for step in range(12) for row in sampler.draw(step, 0.0).images[:, 0]}

    clips = {(corpus.entries[row].video_id, corpus.entries[row].label) for row in drawn}
    assert len(clips) == 3 * 2  # of the 12 clips with each of the three classes


def test_the_average_follows_and_is_handed_over_at_the_last_step(objective: FixMatch, nets: nn.ModuleDict) -> None:
    start = nets["encoder"].backbone.conv1.weight.detach().clone()
    objective.loss(nets, synthetic_batch(objective, size=32, images=4))
    with torch.no_grad():
        nets["encoder"].backbone.conv1.weight.add_(1)

    objective.after_step(nets, 0.5)
    encoder, average = nets["encoder"].backbone, nets["average_encoder"].backbone
    assert torch.allclose(average.conv1.weight, start + 0.5, atol=1e-6)
    assert torch.allclose(encoder.conv1.weight, start + 1, atol=1e-6)
    assert torch.equal(average.bn1.running_mean, encoder.bn1.running_mean)
    objective.after_step(nets, 1.0)
    assert torch.allclose(encoder.conv1.weight, start + 0.75, atol=1e-6)
    assert encoder.conv1.weight.requires_grad


def test_images_of_fewer_than_two_classes_are_refused(objective: FixMatch) -> None:
    corpus = synthetic_corpus(8)
    entries = tuple(dataclasses.replace(entry, label=1 if entry.label == 1 else -1) for entry in corpus.entries)

    with pytest.raises(LabelError, match="at least 2 classes, the corpus has b 3, none 5"):
        objective.sampler(dataclasses.replace(corpus, entries=entries), 4, 0)
