from __future__ import annotations

import pytest
import torch
from lightly.loss import VICRegLoss
from torch import nn

from anaus_bench.corpus.view import Blur, Jitter, Solarise
from anaus_bench.kit.check import check_objective
from anaus_bench.kit.synthetic import synthetic_batch
from anaus_bench.nn.encoder import Encoder
from anaus_bench.settings.base import resolve
from anaus_plugins.objectives.vicreg import VICReg, VICRegSettings


@pytest.fixture
def objective() -> VICReg:
    torch.set_num_threads(1)
    return VICReg(resolve(VICRegSettings, "objective", "tiny"))


@pytest.fixture
def nets(objective: VICReg) -> nn.ModuleDict:
    torch.manual_seed(0)
    return objective.build(Encoder("resnet18"))


def test_it_keeps_the_contract(objective: VICReg) -> None:
    check_objective(objective)


def test_loss_is_that_of_lightly_and_the_weighted_sum_of_the_logged_terms(
    objective: VICReg, nets: nn.ModuleDict
) -> None:
    batch = synthetic_batch(objective, size=32, images=4)
    nets.eval()
    first, second = (nets["expander"](nets["encoder"].vector(view)) for view in batch.views)

    loss, logs = objective.loss(nets, batch)

    assert loss.item() == pytest.approx(VICRegLoss()(first, second).item(), rel=1e-4)
    terms = 25 * logs["invariance"] + 25 * logs["variance"] + logs["covariance"]
    assert loss.item() == pytest.approx(terms.item(), rel=1e-5)


def test_the_paper_expander_has_three_layers_of_8192() -> None:
    with torch.device("meta"):
        expander = VICReg(VICRegSettings()).build(Encoder("resnet18"))["expander"]

    shapes = [tuple(layer.weight.shape) for layer in expander if isinstance(layer, nn.Linear)]
    assert shapes == [(8192, 512), (8192, 8192), (8192, 8192)]


def test_both_views_have_the_paper_recipe(objective: VICReg) -> None:
    first, second = objective.views(224)

    assert first == second
    assert first.operations == (Jitter(0.8), Blur(0.5), Solarise(0.1))
