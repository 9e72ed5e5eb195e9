from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from lightly.loss import DetConBLoss
from torch import Tensor
from torch.nn import functional as F

from anaus_bench.nn.contrast import detcon_nce, positive_cosine, region_nce

TAU = 0.1
Loss = Callable[..., Tensor]


def unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1)


def random_regions(images: int = 3, regions: int = 4, dim: int = 6, views: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    anchors = torch.randn(images, regions, dim, generator=generator)
    return anchors, torch.randn(views, images, regions, dim, generator=generator)


def drawn_ids(images: int = 3, regions: int = 4, views: int = 2, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    anchor_ids = torch.randint(0, 3, (images, regions), generator=generator)
    return anchor_ids, torch.randint(0, 3, (views, images, regions), generator=generator)


def unique_ids(images: int = 3, regions: int = 4, views: int = 2) -> tuple[Tensor, Tensor]:
    ids = torch.stack([torch.randperm(9, generator=torch.Generator().manual_seed(b))[:regions] for b in range(images)])
    return ids, ids.expand(views, -1, -1)


def repeat_vectors(candidates: Tensor, ids: Tensor) -> Tensor:
    """Draws of one id in one image and view are one vector, as they are in the objective."""
    same = ids[..., :, None] == ids[..., None, :]
    return candidates.gather(2, same.int().argmax(dim=-1)[..., None].expand_as(candidates))


def slow_region_nce(anchors: Tensor, candidates: Tensor, ids: Tensor, all_ids: Tensor) -> float:
    losses = []
    for b, k in torch.cartesian_prod(torch.arange(len(anchors)), torch.arange(anchors.shape[1])).tolist():
        distinct: dict[tuple[int, int, int], Tensor] = {}
        for v, u, m in torch.cartesian_prod(*(torch.arange(n) for n in candidates.shape[:3])).tolist():
            distinct[v, u, all_ids[v, u, m].item()] = candidates[v, u, m]

        def score(z: Tensor, q: Tensor = anchors[b, k]) -> float:
            return math.exp((unit(q) @ unit(z)).item() / TAU)

        own = ids[b, k].item()
        if (0, b, own) not in distinct:
            continue
        positive = score(distinct[0, b, own])
        negatives = sum(score(z) for (_, u, number), z in distinct.items() if (u, number) != (b, own))
        losses.append(-math.log(positive / (positive + negatives)))
    return sum(losses) / max(1, len(losses))


def slow_detcon(anchors: Tensor, candidates: Tensor, ids: Tensor, all_ids: Tensor) -> float:
    total = 0.0
    for b, k in torch.cartesian_prod(torch.arange(len(anchors)), torch.arange(anchors.shape[1])).tolist():
        kept, positives = [], []
        for v, u, m in torch.cartesian_prod(*(torch.arange(n) for n in candidates.shape[:3])).tolist():
            logit = (unit(anchors[b, k]) @ unit(candidates[v, u, m])).item() / TAU
            same = u == b and all_ids[v, u, m] == ids[b, k]
            if same and v == 1:
                continue
            kept.append(logit)
            if same:
                positives.append(logit)
        if positives:
            partition = math.log(sum(math.exp(logit) for logit in kept))
            weight = 1 / (ids[b] == ids[b, k]).sum().item()
            total += weight * (partition - sum(positives) / len(positives))
    return total / ids.numel()


@pytest.mark.parametrize("views", [1, 2])
def test_region_nce_is_equation_5_written_as_a_loop(views: int) -> None:
    anchors, candidates = random_regions(views=views)
    ids, all_ids = drawn_ids(views=views)
    candidates = repeat_vectors(candidates, all_ids)

    loss = region_nce(anchors, candidates, ids, all_ids, TAU)

    assert loss.item() == pytest.approx(slow_region_nce(anchors, candidates, ids, all_ids), rel=1e-5)


@pytest.mark.parametrize("views", [1, 2])
def test_detcon_is_its_cross_entropy_written_as_a_loop(views: int) -> None:
    anchors, candidates = random_regions(views=views)
    ids, all_ids = drawn_ids(views=views)

    loss = detcon_nce(anchors, candidates, ids, all_ids, TAU)

    assert loss.item() == pytest.approx(slow_detcon(anchors, candidates, ids, all_ids), rel=1e-5)


def test_detcon_in_both_directions_equals_lightly() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(2, 3, 4, 6)
    targets = torch.randn(2, 3, 4, 6)
    _, ids = drawn_ids()

    ours = detcon_nce(first, targets[[1, 0]], ids[0], ids[[1, 0]], TAU) + detcon_nce(second, targets, ids[1], ids, TAU)

    theirs = DetConBLoss(temperature=TAU, gather_distributed=False)(first, second, *targets, *ids)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)


def test_both_losses_are_equal_if_ids_are_unique_in_each_image() -> None:
    anchors, candidates = random_regions()
    ids, all_ids = unique_ids()

    losses = [loss(anchors, candidates, ids, all_ids, TAU) for loss in (region_nce, detcon_nce)]

    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)


def test_repeating_a_draw_changes_neither_its_negatives_nor_its_positive() -> None:
    anchors, candidates = random_regions(images=2, regions=2)
    ids, all_ids = unique_ids(images=2, regions=2)
    twice = torch.tensor([0, 1, 1])

    loss = region_nce(anchors[:, [1]], candidates, ids[:, [1]], all_ids, TAU)
    repeated = region_nce(anchors[:, [1]], candidates[:, :, twice], ids[:, [1]], all_ids[:, :, twice], TAU)

    assert repeated.item() == pytest.approx(loss.item(), rel=1e-6)


@pytest.mark.parametrize("loss", [region_nce, detcon_nce])
def test_losses_do_not_move_under_rescaling_nor_under_joint_permutation(loss: Loss) -> None:
    anchors, candidates = random_regions()
    ids, all_ids = drawn_ids()
    candidates = repeat_vectors(candidates, all_ids)
    expected = loss(anchors, candidates, ids, all_ids, TAU).item()
    order, other = torch.tensor([2, 0, 3, 1]), torch.tensor([1, 3, 2, 0])

    rescaled = loss(7 * anchors, candidates / 3, ids, all_ids, TAU)
    permuted = loss(anchors[:, order], candidates[:, :, other], ids[:, order], all_ids[:, :, other], TAU)

    assert rescaled.item() == pytest.approx(expected, rel=1e-5)
    assert permuted.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", [region_nce, detcon_nce])
def test_mean_over_processes_equals_one_process_on_the_union(loss: Loss) -> None:
    anchors, candidates = random_regions(images=4)
    ids, all_ids = unique_ids(images=4)

    ranks = [loss(anchors[i : i + 2], candidates, ids[i : i + 2], all_ids, TAU, first_image=i) for i in (0, 2)]

    whole = loss(anchors, candidates, ids, all_ids, TAU)
    assert torch.stack(ranks).mean().item() == pytest.approx(whole.item(), rel=1e-6)


# DetCon's has four equal positives, a quarter of the weight each; Eq. 5's has nothing to tell its one region from.
@pytest.mark.parametrize(("loss", "expected"), [(region_nce, 0.0), (detcon_nce, math.log(4) / 4)])
def test_one_region_in_one_image_is_told_from_nothing(loss: Loss, expected: float) -> None:
    anchors, candidates = random_regions(images=1)
    anchors.requires_grad_()
    zeros = torch.zeros(2, 1, 4, dtype=torch.long)

    value = loss(anchors, candidates[:, :, :1].expand(-1, -1, 4, -1), zeros[0], zeros, TAU)
    value.backward()

    assert value.item() == pytest.approx(expected, abs=1e-6)
    assert anchors.grad is not None
    assert anchors.grad.abs().max() < 1e-4


@pytest.mark.parametrize("loss", [region_nce, detcon_nce])
def test_without_any_shared_id_the_loss_is_zero(loss: Loss) -> None:
    anchors, candidates = random_regions()
    anchors.requires_grad_()
    ids, all_ids = drawn_ids()

    value = loss(anchors, candidates, ids + 10, all_ids, TAU)
    value.backward()

    assert value.item() == 0
    assert anchors.grad is not None
    assert not anchors.grad.any()


@pytest.mark.parametrize("loss", [region_nce, detcon_nce])
def test_losses_are_float32_under_autocast(loss: Loss) -> None:
    anchors, candidates = random_regions()
    ids, all_ids = unique_ids()
    expected = loss(anchors, candidates, ids, all_ids, TAU)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(anchors, candidates, ids, all_ids, TAU)

    assert value.dtype == torch.float32
    assert torch.equal(value, expected)


def test_positive_cosine_is_one_for_equal_vectors_of_equal_ids() -> None:
    anchors, _ = random_regions()
    ids, _ = unique_ids()

    assert positive_cosine(anchors, 2 * anchors, ids, ids).item() == pytest.approx(1, abs=1e-6)
