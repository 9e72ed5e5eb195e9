from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anaus_bench.corpus.batch import Batch, make_batch
from anaus_bench.corpus.pixels import resample_labels
from anaus_bench.corpus.view import Crop
from anaus_bench.errors import SettingsError
from anaus_bench.kit.check import check_objective
from anaus_bench.kit.synthetic import synthetic_corpus
from anaus_bench.nn.encoder import Encoder
from anaus_bench.settings.base import resolve
from anaus_plugins.objectives.r2o import R2O, R2OSettings, scheduled_clusters
from anaus_plugins.objectives.r2o.clustering import superpixels

VARIANTS = {"own groups": (False, {}), "replaced": (True, {}), "prior": (True, {"stored_masks": "prior"})}


def make(**overrides: Any) -> R2O:
    return R2O(resolve(R2OSettings, "objective", "tiny", overrides))


def build(objective: R2O) -> nn.ModuleDict:
    torch.manual_seed(0)
    return objective.build(Encoder("resnet18"))


def move_target(nets: nn.ModuleDict) -> None:
    """As after some training: the target network is no copy of the online one."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, value in nets.named_parameters():
            if name.startswith("target_"):
                value.add_(0.1 * value.abs().mean() * torch.randn(value.shape, generator=generator))


def draw_batch(objective: R2O, masked: bool, *, step: int = 0) -> Batch:
    corpus = synthetic_corpus(4)
    truth = torch.from_numpy(corpus.truth) if masked and corpus.truth is not None else None
    recipes = objective.views(64)
    return make_batch(corpus.images, truth, corpus.boxes(), corpus.labels(), torch.arange(4), recipes, 0, step)


def changed(batch: Batch, **values: Any) -> Batch:
    batch = copy.copy(batch)
    for name, value in values.items():
        object.__setattr__(batch, name, value)
    return batch


def slow_loss(objective: R2O, nets: nn.ModuleDict, batch: Batch, label_maps: tuple[Tensor, ...]) -> float:
    """BYOL's distance over regions seen in both views, one region after the other, in float64."""

    def regions(network: str, view: int) -> dict[tuple[int, int], tuple[Tensor, float]]:
        features = nets[f"{network}encoder"](batch.views[view], (32,))[32].double()
        found = {}
        for b, (image, label_map) in enumerate(zip(features, label_maps[view], strict=True)):
            for number in label_map.unique().tolist():
                share = F.avg_pool2d((label_map == number)[None].double(), 32)[0]
                found[b, number] = ((image * share).sum(dim=(1, 2)) / share.sum()).float(), share.sum().item()
        return found

    online = [regions("", view) for view in (0, 1)]
    target = [regions("target_", view) for view in (0, 1)]
    total = weight = 0.0
    for key in online[0].keys() & online[1].keys():
        area = (online[0][key][1] + online[1][key][1]) / 2 if objective.settings.area_weights else 1.0
        for view in (0, 1):
            p = nets["predictor"](nets["projector"](online[view][key][0][None]))[0].double()
            z = nets["target_projector"](target[1 - view][key][0][None])[0].double()
            total += area * (p / p.norm() - z / z.norm()).square().sum().item()
            weight += area
    return total / weight


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("stored_masks", ["replace", "prior"])
def test_it_keeps_the_contract_with_masks(stored_masks: str) -> None:
    check_objective(make(stored_masks=stored_masks))


def test_it_keeps_the_contract_without_masks() -> None:
    class Unmasked(R2O):
        """Given no masks."""

        makes_own_groups = False

    check_objective(Unmasked(make().settings))


@pytest.mark.parametrize(("masked", "overrides"), VARIANTS.values(), ids=VARIANTS)
def test_loss_is_finite_and_gradients_reach_all_but_the_target(masked: bool, overrides: dict[str, Any]) -> None:
    objective = make(**overrides)
    nets = build(objective)

    loss, logs = objective.loss(nets, draw_batch(objective, masked))
    loss.backward()

    assert 0 <= loss.item() <= 4
    assert logs["positive_cosine"].item() == pytest.approx(1 - loss.item() / 2, abs=1e-5)
    for name, parameter in nets.named_parameters():
        assert (parameter.grad is None) == name.startswith("target_"), name


@pytest.mark.parametrize("area_weights", [False, True])
@torch.no_grad()
def test_loss_with_masks_is_the_distance_over_shared_regions_written_as_loops(area_weights: bool) -> None:
    objective = make(area_weights=area_weights)
    nets = build(objective).eval()  # batch norm must not move between the calls
    move_target(nets)
    batch = draw_batch(objective, True)

    loss, _ = objective.loss(nets, batch)

    assert loss.item() == pytest.approx(slow_loss(objective, nets, batch, batch.label_maps), rel=1e-4)


@pytest.mark.parametrize("name", ["own groups", "prior"])
@torch.no_grad()
def test_loss_of_clusters_is_that_of_the_same_clusters_as_masks(name: str) -> None:
    masked, overrides = VARIANTS[name]
    objective = make(**overrides)
    nets = build(objective).eval()
    move_target(nets)
    batch = draw_batch(objective, masked)
    clusters, number = objective._regions(nets, batch)

    loss, _ = objective.loss(nets, batch)

    assert torch.stack(list(clusters)).max() < number
    assert loss.item() == pytest.approx(slow_loss(objective, nets, batch, tuple(clusters)), rel=1e-4)


@torch.no_grad()
def test_clusters_join_whole_superpixels_by_the_cosine_of_the_targets_features() -> None:
    objective = make(start_clusters=3, superpixel_grid=4)
    nets = build(objective).eval()
    batch = draw_batch(objective, False)
    prior = superpixels(batch.source, 4)

    clusters = objective._refine(nets, batch, prior, 16, points_per_cluster=4)

    for label_map, regions in zip(clusters, prior, strict=True):
        for number in regions.unique():
            assert len(label_map[regions == number].unique()) == 1
    assert clusters.unique().numel() <= 3


@torch.no_grad()
def test_superpixels_that_do_not_occur_take_no_part_in_the_clustering() -> None:
    objective = make(stored_masks="prior", start_clusters=2)
    nets = build(objective).eval()
    batch = draw_batch(objective, True)
    few = torch.zeros_like(batch.source_masks)
    few[:, :32], few[:, 32:] = 200, 7  # 254 ids are absent; their zero vectors would be one of two clusters

    clusters = objective._refine(nets, batch, few, 256, points_per_cluster=1)

    assert clusters.unique().tolist() == [0, 1]


@torch.no_grad()
def test_the_letterbox_takes_no_part_in_the_clustering() -> None:
    objective = make(stored_masks="prior", start_clusters=3)
    nets = build(objective).eval()
    batch = changed(draw_batch(objective, True), boxes=torch.tensor([[16.0, 0.0, 32.0, 64.0]]).repeat(4, 1))
    prior = torch.zeros_like(batch.source_masks)
    prior[:, 16:48, :32], prior[:, 16:48, 32:] = 3, 7

    clusters = objective._refine(nets, batch, prior, 256, points_per_cluster=4)

    assert clusters[:, 16:48].unique().tolist() == [
        0,
        1,
    ]  # the letterbox would make a third
    assert not clusters[:, :16].any()
    assert not clusters[:, 48:].any()


def test_clusters_are_limited_by_the_superpixels_of_the_batch() -> None:
    objective = make(start_clusters=128, superpixel_grid=4, points_per_cluster=16)

    clusters, _ = objective._regions(build(objective), draw_batch(objective, False))

    assert torch.stack(list(clusters)).unique().numel() <= 4


@torch.no_grad()
def test_a_flip_moves_the_masks_with_the_features() -> None:
    objective = make()
    nets = build(objective).eval()
    batch = draw_batch(objective, False)
    crops = tuple(Crop(crop.box, ~crop.flip) for crop in batch.crops)
    flipped = changed(batch, crops=crops, views=tuple(view.flip(3) for view in batch.views))

    maps = [objective._regions(nets, version)[0] for version in (batch, flipped)]

    for upright, mirrored in zip(*maps, strict=True):
        assert torch.equal(upright.flip(2), mirrored)


def test_a_region_absent_in_one_view_has_no_gradient() -> None:
    objective = make()
    nets = build(objective).eval()
    batch = draw_batch(objective, True)
    first, second = (torch.zeros_like(maps) for maps in batch.label_maps)
    first[:, :, 32:] = 5  # the right half of view 1 is in no part of view 2
    view = batch.views[0].clone().requires_grad_()
    features: list[Tensor] = []
    nets["encoder"].register_forward_hook(lambda _, __, maps: features.append(maps[32]) or maps[32].retain_grad())

    objective.loss(nets, changed(batch, views=(view, batch.views[1]), label_maps=(first, second)))[0].backward()

    assert features[0].grad is not None
    assert features[0].grad[..., 0].any()
    assert not features[0].grad[..., 1].any()


@pytest.mark.parametrize("shared", [0, 1])
def test_fewer_than_two_shared_regions_give_zero_and_finite_gradients(shared: int) -> None:
    objective = make()
    nets, batch = build(objective), draw_batch(objective, True)
    first, second = (torch.full_like(maps, number) for number, maps in enumerate(batch.label_maps))
    second[:shared] = 0

    loss, logs = objective.loss(nets, changed(batch, label_maps=(first, second)))
    loss.backward()

    assert loss.item() == 0
    assert logs["regions"].item() == shared / 4
    for name, parameter in nets.named_parameters():
        assert name.startswith("target_") or (parameter.grad is not None and not parameter.grad.any()), name


def test_constant_images_are_regions_like_any_other() -> None:
    objective = make()
    nets, batch = build(objective), draw_batch(objective, False)
    black = changed(batch, source=torch.zeros_like(batch.source), views=tuple(map(torch.zeros_like, batch.views)))

    loss, logs = objective.loss(nets, black)
    loss.backward()

    assert logs["regions"].item() > 0
    assert loss.item() == pytest.approx(2 - 2 * logs["positive_cosine"].item(), abs=1e-6)
    assert all(p.grad.isfinite().all() for p in nets.parameters() if p.grad is not None)


def test_the_number_of_clusters_falls_slowly_and_then_steeply() -> None:
    epochs = (0, 50, 100, 150, 200, 250, 300)

    assert [scheduled_clusters(epoch / 300, 128, 4) for epoch in epochs] == [128, 123, 111, 91, 66, 36, 4]


def test_the_number_of_clusters_is_set_before_each_step() -> None:
    objective = R2O(R2OSettings())
    nets = nn.ModuleDict()

    objective.before_forward(nets, 0.5)

    assert objective.num_clusters == 91


def test_stored_masks_need_no_third_pass_of_the_target() -> None:
    passes = {}
    for name, (masked, overrides) in VARIANTS.items():
        objective = make(**overrides)
        nets = build(objective)
        objective.loss(nets, draw_batch(objective, masked))
        passes[name] = nets["target_encoder"].backbone.bn1.num_batches_tracked.item()

    assert passes == {"own groups": 3, "replaced": 2, "prior": 3}


@torch.no_grad()
def test_with_masks_replaced_the_views_own_label_maps_are_the_regions() -> None:
    objective = make()
    batch = draw_batch(objective, True)

    maps, _ = objective._regions(build(objective), batch)

    for label_map, crop in zip(maps, batch.crops, strict=True):
        assert torch.equal(label_map, resample_labels(batch.source_masks, crop, 64))


@pytest.mark.parametrize(("masked", "overrides"), VARIANTS.values(), ids=VARIANTS)
def test_a_few_steps_on_one_batch_lower_the_loss(masked: bool, overrides: dict[str, Any]) -> None:
    objective = make(**overrides)
    nets, batch = build(objective), draw_batch(objective, masked)
    optimiser = torch.optim.Adam([p for p in nets.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(3):
        optimiser.zero_grad()
        loss, _ = objective.loss(nets, batch)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())

    assert losses[-1] < losses[0]


def test_networks_survive_saving_and_loading() -> None:
    objective = make()
    nets = build(objective)
    objective.loss(nets, draw_batch(objective, False))
    other = objective.build(Encoder("resnet18"))

    other.load_state_dict(nets.state_dict())

    batch = draw_batch(objective, False, step=1)
    assert torch.equal(objective.loss(nets, batch)[0], objective.loss(other, batch)[0])


def test_view_sizes_that_the_stride_does_not_divide_are_refused() -> None:
    with pytest.raises(SettingsError, match="view size 100 is no multiple of 32"):
        make().views(100)
