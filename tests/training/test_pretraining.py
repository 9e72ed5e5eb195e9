"""What the optimiser of pre-training is given in each step: learning rate and weight decay."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anaus_bench.corpus.batch import Batch
from anaus_bench.corpus.view import View
from anaus_bench.interfaces import Objective, StageContext
from anaus_bench.kit.synthetic import synthetic_corpus
from anaus_bench.nn.encoder import Encoder
from anaus_bench.registry import Registry
from anaus_bench.settings.base import Settings, resolve
from anaus_bench.settings.core import PretrainSettings
from anaus_bench.training.pretraining import learning_rate, pretrain, weight_decay

MakeContext = Callable[..., StageContext]


class Slope(Objective[Settings]):
    """A loss whose gradient is 1 for every number of a small layer, with a factor of the rate that grows."""

    name = "slope"

    def views(self, size: int) -> tuple[View, ...]:
        return (View(size),)

    def build(self, encoder: Encoder, num_classes: int = 0) -> nn.ModuleDict:
        return nn.ModuleDict({"encoder": encoder, "layer": nn.Linear(2, 2)})

    def loss(self, nets: nn.ModuleDict, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.stack([parameter.sum() for parameter in nets["layer"].parameters()]).sum(), {}

    def lr_factor(self, batch: Batch, progress: float) -> float:
        return 1 + progress


def trained(ctx: StageContext, **values: Any) -> tuple[nn.Module, nn.Module]:
    """The layer before and after three steps of plain gradient descent."""
    settings = resolve(
        PretrainSettings, "pretrain", "tiny",
        {"steps": 3, "optimiser": "sgd", "sgd_momentum": 0.0, "base_lr": 0.1, "lr_scaling": False,
         "schedule": "constant", "warmup_epochs": 0, **values},
    )  # fmt: skip
    torch.manual_seed(0)
    start = nn.Linear(2, 2)
    objective = Slope(Settings())
    build = objective.build

    def seeded(encoder: Encoder, num_classes: int = 0) -> nn.ModuleDict:
        nets = build(encoder, num_classes)
        nets["layer"].load_state_dict(start.state_dict())
        return nets

    objective.build = seeded  # type: ignore[method-assign]
    nets, _ = pretrain(objective, Encoder("resnet18"), synthetic_corpus(8), None, np.arange(8), settings, ctx)
    return start, nets["layer"]


def native(name: str, **values: Any) -> PretrainSettings:
    """The native recipe of a method."""
    recipe = Registry().get("objectives", name).recipes["native"]
    return resolve(PretrainSettings, "pretrain", "native", {**recipe, **values})


def test_a_methods_factor_multiplies_the_rate_of_each_step(stage_context: MakeContext) -> None:
    before, after = trained(stage_context(), weight_decay=0.0)

    moved = sum(0.1 * (1 + step / 3) for step in range(3))
    for old, new in zip(before.parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(new, old - moved)


@pytest.mark.parametrize("decay_norms", [False, True])
def test_the_weight_decay_grows_along_half_a_cosine_and_spares_biases_unless_told(
    stage_context: MakeContext, decay_norms: bool
) -> None:
    before, after = trained(stage_context(), weight_decay=0.2, weight_decay_end=0.8, decay_norms=decay_norms)

    weight, bias = before.weight.detach().clone(), before.bias.detach().clone()
    for step in range(3):
        rate = 0.1 * (1 + step / 3)
        decay = 0.8 - 0.6 * (1 + math.cos(math.pi * step / 3)) / 2
        weight -= rate * (1 + decay * weight)
        bias -= rate * (1 + decay * bias * decay_norms)
    torch.testing.assert_close(after.weight.detach(), weight)
    torch.testing.assert_close(after.bias.detach(), bias)


def test_without_an_end_the_weight_decay_is_constant() -> None:
    decay = weight_decay(resolve(PretrainSettings, "pretrain"), 100)

    assert {decay(step) for step in range(100)} == {1e-6}


def test_dino_decays_from_0_04_to_0_4() -> None:
    decay = weight_decay(native("dino"), 1000)

    assert decay(0) == pytest.approx(0.04)
    assert decay(500) == pytest.approx(0.22)
    assert decay(1000) == pytest.approx(0.4)


def test_uscl_holds_its_rate_for_ten_epochs_and_its_cosine_is_cut_off() -> None:
    rate = learning_rate(native("uscl"), 3000)  # ten steps an epoch

    assert {rate(step) for step in range(101)} == {3e-4}
    for epoch in (11, 100, 299):
        assert rate(10 * epoch) == pytest.approx(3e-4 * (1 + math.cos(math.pi * (epoch - 10) / 300)) / 2)
    assert rate(2999) > 0


@pytest.mark.parametrize("name", ["mocov2", "densecl", "uscl", "usucl", "awcl"])
def test_the_native_recipes_of_plain_torch_optimisers_decay_every_parameter(name: str) -> None:
    assert native(name).decay_norms


@pytest.mark.parametrize(
    ("stored", "masked", "expected"),
    [("replace", False, {0.0: 128 / 16, 0.5: 91 / 16, 1.0: 4 / 16}), ("prior", True, {0.0: 8.0}),
     ("replace", True, {0.0: 1.0, 0.5: 1.0})],
)  # fmt: skip
def test_r2o_scales_its_rate_by_the_number_of_clusters_unless_masks_replace_them(
    stored: str, masked: bool, expected: Mapping[float, float]
) -> None:
    objective = Registry().create("objectives", "r2o", "native", {"stored_masks": stored})
    batch = batch_with(torch.zeros(1, 4, 4, dtype=torch.uint8) if masked else None)

    assert {at: objective.lr_factor(batch, at) for at in expected} == pytest.approx(expected)
    assert Registry().create("objectives", "r2o").lr_factor(batch, 0.0) == 1


def batch_with(masks: Tensor | None) -> Batch:
    nothing = torch.zeros(1, dtype=torch.int64)
    source = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    return Batch((), (), (), (), (), source, masks, nothing[:, None], nothing, None, 0, 0, nothing)
