from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from anaus_bench.corpus.batch import Batch
from anaus_bench.errors import DataError
from anaus_bench.kit.check import check_objective
from anaus_bench.kit.synthetic import synthetic_batch, synthetic_corpus
from anaus_bench.nn.contrast_images import nt_xent
from anaus_bench.nn.encoder import Encoder
from anaus_bench.settings.base import resolve
from anaus_plugins.objectives.uscl import USCL, USCLSettings, labelled_entropy, shares, three_frames


@pytest.fixture
def objective() -> USCL:
    torch.set_num_threads(1)
    return USCL(resolve(USCLSettings, "objective", "tiny"))


@pytest.fixture
def nets(objective: USCL) -> nn.ModuleDict:
    torch.manual_seed(0)
    return objective.build(Encoder("resnet18"), num_classes=3).eval()


@pytest.fixture
def batch(objective: USCL) -> Batch:
    return synthetic_batch(objective, size=32, images=4)


def entropy_loop(logits: list[list[float]], labels: list[int]) -> float:
    losses = [
        math.log(sum(math.exp(value) for value in row)) - row[label]
        for row, label in zip(logits, labels, strict=True)
        if label >= 0
    ]
    return sum(losses) / len(losses) if losses else 0.0


def test_it_keeps_the_contract(objective: USCL) -> None:
    check_objective(objective)


def test_loss_mixes_the_frames_and_adds_the_classes_of_both_views(
    objective: USCL, nets: nn.ModuleDict, batch: Batch
) -> None:
    batch = dataclasses.replace(batch, labels=torch.tensor([2, -1, 0, 1]), weights=torch.tensor([0.1, 0.9, 1.0, 0.0]))
    anchor, *others = batch.views
    projections = []
    for other in others:
        mixed = torch.stack(
            [share * b + (1 - share) * c for share, b, c in zip(batch.weights.tolist(), other, anchor, strict=True)]
        )
        projections.append(nets["projector"](nets["encoder"].vector(mixed)))

    loss, logs = objective.loss(nets, batch)

    classes = sum(entropy_loop(nets["classifier"](rows).tolist(), batch.labels.tolist()) for rows in projections)
    contrast = nt_xent(*projections, 0.5).item()
    assert logs["contrast"].item() == pytest.approx(contrast, rel=1e-4)
    assert loss.item() == pytest.approx(contrast + 0.2 * classes, rel=1e-4)


def test_without_a_share_both_views_are_the_anchor(objective: USCL, nets: nn.ModuleDict, batch: Batch) -> None:
    _, logs = objective.loss(nets, dataclasses.replace(batch, weights=torch.zeros(4)))

    assert logs["positive_cosine"].item() == pytest.approx(1, abs=1e-5)


def test_a_batch_without_labels_is_finite_and_its_class_loss_zero(
    objective: USCL, nets: nn.ModuleDict, batch: Batch
) -> None:
    loss, logs = objective.loss(nets, dataclasses.replace(batch, labels=torch.full((4,), -1)))
    loss.backward()

    assert logs["classes"].item() == 0
    assert loss.item() == pytest.approx(logs["contrast"].item(), rel=1e-6)
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in nets.parameters())


def test_labels_are_ignored_without_their_weight(batch: Batch) -> None:
    objective = USCL(resolve(USCLSettings, "objective", "tiny", {"lambda_label": 0.0}))
    nets = objective.build(Encoder("resnet18"), num_classes=3).eval()

    first, _ = objective.loss(nets, batch)
    second, _ = objective.loss(nets, dataclasses.replace(batch, labels=torch.full((4,), -1)))

    assert "classifier" not in nets
    assert first.item() == second.item()


def test_labelled_entropy_is_the_mean_over_labelled_rows() -> None:
    logits, labels = torch.randn(5, 3), torch.tensor([0, -1, 2, -1, 1])

    expected = entropy_loop(logits.tolist(), labels.tolist())
    assert labelled_entropy(logits, labels).item() == pytest.approx(expected, rel=1e-5)


def test_three_distinct_frames_are_drawn_evenly() -> None:
    lengths = torch.full((6000,), 4)

    frames = three_frames(lengths, torch.Generator().manual_seed(0))

    assert all(len(set(row)) == 3 for row in frames.tolist())
    triples, counts = frames.unique(dim=0, return_counts=True)
    assert len(triples) == 24
    assert counts.float().std() < 4 * math.sqrt(6000 / 24) / 2


@pytest.mark.parametrize(("length", "expected"), [(1, [0, 0, 0]), (2, [0, 0, 1])])
def test_frames_of_short_clips_are_not_mixed(length: int, expected: list[int]) -> None:
    lengths, generator = torch.full((5,), length), torch.Generator().manual_seed(0)

    assert three_frames(lengths, generator).tolist() == [expected] * 5
    assert shares(lengths, 0.5, generator).tolist() == [1.0] * 5


def test_shares_follow_the_beta_distribution() -> None:
    def draw(alpha: float) -> Tensor:
        return shares(torch.full((20000,), 3), alpha, torch.Generator().manual_seed(0))

    for alpha in (0.5, 2.0):
        drawn = draw(alpha)
        assert drawn.mean().item() == pytest.approx(0.5, abs=0.01)
        assert drawn.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), abs=0.005)


def test_the_frames_of_an_item_are_of_one_clip_and_the_views_one_of_each(objective: USCL) -> None:
    corpus = synthetic_corpus(40)

    images = objective.sampler(corpus, 4, 0).draw(3, 0.0).images

    videos = [{corpus.entries[position].video_id for position in row} for row in images.tolist()]
    assert images.shape == (4, 3)
    assert all(len(names) == 1 for names in videos)
    assert len(set.union(*videos)) == 4
    assert [view.frame for view in objective.views(32)] == [0, 1, 2]


def test_a_corpus_without_clips_is_refused(objective: USCL) -> None:
    corpus = synthetic_corpus(8)
    entries = tuple(dataclasses.replace(entry, video_id=None) for entry in corpus.entries)

    with pytest.raises(DataError, match="'uscl' compares the frames of clips"):
        objective.sampler(dataclasses.replace(corpus, entries=entries), 4, 0)
