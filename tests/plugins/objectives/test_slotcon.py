from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anaus_bench.corpus.batch import Batch, make_batch
from anaus_bench.corpus.draw import overlap_box
from anaus_bench.corpus.view import Crop
from anaus_bench.errors import SettingsError
from anaus_bench.kit.check import check_objective
from anaus_bench.kit.synthetic import synthetic_corpus
from anaus_bench.nn.encoder import Encoder
from anaus_bench.settings.base import resolve
from anaus_plugins.objectives.slotcon import SlotCon, SlotConSettings
from anaus_plugins.objectives.slotcon.alignment import align

VARIANTS = {
    "own groups": (False, {}),
    "hard masks": (True, {}),
    "guided by masks": (True, {"stored_masks": "guided"}),
}


def make(**overrides: Any) -> SlotCon:
    return SlotCon(resolve(SlotConSettings, "objective", "tiny", overrides))


def build(objective: SlotCon) -> nn.ModuleDict:
    torch.manual_seed(0)
    return objective.build(Encoder("resnet18"))


def move_target(nets: nn.ModuleDict) -> None:
    """As after some training: the target network is no copy of the online one."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, value in nets.named_parameters():
            if name.startswith("target_"):
                value.add_(0.1 * value.abs().mean() * torch.randn(value.shape, generator=generator))


def draw_batch(objective: SlotCon, masked: bool, *, step: int = 0, size: int = 64) -> Batch:
    corpus = synthetic_corpus(4)
    truth = torch.from_numpy(corpus.truth) if masked and corpus.truth is not None else None
    recipes = objective.views(size)
    return make_batch(corpus.images, truth, corpus.boxes(), corpus.labels(), torch.arange(4), recipes, 0, step)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("stored_masks", ["hard", "guided"])
def test_it_keeps_the_contract_with_masks(stored_masks: str) -> None:
    check_objective(make(stored_masks=stored_masks), size=64)


def test_it_keeps_the_contract_without_masks() -> None:
    class Unmasked(SlotCon):
        """Given no masks."""

        makes_own_groups = False

    check_objective(Unmasked(make().settings), size=64)


@pytest.mark.parametrize(("masked", "overrides"), VARIANTS.values(), ids=VARIANTS)
def test_loss_sums_its_parts_and_reaches_all_that_is_in_use_but_no_target(
    masked: bool, overrides: dict[str, Any]
) -> None:
    objective = make(**overrides)
    nets = build(objective)

    loss, logs = objective.loss(nets, draw_batch(objective, masked))
    loss.backward()

    share = objective.settings.lambda_group
    grouping = logs["grouping"].item() if "grouping" in logs else 0.0
    assert loss.item() == pytest.approx(share * grouping + (1 - share) * logs["contrast"].item(), rel=1e-6)
    assert all(value.isfinite() and value.ndim == 0 and not value.requires_grad for value in logs.values())
    unused = ("target_", "prototypes") if VARIANTS["hard masks"] == (masked, overrides) else ("target_",)
    for name, parameter in nets.named_parameters():
        assert (parameter.grad is None) == name.startswith(unused), name


@pytest.mark.parametrize(("masked", "overrides"), VARIANTS.values(), ids=VARIANTS)
def test_the_loss_is_the_weighted_sum_of_its_logged_parts(masked: bool, overrides: dict[str, Any]) -> None:
    objective = make(lambda_group=0.25, **overrides)

    loss, logs = objective.loss(build(objective), draw_batch(objective, masked))

    grouping = logs["grouping"].item() if "grouping" in logs else 0.0
    assert loss.item() == pytest.approx(0.25 * grouping + 0.75 * logs["contrast"].item(), rel=1e-5)
    assert ("grouping" in logs) == (VARIANTS["hard masks"] != (masked, overrides))


def slow_contrast(nets: nn.ModuleDict, own: list[dict[int, Tensor]], other: list[dict[int, Tensor]]) -> float:
    """2 tau times the mean cross-entropy, from the slots of each image by id that exist."""
    anchors = [(b, k) for b, slots in enumerate(own) for k in slots if k in other[b]]
    predictions = nets["predictor"](torch.stack([own[b][k] for b, k in anchors]).float()).double()
    losses = []
    for (b, k), prediction in zip(anchors, predictions, strict=True):
        scores = {
            (u, g): F.cosine_similarity(prediction, slot, dim=0) / 0.2
            for u, row in enumerate(other)
            for g, slot in row.items()
        }
        losses.append(torch.stack(list(scores.values())).logsumexp(dim=0) - scores[b, k])
    return 0.4 * torch.stack(losses).mean().item()


@torch.no_grad()
def test_hard_masks_contrast_the_mean_projection_of_each_region_written_as_loops() -> None:
    objective = make()
    nets = build(objective).eval()  # batch norm must not move between the calls
    move_target(nets)
    batch = draw_batch(objective, True)

    def slots(network: str, view: int) -> list[dict[int, Tensor]]:
        projections = nets[f"{network}projector"](nets[f"{network}encoder"](batch.views[view], (32,))[32]).double()
        found = []
        for image, label_map in zip(projections, batch.label_maps[view], strict=True):
            vectors = {}
            for number in label_map.unique().tolist():
                share = F.avg_pool2d((label_map == number)[None].double(), 32)[0]
                largest = torch.stack([F.avg_pool2d((label_map == k)[None].double(), 32)[0] for k in range(3)]).argmax(
                    0
                )
                if share.sum() >= 0.5 or (largest == number).any():
                    vectors[number] = (image * share).sum(dim=(1, 2)) / share.sum()
            found.append(vectors)
        return found

    loss, _ = objective.loss(nets, batch)

    first, second = (slow_contrast(nets, slots("", view), slots("target_", other)) for view, other in ((0, 1), (1, 0)))
    assert loss.item() == pytest.approx(0.5 * (first + second), rel=1e-4)


@torch.no_grad()
def test_own_groups_contrast_prototypes_that_win_a_cell_written_as_loops() -> None:
    objective = make()
    nets = build(objective).eval()
    move_target(nets)
    batch = draw_batch(objective, False, size=96)

    def slots(network: str, view: int) -> list[dict[int, Tensor]]:
        projections = nets[f"{network}projector"](nets[f"{network}encoder"](batch.views[view], (32,))[32]).double()
        prototypes = F.normalize(nets[f"{network}prototypes"].weight.double(), dim=1)
        found = []
        for image in projections:
            cells = image.flatten(1).T  # (9, D)
            scores = F.normalize(cells, dim=1) @ prototypes.T
            attention = (scores / 0.07).softmax(dim=1) + 1e-6
            found.append(
                {
                    k: (cells * attention[:, k, None]).sum(dim=0) / attention[:, k].sum()
                    for k in set(scores.argmax(dim=1).tolist())
                }
            )
        return found

    _, logs = objective.loss(nets, batch)

    first, second = (slow_contrast(nets, slots("", view), slots("target_", other)) for view, other in ((0, 1), (1, 0)))
    assert logs["contrast"].item() == pytest.approx(first + second, rel=1e-4)
    assert 0 < logs["anchors"] <= logs["groups"]


def with_crops(batch: Batch, first: list[float], second: list[float]) -> Batch:
    still = torch.zeros(4, dtype=torch.bool)
    crops = tuple(Crop(torch.tensor([box]).repeat(4, 1), still) for box in (first, second))
    batch = copy.copy(batch)
    object.__setattr__(batch, "crops", crops)
    return batch


@pytest.mark.parametrize("crops", ["drawn", "equal"])
@torch.no_grad()
def test_grouping_compares_the_cells_that_show_the_same_pixels_and_then_moves_the_centre(crops: str) -> None:
    objective = make()
    nets = build(objective).eval()
    move_target(nets)
    nets["targets"].centre.normal_()
    batch = draw_batch(objective, False)
    if crops == "equal":
        batch = with_crops(batch, [0, 0, 64, 64], [0, 0, 64, 64])
    box = overlap_box(*batch.crops)
    shares = box[:, 2].clamp(min=0) * box[:, 3].clamp(min=0) / batch.crops[1].box[:, 2:].prod(dim=1)
    kept = [b for b in range(4) if shares[b] >= 0.01]
    assert kept
    centre = nets["targets"].centre.clone()

    def scores(network: str, view: int) -> Tensor:
        projections = nets[f"{network}projector"](nets[f"{network}encoder"](batch.views[view], (32,))[32])
        prototypes = F.normalize(nets[f"{network}prototypes"].weight, dim=1)
        return torch.einsum("kd,bdhw->bkhw", prototypes, F.normalize(projections, dim=1))

    def aligned(maps: Tensor, view: int, image: int) -> Tensor:
        crop = Crop(batch.crops[view].box[image : image + 1], batch.crops[view].flip[image : image + 1])
        same = torch.equal(crop.box[0], box[image]) and not crop.flip[0]
        return maps[image : image + 1] if same else align(maps[image : image + 1], crop, box[image : image + 1])

    _, logs = objective.loss(nets, batch)

    expected = 0.0
    for view, other in ((0, 1), (1, 0)):
        for image in kept:
            target = aligned(scores("target_", other), other, image) - centre[:, None, None]
            online = aligned(scores("", view), view, image)
            entropy = -((target / 0.07).softmax(dim=1) * (online / 0.1).log_softmax(dim=1)).sum(dim=1).mean()
            expected += entropy.item() / len(kept)
    assert logs["grouping"].item() == pytest.approx(expected, rel=1e-4)
    mean = torch.stack([scores("target_", view) for view in (0, 1)]).mean(dim=(0, 1, 3, 4))
    assert torch.allclose(nets["targets"].centre, 0.9 * centre + 0.1 * mean, atol=1e-5)


def test_crops_without_overlap_leave_the_grouping_loss_out() -> None:
    objective = make()
    nets = build(objective)
    batch = with_crops(draw_batch(objective, False), [0, 0, 20, 20], [30, 30, 20, 20])

    loss, logs = objective.loss(nets, batch)
    loss.backward()

    assert logs["grouping"].item() == 0
    assert all(p.grad.isfinite().all() for p in nets.parameters() if p.grad is not None)


@pytest.mark.parametrize("stored_masks", ["hard", "guided"])
def test_views_without_a_shared_id_have_no_anchors_and_a_finite_loss(stored_masks: str) -> None:
    objective = make(stored_masks=stored_masks)
    nets, batch = build(objective), draw_batch(objective, True)
    first, second = batch.label_maps
    object.__setattr__(batch, "label_maps", (torch.zeros_like(first), torch.full_like(second, 9)))

    loss, logs = objective.loss(nets, batch)
    loss.backward()

    assert logs["anchors"].item() == logs["contrast"].item() == 0
    assert all(p.grad.isfinite().all() for p in nets.parameters() if p.grad is not None)


def test_the_target_follows_before_the_forward_and_keeps_still_at_the_end() -> None:
    objective = make(base_momentum=0.9)
    nets = build(objective)
    before = nets["target_prototypes"].weight.clone()
    with torch.no_grad():
        nets["prototypes"].weight.add_(1)

    objective.before_forward(nets, 0.0)
    assert torch.allclose(nets["target_prototypes"].weight, before + 0.1, atol=1e-6)

    objective.before_forward(nets, 1.0)
    assert torch.allclose(nets["target_prototypes"].weight, before + 0.1, atol=1e-6)


def test_networks_and_centre_survive_saving_and_loading() -> None:
    objective = make()
    nets = build(objective)
    objective.loss(nets, draw_batch(objective, False))
    other = objective.build(Encoder("resnet18"))

    other.load_state_dict(nets.state_dict())

    assert nets["targets"].centre.any()
    batch = draw_batch(objective, False, step=1)
    assert torch.equal(objective.loss(nets, batch)[0], objective.loss(other, batch)[0])


@pytest.mark.parametrize(("masked", "overrides"), VARIANTS.values(), ids=VARIANTS)
def test_a_few_steps_on_one_batch_lower_the_loss(masked: bool, overrides: dict[str, Any]) -> None:
    objective = make(**overrides)
    nets, batch = build(objective), draw_batch(objective, masked)
    optimiser = torch.optim.Adam([p for p in nets.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(4):
        objective.before_forward(nets, 0.0)
        optimiser.zero_grad()
        loss, _ = objective.loss(nets, batch)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())

    assert min(losses[-2:]) < losses[0]


def test_view_sizes_that_the_stride_does_not_divide_are_refused() -> None:
    with pytest.raises(SettingsError, match="view size 100 is no multiple of 32"):
        make().views(100)
