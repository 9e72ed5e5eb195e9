from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from anaus_bench.errors import SettingsError
from anaus_bench.kit.check import check_objective
from anaus_bench.kit.synthetic import synthetic_batch
from anaus_bench.nn.encoder import Encoder
from anaus_bench.settings.base import resolve
from anaus_plugins.objectives.simclr import SimCLR, SimCLRSettings


@pytest.fixture
def objective() -> SimCLR:
    torch.set_num_threads(1)
    return SimCLR(resolve(SimCLRSettings, "objective", "tiny", {"temperature": 0.3}))


@pytest.fixture
def nets(objective: SimCLR) -> nn.ModuleDict:
    torch.manual_seed(0)
    return objective.build(Encoder("resnet18"))


def test_it_keeps_the_contract(objective: SimCLR) -> None:
    check_objective(objective)


def test_loss_is_equation_1_written_as_a_loop(objective: SimCLR, nets: nn.ModuleDict) -> None:
    batch = synthetic_batch(objective, size=32, images=4)
    nets.eval()  # batch norm must not move between the calls

    rows: list[Tensor] = []
    for view in batch.views:
        rows += [row / row.norm() for row in nets["projector"](nets["encoder"].vector(view)).double().detach()]
    expected = 0.0
    for i in range(8):
        similar = [math.exp(float(rows[i] @ rows[a]) / 0.3) for a in range(8)]
        expected -= math.log(similar[(i + 4) % 8] / sum(similar[a] for a in range(8) if a != i)) / 8
    loss, logs = objective.loss(nets, batch)

    assert loss.item() == pytest.approx(expected, rel=1e-4)
    cosines = [float(rows[i] @ rows[i + 4]) for i in range(4)]
    assert logs["positive_cosine"].item() == pytest.approx(sum(cosines) / 4, abs=1e-5)


def test_each_view_passes_on_its_own(objective: SimCLR, nets: nn.ModuleDict) -> None:
    objective.loss(nets, synthetic_batch(objective, size=32, images=4))

    assert nets["encoder"].backbone.bn1.num_batches_tracked == 2


def test_all_parameters_are_trained(objective: SimCLR, nets: nn.ModuleDict) -> None:
    objective.loss(nets, synthetic_batch(objective, size=32, images=4))[0].backward()

    assert all(parameter.grad is not None for parameter in nets.parameters())


def test_the_paper_head_is_as_wide_as_the_encoder_and_has_no_norm() -> None:
    head = SimCLR(SimCLRSettings()).build(Encoder("resnet18"))["projector"]

    assert [layer.weight.shape for layer in head if isinstance(layer, nn.Linear)] == [(512, 512), (128, 512)]
    assert not any(isinstance(layer, nn.BatchNorm1d) for layer in head)


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(SettingsError, match="temperature"):
        resolve(SimCLRSettings, "objective", "paper", {"temperature": 0})
