from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anaus_bench.errors import DataError
from anaus_bench.kit.check import check_objective
from anaus_bench.kit.synthetic import synthetic_batch, synthetic_corpus
from anaus_bench.nn.encoder import Encoder
from anaus_bench.settings.base import resolve
from anaus_plugins.objectives.usucl import (
    USUCL,
    USUCLSettings,
    choose_frames,
    curriculum,
    far_ranges,
    hard_negative_nce,
    synthetic_negatives,
)


@pytest.fixture
def objective() -> USUCL:
    torch.set_num_threads(1)
    return USUCL(resolve(USUCLSettings, "objective", "tiny"))


@pytest.fixture
def nets(objective: USUCL) -> nn.ModuleDict:
    torch.manual_seed(0)
    return objective.build(Encoder("resnet18"))


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_it_keeps_the_contract(objective: USUCL) -> None:
    check_objective(objective)


@pytest.mark.parametrize("exclude", [None, 1])
def test_synthetic_negatives_are_their_equation(exclude: int | None) -> None:
    anchors, memory = unit(2, 6), unit(4, 3, 6, seed=1)

    found = synthetic_negatives(anchors, memory, 2, 0.07, exclude)

    for i, anchor in enumerate(anchors.double()):
        rows = [
            row for item, rows in enumerate(memory.double()) for row in rows if exclude is None or item != i + exclude
        ]
        nearest = sorted(rows, key=lambda row: -float(anchor @ row))[:2]
        weights = [math.exp(float(anchor @ row) / 0.07) for row in nearest]
        expected = sum((w * row for w, row in zip(weights, nearest, strict=True)), torch.zeros(6).double())
        assert torch.allclose(found[i].double(), expected / sum(weights), atol=1e-5)


def test_one_synthetic_part_is_the_nearest_negative_and_gradients_flow_through_the_weights() -> None:
    anchors, memory = unit(3, 6).requires_grad_(), unit(2, 2, 6, seed=1)

    nearest = (anchors @ memory.flatten(0, 1).T).argmax(dim=1)
    assert torch.allclose(synthetic_negatives(anchors, memory, 1, 0.07), memory.flatten(0, 1)[nearest])
    synthetic_negatives(anchors, memory, 3, 0.07).sum().backward()
    assert anchors.grad is not None
    assert anchors.grad.abs().sum() > 0
    assert synthetic_negatives(anchors, memory, 9, 0.07).shape == (3, 6)  # no more than there are


def test_the_loss_has_two_logits_at_first_and_then_n_more() -> None:
    anchors, keys, negatives, synthetic = unit(2, 5), unit(2, 5, seed=1), unit(2, 3, 5, seed=2), unit(2, 5, seed=3)

    for within in (False, True):
        found = hard_negative_nce(anchors, keys, negatives, synthetic, torch.tensor([within] * 2), 0.07)
        expected = 0.0
        for i in range(2):
            others = [synthetic[i], *(negatives[i] if within else [])]
            logits = [float(anchors[i].double() @ row.double()) / 0.07 for row in [keys[i], *others]]
            expected -= (logits[0] - math.log(sum(math.exp(value) for value in logits))) / 2
        assert found.item() == pytest.approx(expected, rel=1e-4)


def test_negatives_train_the_encoder_and_keys_do_not(objective: USUCL, nets: nn.ModuleDict) -> None:
    negatives = unit(2, 3, 5).requires_grad_()
    hard_negative_nce(unit(2, 5), unit(2, 5), negatives, unit(2, 5), torch.ones(2).bool(), 0.07).backward()
    assert negatives.grad is not None
    assert negatives.grad.abs().sum() > 0

    objective.loss(nets, synthetic_batch(objective, size=32, images=4))[0].backward()
    for name, parameter in nets.named_parameters():
        assert (parameter.grad is None) == name.startswith("target_"), name


def test_the_key_network_follows_before_the_forward(objective: USUCL, nets: nn.ModuleDict) -> None:
    with torch.no_grad():
        nets["projector"][0].weight.add_(1)
    before = nets["target_projector"][0].weight.clone()

    objective.before_forward(nets, 0.5)

    assert torch.allclose(nets["target_projector"][0].weight, before + 0.1, atol=1e-6)


def test_the_cosine_curriculum_compounds_from_the_middle_of_the_run() -> None:
    low = [curriculum(epoch / 60, "cosine")[1][0] for epoch in range(60)]

    assert low[:31] == [0.2] * 31
    released = [0.2, 0.199, 0.197, 0.192, 0.184, 0.172, 0.155, 0.135, 0.113, 0.090, 0.067, 0.047, 0.031, 0.019, 0.010]
    assert low[30:45] == pytest.approx(released, abs=6e-4)
    assert [curriculum(epoch / 60, "cosine")[0] for epoch in (0, 9, 10, 59)] == [False, False, True, True]


def test_the_table_curriculum_has_three_ranges() -> None:
    found = [curriculum(epoch / 60, "table") for epoch in (0, 9, 10, 29, 30, 49, 50, 59)]

    assert [within for within, _ in found] == [False, False] + [True] * 6
    assert [bounds for _, bounds in found] == [(0.2, 0.4)] * 4 + [(0.1, 0.15)] * 2 + [(0.03, 0.07)] * 2


@pytest.mark.parametrize("length", [3, 4, 5, 7, 12, 20, 70])
@pytest.mark.parametrize("bounds", [(0.2, 0.4), (0.1, 0.15), (0.0, 0.0)])
def test_frames_keep_to_the_clip_and_to_their_distances(length: int, bounds: tuple[float, float]) -> None:
    frames = choose_frames(torch.full((500,), length), bounds, 3, torch.Generator().manual_seed(0))

    assert frames.shape == (500, 5)
    for anchor, positive, *far in frames.tolist():
        assert math.ceil(0.2 * length) <= anchor < math.ceil(0.5 * length)
        assert 1 <= abs(positive - anchor) <= 3
        assert all(0 <= frame < length for frame in (positive, *far))
        ranges = [
            range(
                max(0, min(anchor - math.floor(bounds[1] * length), anchor - 6)),
                max(0, min(anchor - math.floor(bounds[0] * length), anchor - 4)),
            ),
            range(
                min(length, max(anchor + math.floor(bounds[0] * length), anchor + 4)),
                min(length, max(anchor + math.ceil(bounds[1] * length), anchor + 6)),
            ),
        ]
        allowed = {frame for part in ranges for frame in part}
        farthest = max(anchor, length - 1 - anchor)
        allowed = allowed or {frame for frame in range(length) if abs(frame - anchor) == farthest}
        assert set(far) <= allowed


def test_every_allowed_far_frame_is_drawn() -> None:
    anchor, lengths = torch.tensor([8]), torch.tensor([20])
    left, right = far_ranges(anchor, lengths, (0.2, 0.4))

    assert ([int(x) for x in left], [int(x) for x in right]) == ([0, 4], [12, 16])
    frames = choose_frames(torch.full((3000,), 20), (0.2, 0.4), 3, torch.Generator().manual_seed(0))
    drawn = frames[frames[:, 0] == 8][:, 2:].unique().tolist()
    assert drawn == [0, 1, 2, 3, 12, 13, 14, 15]


def test_progress_switches_the_far_frames_on(objective: USUCL) -> None:
    sampler = objective.sampler(synthetic_corpus(40), 4, 0)

    early, late = sampler.draw(0, 0.0), sampler.draw(0, 0.5)

    assert early.weights is not None and late.weights is not None
    assert early.weights.tolist() == [0.0] * 4
    assert late.weights.tolist() == [1.0] * 4
    assert early.images.shape == (4, 4)


def test_clips_of_two_frames_are_refused(objective: USUCL) -> None:
    corpus = synthetic_corpus(2)

    with pytest.raises(DataError, match="'usucl' needs clips of at least 3 frames"):
        objective.sampler(corpus, 2, 0)


def test_two_halves_of_a_run_equal_the_whole(objective: USUCL, nets: nn.ModuleDict) -> None:
    def train(nets: nn.ModuleDict, steps: range) -> list[float]:
        optimiser = torch.optim.SGD([p for p in nets.parameters() if p.requires_grad], lr=0.05)
        losses = []
        for step in steps:
            objective.before_forward(nets, step / 4)
            loss, _ = objective.loss(nets, synthetic_batch(objective, size=32, images=4, step=step))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        return losses

    first = copy.deepcopy(nets)
    losses = train(nets, range(2))
    train(first, range(1))
    second = objective.build(Encoder("resnet18"))
    second.load_state_dict(first.state_dict())

    assert train(second, range(1, 2)) == losses[1:]
