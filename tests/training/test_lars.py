from __future__ import annotations

import copy

import pytest
import torch
from lightly.utils.lars import LARS as LightlyLARS  # noqa: N811
from torch import Tensor, nn

from anaus_bench.training.lars import LARS, Convention, parameter_groups

ETA, DECAY, MOMENTUM = 1e-2, 1e-2, 0.9


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3, bias=False), nn.Linear(3, 2))
    nn.init.zeros_(net[3].weight)  # a norm of 0
    return net


def set_gradients(net: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in net.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def optimiser(net: nn.Module, lr: float, convention: Convention = "standard") -> LARS:
    groups = parameter_groups(net)
    return LARS(groups, lr, momentum=MOMENTUM, weight_decay=DECAY, trust_coefficient=ETA, convention=convention)


def slow_step(weight: Tensor, gradient: Tensor, buffer: Tensor, lr: float, convention: Convention) -> None:
    """The published update of one parameter, element by element, in place."""
    adapt = weight.ndim > 1
    decay = DECAY if adapt else 0.0
    weights, gradients, buffers = weight.view(-1), gradient.reshape(-1), buffer.view(-1)
    direction = [float(g) + decay * float(w) for g, w in zip(gradients, weights, strict=True)]
    norm_w = sum(float(w) ** 2 for w in weights) ** 0.5
    norm_g = sum(float(g) ** 2 for g in gradients) ** 0.5
    norm_d = sum(d**2 for d in direction) ** 0.5
    denominator = norm_d if convention == "standard" else norm_g + decay * norm_w
    trust = ETA * norm_w / denominator if adapt and norm_w > 0 and norm_g > 0 else 1.0
    for index, value in enumerate(direction):
        inside, outside = (1.0, lr) if convention == "standard" else (lr, 1.0)
        buffers[index] = MOMENTUM * buffers[index] + inside * trust * value
        weights[index] -= outside * buffers[index]


@pytest.mark.parametrize("convention", ["standard", "official"])
def test_updates_equal_the_published_rule_written_as_a_loop(net: nn.Module, convention: Convention) -> None:
    slow = copy.deepcopy(net).requires_grad_(False)
    buffers = [torch.zeros_like(parameter) for parameter in slow.parameters()]
    lars = optimiser(net, 0.0, convention)

    for step, lr in enumerate([0.0, 0.5, 1.0, 0.2]):
        set_gradients(net, step)
        for group in lars.param_groups:
            group["lr"] = lr
        lars.step()
        for weight, fast, buffer in zip(slow.parameters(), net.parameters(), buffers, strict=True):
            slow_step(weight, fast.grad, buffer, lr, convention)

    for fast, weight in zip(net.parameters(), slow.parameters(), strict=True):
        assert torch.allclose(fast, weight, atol=1e-5)


def test_official_convention_at_a_constant_rate_equals_lightly_with_two_groups(net: nn.Module) -> None:
    other = copy.deepcopy(net)
    lars = optimiser(net, 0.3, "official")
    weights, vectors = (group["params"] for group in parameter_groups(other))
    reference = LightlyLARS(
        [{"params": weights}, {"params": vectors, "weight_decay": 0.0}],
        lr=0.3,
        momentum=MOMENTUM,
        weight_decay=DECAY,
        trust_coefficient=ETA,
    )

    for step in range(4):
        for model, stepper in ((net, lars), (other, reference)):
            set_gradients(model, step)
            stepper.step()

    for ours, theirs in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_groups_split_by_dimension_and_leave_out_frozen_parameters(net: nn.Module) -> None:
    net[2].requires_grad_(False)

    weights, vectors = parameter_groups(net)

    assert [tuple(p.shape) for p in weights["params"]] == [(4, 5), (2, 3)]
    assert [tuple(p.shape) for p in vectors["params"]] == [(4,), (4,), (4,), (2,)]
    assert vectors["weight_decay"] == 0


def test_a_restored_optimiser_goes_on_exactly(net: nn.Module) -> None:
    lars = optimiser(net, 0.3)
    set_gradients(net, 0)
    lars.step()
    other = copy.deepcopy(net)
    restored = optimiser(other, 0.1)
    restored.load_state_dict(copy.deepcopy(lars.state_dict()))

    for model, stepper in ((net, lars), (other, restored)):
        set_gradients(model, 1)
        stepper.step()

    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


def test_a_parameter_without_gradient_is_left_alone(net: nn.Module) -> None:
    before = net[0].weight.detach().clone()
    lars = optimiser(net, 0.3)
    set_gradients(net, 0)
    net[0].weight.grad = None

    lars.step()

    assert torch.equal(net[0].weight, before)


def test_the_adapted_step_does_not_depend_on_the_scale_of_the_gradient() -> None:
    steps = []
    for scale in (1.0, 1000.0):
        torch.manual_seed(0)
        layer = nn.Linear(4, 4, bias=False)
        before = layer.weight.detach().clone()
        layer.weight.grad = scale * torch.ones(4, 4)
        LARS(layer.parameters(), 0.1).step()
        steps.append(layer.weight.detach() - before)

    assert torch.allclose(*steps, rtol=1e-3)
