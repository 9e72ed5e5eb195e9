from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anaus_bench.errors import TrainingError
from anaus_bench.interfaces import StageContext
from anaus_bench.seeds import step_seed
from anaus_bench.training.loop import LOG_EVERY, train

STEPS = 50


class Walk:
    """A net that takes noisy steps; dies before step `die_at`."""

    def __init__(self, die_at: int | None = None) -> None:
        torch.manual_seed(1)
        self.net = nn.Linear(3, 3)
        self.optimiser = torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9)
        self.die_at = die_at
        self.seen: list[int] = []

    def step(self, number: int) -> Mapping[str, Tensor]:
        if number == self.die_at:
            raise RuntimeError("killed")
        self.seen.append(number)
        loss = self.net(torch.randn(4, 3)).square().mean()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return {"loss": loss}

    def run(self, ctx: StageContext) -> list[dict[str, float]]:
        return train(
            ctx,
            label="walk",
            steps=STEPS,
            step=self.step,
            stateful={"net": self.net, "optimiser": self.optimiser},
            images_per_step=4,
        )


MakeContext = Callable[..., StageContext]


@pytest.mark.parametrize("die_at", [1, LOG_EVERY, 33, STEPS - 1])
def test_a_killed_run_ends_with_the_same_weights_and_log(stage_context: MakeContext, die_at: int) -> None:
    whole = Walk()
    log = whole.run(stage_context("whole"))
    killed = Walk(die_at)
    with pytest.raises(RuntimeError, match="killed"):
        killed.run(stage_context("killed", checkpoint_seconds=0.0))

    resumed = Walk()
    resumed_log = resumed.run(stage_context("killed"))

    assert resumed.seen[0] == die_at
    assert resumed_log == log
    for name, value in whole.net.state_dict().items():
        assert torch.equal(resumed.net.state_dict()[name], value)


def test_ctrl_c_finishes_the_step_and_saves_it(stage_context: MakeContext) -> None:
    whole = Walk()
    whole.run(stage_context("whole"))
    interrupted = Walk()
    step = interrupted.step

    def step_and_interrupt(number: int) -> Mapping[str, Tensor]:
        if number == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return step(number)

    interrupted.step = step_and_interrupt  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        interrupted.run(stage_context("interrupted"))

    resumed = Walk()
    resumed.run(stage_context("interrupted"))

    assert interrupted.seen == list(range(8))
    assert resumed.seen == list(range(8, STEPS))
    assert torch.equal(resumed.net.weight, whole.net.weight)


def test_a_loss_that_is_not_finite_stops_the_run(stage_context: MakeContext) -> None:
    walk = Walk()
    walk.step = lambda number: {"loss": torch.tensor(float("nan"))}  # type: ignore[method-assign]

    with pytest.raises(TrainingError, match=r"walk: loss is nan between steps 1 and 20; .* Lower the learning rate"):
        walk.run(stage_context())


def test_the_log_holds_means(stage_context: MakeContext) -> None:
    walk = Walk()
    walk.step = lambda number: {"loss": torch.tensor(float(number))}  # type: ignore[method-assign]

    log = walk.run(stage_context())

    assert log == [{"step": 20.0, "loss": 9.5}, {"step": 40.0, "loss": 29.5}, {"step": 50.0, "loss": 44.5}]


def test_step_seeds_differ_and_are_valid_seeds() -> None:
    seeds: list[Any] = [step_seed(seed, step) for seed in (0, 1, -1) for step in range(500)]

    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert step_seed(3, 5) == 1919772797317916248
