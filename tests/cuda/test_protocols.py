"""Fine-tuning and prediction on the device."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from anaus_bench.interfaces import StageContext
from anaus_bench.kit.check import check_protocol
from anaus_bench.kit.synthetic import synthetic_fold, synthetic_task
from anaus_bench.nn.encoder import Encoder, EncoderCard
from anaus_bench.registry import Registry
from tests.cuda.conftest import CPU, Placement, deterministic, killed_in_step

pytestmark = pytest.mark.cuda

REGISTRY = Registry()


def fitted(name: str, ctx: StageContext) -> dict[str, Tensor]:
    """State of a network trained for an epoch of four steps or more."""
    torch.manual_seed(0)
    protocol = REGISTRY.create("protocols", name, "tiny")
    fold = synthetic_fold(12)
    encoder = Encoder.of(EncoderCard("resnet18", 32, (0.5,) * 3, (0.25,) * 3, "random", "random"))
    network = protocol.build(encoder, fold.classes).to(ctx.device)
    protocol.fit(network, fold, synthetic_task(protocol.task_class), ctx)
    state: dict[str, Tensor] = network.state_dict()
    return state


@pytest.mark.parametrize("name", REGISTRY.names("protocols"))
def test_a_protocol_keeps_its_contract_on_the_device_and_touches_no_other(
    name: str, device: torch.device, context_on: Callable[..., StageContext]
) -> None:
    with Placement() as placement:
        check_protocol(REGISTRY.create("protocols", name, "tiny"), context_on(device))

    assert placement.devices <= {CPU, device}


@pytest.mark.parametrize("name", REGISTRY.names("protocols"))
def test_a_protocol_stays_on_a_device_that_is_not_the_current_one(
    name: str, other_device: torch.device, context_on: Callable[..., StageContext]
) -> None:
    with Placement() as placement:
        state = fitted(name, context_on(other_device))

    assert {value.device for value in state.values()} == {other_device}
    assert placement.devices <= {CPU, other_device}


@pytest.mark.parametrize("name", REGISTRY.names("protocols"))
def test_a_killed_fit_goes_on_to_the_same_bits_with_deterministic_algorithms(
    name: str, device: torch.device, context_on: Callable[..., StageContext]
) -> None:
    with deterministic():
        whole = fitted(name, context_on(device, "whole"))
        with killed_in_step(1):
            fitted(name, context_on(device, "killed", checkpoint_seconds=0))
        ctx = context_on(device, "killed")
        resumed = fitted(name, ctx)

    assert any("resumed at step 1" in note for note in ctx.progress.notes)  # type: ignore[attr-defined]
    assert [key for key, value in whole.items() if not torch.equal(value, resumed[key])] == []
