from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from lightly.loss import DetConBLoss, DetConSLoss
from torch import Tensor, nn
from torch.nn import functional as F

from anaus_bench.corpus.batch import Batch
from anaus_bench.errors import SettingsError
from anaus_bench.kit.check import check_objective
from anaus_bench.kit.synthetic import synthetic_batch
from anaus_bench.nn.encoder import Encoder
from anaus_bench.nn.pooling import majority
from anaus_bench.settings.base import resolve
from anaus_plugins.objectives.detcon import DetCon, DetConSettings

TAU = 0.1


def make(**overrides: Any) -> DetCon:
    return DetCon(resolve(DetConSettings, "objective", "tiny", overrides))


def build(objective: DetCon) -> nn.ModuleDict:
    torch.manual_seed(0)
    return objective.build(Encoder("resnet18"))


def move_target(nets: nn.ModuleDict) -> None:
    """As after some training: the target network is no copy of the online one."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, value in nets.named_parameters():
            if name.startswith("target_"):
                value.add_(0.1 * value.abs().mean() * torch.randn(value.shape, generator=generator))


def draw_batch(objective: DetCon, label_maps: tuple[Tensor, Tensor] | None = None) -> Batch:
    batch = synthetic_batch(objective, size=64, images=4)
    if label_maps is not None:
        object.__setattr__(batch, "label_maps", label_maps)
    return batch


def embeddings(objective: DetCon, nets: nn.ModuleDict, batch: Batch) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Ids (B, M), anchors and targets (B, M, D) of each view, pooled cell by cell."""
    generator = torch.Generator().manual_seed(batch.seed)
    ids = [objective._draw(label_map, generator).ids for label_map in batch.label_maps]

    def pool(features: Tensor, label_map: Tensor, drawn: Tensor) -> Tensor:
        grid = majority(label_map, features.shape[-1])
        rows = [
            [image[:, cells == number].mean(dim=1) for number in numbers.tolist()]
            for image, cells, numbers in zip(features, grid, drawn, strict=True)
        ]
        return torch.stack([torch.stack(row) for row in rows])

    anchors, targets = [], []
    for view, label_map, drawn in zip(batch.views, batch.label_maps, ids, strict=True):
        projections = nets["projector"](pool(nets["encoder"](view, (32,))[32], label_map, drawn))
        if objective.settings.variant == "s":
            anchors.append(projections)
            targets.append(projections)
        else:
            anchors.append(nets["predictor"](projections))
            targets.append(nets["target_projector"](pool(nets["target_encoder"](view, (32,))[32], label_map, drawn)))
    return ids, anchors, targets


def slow_direction(anchors: Tensor, own: Tensor, other: Tensor, own_ids: Tensor, other_ids: Tensor) -> float:
    """DetCon's cross-entropy of one direction in float64, one anchor after the other."""
    anchors, own, other = (
        rows.detach().double() / rows.detach().double().norm(dim=2, keepdim=True) for rows in (anchors, own, other)
    )
    total = 0.0
    for b in range(len(anchors)):
        for m in range(anchors.shape[1]):
            logits, positive = [], []
            for u in range(len(anchors)):
                for v in range(anchors.shape[1]):
                    is_positive = u == b and other_ids[u, v] == own_ids[b, m]
                    logits.append((anchors[b, m] @ other[u, v]).item() / TAU)
                    positive.append(is_positive)
                    if u != b or own_ids[u, v] != own_ids[b, m]:
                        logits.append((anchors[b, m] @ own[u, v]).item() / TAU)
                        positive.append(False)
            if not any(positive):
                continue
            partition = math.log(sum(math.exp(logit) for logit in logits))
            chosen = [logit for logit, is_positive in zip(logits, positive, strict=True) if is_positive]
            total += (partition - sum(chosen) / len(chosen)) / (own_ids[b] == own_ids[b, m]).sum().item()
    return total / own_ids.numel()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("overrides", [{}, {"variant": "s"}, {"masks": "soft", "weighting": "coverage"}], ids=str)
def test_it_keeps_the_contract(overrides: dict[str, Any]) -> None:
    check_objective(make(**overrides))


@pytest.mark.parametrize("variant", ["b", "s"])
def test_loss_is_detcons_cross_entropy_of_both_directions_written_as_loops(variant: str) -> None:
    objective = make(variant=variant)
    nets = build(objective).eval()  # batch norm must not move between the calls
    move_target(nets)
    batch = draw_batch(objective)
    (first_ids, second_ids), (p1, p2), (z1, z2) = embeddings(objective, nets, batch)

    loss, _ = objective.loss(nets, batch)

    expected = slow_direction(p1, z1, z2, first_ids, second_ids) + slow_direction(p2, z2, z1, second_ids, first_ids)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("variant", ["b", "s"])
def test_loss_equals_lightly_in_value_and_gradient(variant: str) -> None:
    objective = make(variant=variant)
    nets = build(objective).eval()
    move_target(nets)
    batch = draw_batch(objective)
    ids, anchors, targets = embeddings(objective, nets, batch)
    weight = nets["projector"][0].weight

    loss, _ = objective.loss(nets, batch)

    if variant == "b":
        theirs = DetConBLoss(TAU, gather_distributed=False)(*anchors, *(rows.detach() for rows in targets), *ids)
    else:
        theirs = DetConSLoss(TAU, gather_distributed=False)(*anchors, *ids)
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-5)
    (ours,), (expected,) = torch.autograd.grad(loss, [weight]), torch.autograd.grad(theirs, [weight])
    assert torch.allclose(ours, expected, rtol=1e-3, atol=1e-6 * expected.abs().max())


def test_gradients_reach_all_but_the_target() -> None:
    objective = make()
    nets = build(objective)

    objective.loss(nets, draw_batch(objective))[0].backward()

    for name, parameter in nets.named_parameters():
        assert (parameter.grad is None) == name.startswith("target_"), name


def test_an_image_without_a_shared_id_adds_neither_loss_nor_gradient() -> None:
    objective = make()
    nets = build(objective).eval()
    batch = draw_batch(objective)
    first, second = (maps.clone() for maps in batch.label_maps)
    first[:], second[:] = 1, 2
    batch = draw_batch(objective, (first, second))

    loss, logs = objective.loss(nets, batch)
    loss.backward()

    assert loss.item() == 0
    assert logs["anchors_with_positive"].item() == 0
    assert all(not parameter.grad.any() for parameter in nets["predictor"].parameters() if parameter.grad is not None)


@torch.no_grad()
def test_one_region_everywhere_is_told_from_the_other_images_alone() -> None:
    objective = make()
    nets = build(objective).eval()  # batch norm must not move between the calls
    zeros = torch.zeros(4, 64, 64, dtype=torch.uint8)
    batch = draw_batch(objective, (zeros, zeros))

    loss, _ = objective.loss(nets, batch)

    def embedded(view: int, network: str) -> Tensor:
        rows = nets[f"{network}projector"](nets[f"{network}encoder"](batch.views[view], (32,))[32].mean(dim=(2, 3)))
        return F.normalize(rows if network else nets["predictor"](rows), dim=1)

    masks, expected = objective.settings.num_masks, 0.0
    for view in (0, 1):
        anchors = embedded(view, "")
        cross, same = (anchors @ embedded(v, "target_").T / objective.settings.temperature for v in (1 - view, view))
        # All draws of an image are one vector: M equal positives, each a part 1/M, of weight 1/M.
        others = torch.cat([cross, same.fill_diagonal_(-torch.inf)], dim=1).logsumexp(dim=1)
        expected += ((others + math.log(masks) - cross.diagonal()) / masks).mean().item()
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_both_networks_see_the_same_draw_and_views_draw_on_their_own() -> None:
    objective = make(num_masks=16)
    batch = draw_batch(objective)
    label_map = batch.label_maps[0]
    generator = torch.Generator().manual_seed(0)

    first, second = objective._draw(label_map, generator), objective._draw(label_map, generator)

    assert not torch.equal(first.ids, second.ids)
    for image, ids in zip(label_map, first.ids, strict=True):
        assert set(ids.tolist()) <= set(image.unique().tolist())


def test_variant_s_has_one_network_and_simclrs_widths() -> None:
    nets = DetCon(DetConSettings(variant="s")).build(Encoder("resnet18"))

    assert sorted(nets) == ["encoder", "projector"]
    assert (nets["projector"][0].out_features, nets["projector"][3].out_features) == (2048, 128)


def test_variant_b_has_byols_widths() -> None:
    nets = DetCon(DetConSettings()).build(Encoder("resnet18"))

    assert (nets["projector"][0].out_features, nets["predictor"][3].out_features) == (4096, 256)
    assert nets["predictor"][3].bias is None


def test_the_target_follows_after_the_step() -> None:
    objective = make(base_momentum=0.9)
    nets = build(objective)
    before = [value.clone() for value in nets["target_encoder"].parameters()]
    with torch.no_grad():
        for value in nets["encoder"].parameters():
            value.add_(1)

    objective.after_step(nets, progress=0.0)

    for old, new in zip(before, nets["target_encoder"].parameters(), strict=True):
        assert torch.allclose(new, old + 0.1, atol=1e-6)


def test_a_few_steps_on_one_batch_lower_the_loss() -> None:
    objective = make(num_masks=8)
    nets, batch = build(objective), draw_batch(objective)
    optimiser = torch.optim.SGD([p for p in nets.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(3):
        optimiser.zero_grad()
        loss, _ = objective.loss(nets, batch)
        loss.backward()
        optimiser.step()
        objective.after_step(nets, 0.0)
        losses.append(loss.item())

    assert losses[-1] < losses[0]


def test_view_sizes_that_the_stride_does_not_divide_are_refused() -> None:
    with pytest.raises(SettingsError, match="view size 100 is no multiple of 32"):
        make().views(100)
