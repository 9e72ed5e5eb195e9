from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anaus_bench.distributed.group import zero_loss
from anaus_bench.nn.distillation import CentredTargets
from anaus_plugins.objectives.slotcon.slots import (
    dense_head,
    grouping_loss,
    prototype_scores,
    prototype_slots,
    slot_contrast,
    slot_head,
    wins_a_cell,
)

TAU = 0.2


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_slots(images: int = 3, groups: int = 5, dim: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Slots, targets, anchors within valid targets, valid targets."""
    generator = torch.Generator().manual_seed(4)
    valid = torch.rand(images, groups, generator=generator) < 0.7
    anchors = valid & (torch.rand(images, groups, generator=generator) < 0.7)
    assert 2 <= anchors.sum() < valid.sum() < images * groups
    return randn(images, groups, dim, seed=1), randn(images, groups, dim, seed=2), anchors, valid


def test_slots_are_weighted_means_of_projections_that_are_not_normalised() -> None:
    projections, prototypes = randn(2, 6, 3, 4), randn(5, 6, seed=1)

    scores = prototype_scores(projections, prototypes)
    slots = prototype_slots(projections, scores, 0.07)

    cells, vectors = projections.double(), prototypes.double()
    for b in range(2):
        attention = torch.zeros(5, 3, 4, dtype=torch.float64)
        for y in range(3):
            for x in range(4):
                cell = cells[b, :, y, x]
                cosines = [(cell @ vector / cell.norm() / vector.norm()).item() for vector in vectors]
                assert scores[b, :, y, x].tolist() == pytest.approx(cosines, abs=1e-5)
                total = sum(math.exp(cosine / 0.07) for cosine in cosines)
                for k in range(5):
                    attention[k, y, x] = math.exp(cosines[k] / 0.07) / total + 1e-6
        for k in range(5):
            expected = (cells[b] * attention[k]).sum(dim=(1, 2)) / attention[k].sum()
            assert slots[b, k].tolist() == pytest.approx(expected.tolist(), abs=1e-4)


def test_a_group_that_no_cell_chooses_is_the_mean_of_the_view() -> None:
    projections, scores = randn(1, 4, 3, 3), torch.zeros(1, 2, 3, 3)
    scores[:, 1] = -100.0

    slots = prototype_slots(projections, scores, 0.07)

    assert torch.allclose(slots[0, 1], projections[0].mean(dim=(1, 2)), atol=1e-5)


def test_a_group_exists_if_it_wins_any_cell() -> None:
    scores = torch.zeros(2, 3, 2, 2)
    scores[0, 2, 0, 1] = scores[0, 1, 1, 1] = 1.0
    scores[1, 2] = 1.0

    assert wins_a_cell(scores).tolist() == [[True, True, True], [False, False, True]]


def test_grouping_is_the_cross_entropy_over_cells_written_as_loops() -> None:
    online, target, weights = randn(3, 4, 2, 2), randn(3, 4, 2, 2, seed=1), torch.tensor([1.0, 0.0, 1.0])
    targets = CentredTargets(4, 0.07, 0.9)
    targets.centre.copy_(randn(4, seed=2))

    loss = grouping_loss(online, targets(target.movedim(1, -1)), weights, 0.1)

    losses = []
    for b in (0, 2):
        for y in range(2):
            for x in range(2):
                t = ((target[b, :, y, x] - targets.centre).double() / 0.07).softmax(dim=0)
                s = (online[b, :, y, x].double() / 0.1).softmax(dim=0)
                losses.append(-sum(t[k] * math.log(s[k]) for k in range(4)).item())
    assert loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_a_constant_added_to_target_scores_and_centre_changes_nothing() -> None:
    online, target, weights = randn(2, 4, 3, 3), randn(2, 4, 3, 3, seed=1), torch.ones(2)
    targets, shift = CentredTargets(4, 0.07, 0.9), randn(4, seed=3)
    expected = grouping_loss(online, targets(target.movedim(1, -1)), weights, 0.1)

    targets.centre.add_(shift)
    moved = grouping_loss(online, targets((target + shift[:, None, None]).movedim(1, -1)), weights, 0.1)

    assert moved.item() == pytest.approx(expected.item(), rel=1e-4)


def test_grouping_without_any_overlap_is_zero_with_finite_gradients() -> None:
    online = randn(2, 4, 3, 3).requires_grad_()

    loss = grouping_loss(online, torch.full((2, 3, 3, 4), 0.25), torch.zeros(2), 0.1)
    loss.backward()

    assert loss.item() == 0
    assert online.grad is not None and not online.grad.any()


def test_contrast_is_infonce_over_valid_slots_written_as_loops() -> None:
    slots, targets, anchors, valid = random_slots()
    predictor = nn.Linear(6, 6)

    loss = slot_contrast(predictor, slots, targets, anchors, valid, TAU)

    def unit(vector: Tensor) -> Tensor:
        return vector.detach().double() / vector.detach().double().norm()

    losses = []
    for b, k in anchors.nonzero().tolist():
        query = unit(predictor(slots[b, k]))
        scores = {(u, g): (query @ unit(targets[u, g])).item() / TAU for u, g in valid.nonzero().tolist()}
        losses.append(math.log(sum(map(math.exp, scores.values()))) - scores[b, k])
    assert loss.item() == pytest.approx(2 * TAU * sum(losses) / len(losses), rel=1e-5)


def test_invalid_targets_do_not_move_the_contrast() -> None:
    slots, targets, anchors, valid = random_slots()
    predictor = nn.Linear(6, 6)
    expected = slot_contrast(predictor, slots, targets, anchors, valid, TAU)

    other = torch.where(valid[..., None], targets, torch.full_like(targets, torch.nan))

    assert torch.equal(slot_contrast(predictor, slots, other, anchors, valid, TAU), expected)


def test_matching_slots_have_a_lower_contrast_than_shuffled_ones() -> None:
    _, targets, anchors, valid = random_slots()
    predictor = nn.Identity()

    matching = slot_contrast(predictor, targets, targets, anchors, valid, TAU)

    assert matching < slot_contrast(predictor, targets.roll(1, dims=1), targets, anchors, valid, TAU)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_anchors_give_zero_and_zero_gradients_everywhere(count: int) -> None:
    slots, targets, _, valid = random_slots()
    slots.requires_grad_()
    anchors = torch.zeros_like(valid)
    anchors[tuple(valid.nonzero()[:count].T)] = True
    predictor = slot_head(6, 8)

    loss = slot_contrast(predictor, slots, targets, anchors, valid, TAU)
    loss.backward()

    assert loss.item() == 0
    for tensor in (slots, *predictor.parameters()):
        assert tensor.grad is not None and not tensor.grad.any()


def test_losses_are_float32_under_autocast() -> None:
    slots, targets, anchors, valid = random_slots()
    projections, prototypes = randn(2, 6, 3, 3), randn(5, 6, seed=1)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = slot_contrast(nn.Identity(), slots, targets, anchors, valid, TAU)
        scores = prototype_scores(projections, prototypes)

    assert loss.dtype == scores.dtype == torch.float32
    assert torch.equal(loss, slot_contrast(nn.Identity(), slots, targets, anchors, valid, TAU))
    assert torch.equal(scores, prototype_scores(projections, prototypes))


def test_heads_are_three_layers_with_gelu_and_zero_bias() -> None:
    dense, rows = dense_head(8, 16, 4), slot_head(4, 16)

    assert dense(randn(2, 8, 3, 3)).shape == (2, 4, 3, 3)
    assert rows(randn(5, 4)).shape == (5, 4)
    for head in (dense, rows):
        layers = [layer for layer in head if isinstance(layer, nn.Conv2d | nn.Linear)]
        assert len(layers) == 3
        assert all(
            layer.bias is not None and not layer.bias.any() and layer.weight.abs().max() < 0.2 for layer in layers
        )
        assert sum(isinstance(layer, nn.GELU) for layer in head) == 2


def test_the_dense_head_is_the_same_layers_on_every_cell() -> None:
    head = dense_head(8, 16, 4).eval()
    maps = randn(2, 8, 3, 3)

    for y in range(3):
        for x in range(3):
            alone = head(maps[:, :, y : y + 1, x : x + 1])
            assert torch.allclose(alone[:, :, 0, 0], head(maps)[:, :, y, x], atol=1e-6)


def test_zero_loss_reaches_features_and_heads() -> None:
    features, head = randn(0, 3).requires_grad_(), nn.Linear(3, 2)

    loss = zero_loss([features], head)
    loss.backward()

    assert loss.item() == 0
    assert features.grad is not None
    assert head.weight.grad is not None
    assert F.linear(torch.ones(1, 3), head.weight.grad).abs().sum() == 0
