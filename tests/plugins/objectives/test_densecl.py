from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anaus_bench.corpus.batch import Batch
from anaus_bench.errors import SettingsError
from anaus_bench.kit.check import check_objective
from anaus_bench.kit.synthetic import synthetic_batch, synthetic_corpus
from anaus_bench.nn.encoder import Encoder
from anaus_bench.settings.base import resolve
from anaus_plugins.objectives.densecl import DenseCL, DenseCLSettings, match


def make(**overrides: Any) -> DenseCL:
    return DenseCL(resolve(DenseCLSettings, "objective", "tiny", overrides))


def build(objective: DenseCL) -> nn.ModuleDict:
    torch.manual_seed(0)
    return objective.build(Encoder("resnet18"))


def move_target(nets: nn.ModuleDict) -> None:
    """As after some training: the target network is no copy of the online one."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, value in nets.named_parameters():
            if name.startswith("target_"):
                value.add_(0.1 * value.abs().mean() * torch.randn(value.shape, generator=generator))


def draw_batch(objective: DenseCL, step: int = 0) -> Batch:
    return synthetic_batch(objective, size=64, images=4, step=step)


def unit(vector: Tensor) -> Tensor:
    return vector.double() / vector.double().norm()


def info_nce(query: Tensor, key: Tensor, negatives: Tensor) -> float:
    logits = torch.stack([query @ key, *(query @ negative.double() for negative in negatives)]) / 0.2
    return (logits.logsumexp(dim=0) - logits[0]).item()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_it_keeps_the_contract() -> None:
    check_objective(make())
    check_objective(make(), size=64)


@torch.no_grad()
def test_loss_is_equations_1_to_4_written_as_loops() -> None:
    objective = make(dense_weight=0.3)
    nets = build(objective).eval()  # batch norm must not move between the calls
    move_target(nets)
    batch = draw_batch(objective)
    queues = [nets[name].keys.clone() for name in ("queue", "dense_queue")]

    loss, logs = objective.loss(nets, batch)

    global_losses, dense_losses = [], []
    queries = nets["encoder"](batch.views[0], (32,))[32]
    keys = nets["target_encoder"](batch.views[1], (32,))[32]
    for query_map, key_map in zip(queries, keys, strict=True):
        q = unit(nets["projector"](query_map.mean(dim=(1, 2))[None])[0])
        k = unit(nets["target_projector"](key_map.mean(dim=(1, 2))[None])[0])
        global_losses.append(info_nce(q, k, queues[0]))
        query_cells, key_cells = query_map.flatten(1).T, key_map.flatten(1).T
        for cell in query_cells:
            cosines = [(unit(cell) @ unit(other)).item() for other in key_cells]
            nearest = key_cells[cosines.index(max(cosines))]
            r, t = unit(nets["dense_projector"](cell[None])[0]), unit(nets["target_dense_projector"](nearest[None])[0])
            dense_losses.append(info_nce(r, t, queues[1]))
    expected = sum(global_losses) / len(global_losses), sum(dense_losses) / len(dense_losses)
    assert len(dense_losses) == 4 * 4
    assert (logs["global"].item(), logs["dense"].item()) == pytest.approx(expected, rel=1e-4)
    assert loss.item() == pytest.approx(0.7 * expected[0] + 0.3 * expected[1], rel=1e-4)


@torch.no_grad()
def test_queues_take_the_keys_and_the_mean_dense_keys_after_the_loss() -> None:
    objective = make()
    nets = build(objective).eval()
    move_target(nets)
    batch = draw_batch(objective)

    objective.loss(nets, batch)

    cells = nets["target_encoder"](batch.views[1], (32,))[32].flatten(2).transpose(1, 2)
    keys = nets["target_projector"](cells.mean(dim=1))
    dense = nets["target_dense_projector"](cells).mean(dim=1)
    for name, rows in (("queue", keys), ("dense_queue", dense)):
        expected = torch.stack([unit(row) for row in rows]).float()
        assert torch.allclose(nets[name].keys[:4], expected, atol=1e-4)
        assert nets[name].pointer.item() == 4


def test_cells_are_matched_by_the_highest_cosine() -> None:
    keys = torch.eye(4)[None]
    queries = torch.tensor([[[0.1, 5.0, 0.0, 0.0], [0.0, 0.0, 0.2, 0.1]]])

    assert match(queries, 10 * keys).tolist() == [[1, 2]]


def test_equal_views_and_networks_match_each_cell_with_itself() -> None:
    cells = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0))

    assert torch.equal(match(cells, cells), torch.arange(9).expand(2, -1))


def test_the_dense_loss_is_left_out_of_the_first_steps() -> None:
    objective = make(warmup_steps=2)
    nets = build(objective).eval()

    early, early_logs = objective.loss(nets, draw_batch(objective, step=1))
    late, late_logs = objective.loss(nets, draw_batch(objective, step=2))

    assert early.item() == pytest.approx(early_logs["global"].item())
    assert late.item() == pytest.approx((0.5 * (late_logs["global"] + late_logs["dense"])).item())


def test_gradients_reach_all_but_the_target() -> None:
    objective = make()
    nets = build(objective)

    objective.loss(nets, draw_batch(objective))[0].backward()

    for name, parameter in nets.named_parameters():
        assert (parameter.grad is None) == name.startswith("target_"), name


def test_parts_of_the_batch_pass_the_target_one_by_one_and_come_back_in_order() -> None:
    objective = make(bn_splits=2)
    nets = build(objective)
    images = draw_batch(objective).views[1]
    nets.eval()

    split = objective._keys(nets, images, seed=3)
    whole = objective._project(nets, images, "target_")

    for rows, expected in zip(split, whole, strict=True):
        assert torch.allclose(rows, expected, atol=1e-5)
    nets.train()
    objective._keys(nets, images, seed=3)
    assert nets["target_encoder"].backbone.bn1.num_batches_tracked.item() == 2


def test_the_target_follows_before_the_forward_with_a_constant_momentum() -> None:
    objective = make(momentum=0.9)
    nets = build(objective)
    before = nets["target_dense_projector"][0].weight.clone()
    with torch.no_grad():
        nets["dense_projector"][0].weight.add_(1)

    objective.before_forward(nets, 0.7)

    assert torch.allclose(nets["target_dense_projector"][0].weight, before + 0.1, atol=1e-6)


def test_networks_and_queues_survive_saving_and_loading() -> None:
    objective = make()
    nets = build(objective)
    objective.loss(nets, draw_batch(objective))
    other = objective.build(Encoder("resnet18"))

    other.load_state_dict(nets.state_dict())

    batch = draw_batch(objective, step=1)
    assert torch.equal(objective.loss(nets, batch)[0], objective.loss(other, batch)[0])


def test_a_few_steps_on_one_batch_lower_the_loss() -> None:
    objective = make(bn_splits=1)
    nets, batch = build(objective), draw_batch(objective)
    queues = {name: nets[name].state_dict() for name in ("queue", "dense_queue")}
    queues = {name: {key: value.clone() for key, value in state.items()} for name, state in queues.items()}
    optimiser = torch.optim.Adam([p for p in nets.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(3):
        for name, state in queues.items():
            nets[name].load_state_dict(state)  # the batch's own keys must not be its negatives
        optimiser.zero_grad()
        loss, _ = objective.loss(nets, batch)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())

    assert losses[-1] < losses[0]


def test_queues_longer_than_the_corpus_and_uneven_parts_are_refused() -> None:
    corpus = synthetic_corpus(8)

    with pytest.raises(SettingsError, match="queue_size=9 is more than the 8 images"):
        make(queue_size=9).sampler(corpus, 4, 0)
    with pytest.raises(SettingsError, match=r"batch=4 does not split into objective\.bn_splits=3"):
        make(bn_splits=3).sampler(corpus, 4, 0)


def test_object_centric_modules_import_without_torch() -> None:
    names = ", ".join(f"anaus_plugins.objectives.{name}" for name in ("densecl", "detcon", "r2o", "slotcon"))
    code = f"import sys, {names}; assert not {{'torch', 'torchvision', 'scipy', 'lightly'}} & set(sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
