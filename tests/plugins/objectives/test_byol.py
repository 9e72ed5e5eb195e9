from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from anaus_bench.corpus.batch import Batch, make_batch
from anaus_bench.corpus.view import Blur, Jitter, Solarise
from anaus_bench.nn.encoder import Encoder
from anaus_bench.settings.base import resolve
from anaus_plugins.objectives.byol import BYOL, BYOLSettings, regression


@pytest.fixture
def objective() -> BYOL:
    torch.set_num_threads(1)
    return BYOL(resolve(BYOLSettings, "objective", "tiny", {"base_momentum": 0.9}))


@pytest.fixture
def nets(objective: BYOL) -> nn.ModuleDict:
    torch.manual_seed(0)
    return objective.build(Encoder("resnet18", objective.finest_stride()))


@pytest.fixture
def batch(objective: BYOL) -> Batch:
    images = torch.randint(0, 256, (4, 48, 48), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    boxes = torch.tensor([[0.0, 0.0, 48.0, 48.0]]).repeat(4, 1)
    return make_batch(images, None, boxes, torch.full((4,), -1), torch.arange(4), objective.views(32), 0, 0)


def test_loss_is_equation_2_in_both_directions_written_as_a_loop(
    objective: BYOL, nets: nn.ModuleDict, batch: Batch
) -> None:
    nets.eval()  # batch norm must not move between the calls

    def embed(view: Tensor, encoder: str, *heads: str) -> Tensor:
        rows = nets[encoder](view, (32,))[32].mean(dim=(2, 3))
        for head in heads:
            rows = nets[head](rows)
        return rows

    expected = 0.0
    for online_view, target_view in (batch.views, batch.views[::-1]):
        predictions = embed(online_view, "encoder", "projector", "predictor")
        projections = embed(target_view, "target_encoder", "target_projector")
        for prediction, projection in zip(predictions, projections, strict=True):
            difference = prediction / prediction.norm() - projection / projection.norm()
            expected += difference.square().sum().item() / len(predictions)

    loss, logs = objective.loss(nets, batch)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert logs["positive_cosine"].item() == pytest.approx(1 - expected / 4, abs=1e-5)


def test_regression_is_zero_for_equal_and_four_for_opposite_directions() -> None:
    rows = torch.randn(3, 8)

    assert regression(rows, 5 * rows).item() == pytest.approx(0, abs=1e-6)
    assert regression(rows, -rows).item() == pytest.approx(4, abs=1e-6)


def test_gradients_reach_all_but_the_target(objective: BYOL, nets: nn.ModuleDict, batch: Batch) -> None:
    objective.loss(nets, batch)[0].backward()

    for name, parameter in nets.named_parameters():
        assert (parameter.grad is None) == name.startswith("target_"), name


def test_the_target_uses_batch_statistics_of_its_own(objective: BYOL, nets: nn.ModuleDict, batch: Batch) -> None:
    objective.loss(nets, batch)

    online, target = nets["projector"][1], nets["target_projector"][1]
    assert target.num_batches_tracked == 2
    assert not torch.equal(target.running_mean, torch.zeros_like(target.running_mean))
    assert online.num_batches_tracked == 2


def test_the_target_follows_after_the_step_without_the_predictor(
    objective: BYOL, nets: nn.ModuleDict, batch: Batch
) -> None:
    before = {name: value.clone() for name, value in nets.named_parameters()}
    objective.loss(nets, batch)[0].backward()
    torch.optim.SGD([p for p in nets.parameters() if p.requires_grad], lr=0.1).step()

    objective.after_step(nets, progress=0.0)

    parameters = dict(nets.named_parameters())
    assert not any(name.startswith("target_predictor") for name in parameters)
    for name, value in parameters.items():
        if name.startswith("target_"):
            expected = 0.9 * before[name] + 0.1 * parameters[name.removeprefix("target_")]
            assert torch.allclose(value, expected, atol=1e-6)


def test_paper_heads_have_4096_hidden_and_256_output_units_and_no_last_bias() -> None:
    nets = BYOL(BYOLSettings()).build(Encoder("resnet18"))

    assert nets["projector"][0].weight.shape == (4096, 512)
    assert nets["predictor"][3].weight.shape == (256, 4096)
    assert nets["predictor"][3].bias is None


def test_recipes_are_asymmetric_in_blur_and_solarisation(objective: BYOL) -> None:
    first, second = objective.views(224)

    assert (first.operations, second.operations) == ((Jitter(), Blur()), (Jitter(), Blur(0.1), Solarise(0.2)))
    assert first.crop_area == (0.08, 1.0)
