from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from anaus_bench.errors import TrainingError
from anaus_bench.interfaces import StageContext
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


@pytest.mark.parametrize("number_of_signal", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_saves_it(stage_context: MakeContext, number_of_signal: signal.Signals) -> None:
    whole = Walk()
    whole.run(stage_context("whole"))
    interrupted = Walk()
    step = interrupted.step

    def step_and_interrupt(number: int) -> Mapping[str, Tensor]:
        if number == 7:
            os.kill(os.getpid(), number_of_signal)
        return step(number)

    interrupted.step = step_and_interrupt  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        interrupted.run(stage_context("interrupted"))

    resumed = Walk()
    resumed.run(stage_context("interrupted"))

    assert interrupted.seen == list(range(8))
    assert resumed.seen == list(range(8, STEPS))
    assert torch.equal(resumed.net.weight, whole.net.weight)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_last_step_is_saved_stops_the_stage_after_it(
    stage_context: MakeContext, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    save = torch.save

    def save_and_signal(*arguments: object) -> None:
        os.kill(os.getpid(), number)
        save(*arguments)

    monkeypatch.setattr(torch, "save", save_and_signal)
    ctx, walk = stage_context(), Walk()
    with pytest.raises(KeyboardInterrupt):
        walk.run(ctx)
    monkeypatch.undo()

    resumed = Walk()
    log = resumed.run(ctx)

    assert walk.seen == list(range(STEPS))
    assert resumed.seen == []
    assert log[-1]["step"] == STEPS
    assert torch.equal(resumed.net.weight, walk.net.weight)


def test_a_second_signal_does_not_wait_for_the_step(stage_context: MakeContext) -> None:
    walk = Walk()

    def step(number: int) -> Mapping[str, Tensor]:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the second signal should have ended the step")

    walk.step = step  # type: ignore[method-assign]

    with pytest.raises(KeyboardInterrupt):
        walk.run(stage_context())


def test_a_loss_that_is_not_finite_stops_the_run(stage_context: MakeContext) -> None:
    walk = Walk()
    walk.step = lambda number: {"loss": torch.tensor(float("nan"))}  # type: ignore[method-assign]

    with pytest.raises(TrainingError, match=r"walk: loss is nan at step 1 \(loss nan, lr 0.1\).* Lower the learning"):
        walk.run(stage_context())


class Blowing(Walk):
    """Goes wrong in step 33: its loss is infinite (`loss`), or its loss is fine and its weights are not (`weights`)."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def step(self, number: int) -> Mapping[str, Tensor]:
        values = dict(super().step(number)) | {"part": torch.tensor(2.0)}
        if number == 33 and self.what == "loss":
            values["loss"] = torch.tensor(float("inf"))
        if number == 33 and self.what == "weights":
            self.net.weight.data[0, 0] = float("nan")
            self.die_at = 35  # its own loss would be nan
        return values

    def run(self, ctx: StageContext) -> list[dict[str, float]]:
        return train(
            ctx,
            label="walk",
            steps=STEPS,
            step=self.step,
            stateful={"net": self.net, "optimiser": self.optimiser},
            images_per_step=4,
            batch=lambda number: {"images": torch.full((2, 3), float(number))},
        )


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("loss", r"walk: loss is inf at step 34 \(loss inf, part 2, lr 0\.1\), it must be finite"),
        ("weights", r"walk: net\.weight is not finite after step 34 \(loss [\d.e-]+, part 2, lr 0\.1\)"),
    ],
)
def test_the_last_checkpoint_is_a_good_one_and_the_bad_batch_is_kept(
    stage_context: MakeContext, what: str, said: str
) -> None:
    ctx = stage_context(checkpoint_seconds=0.0)

    with pytest.raises(TrainingError, match=said) as raised:
        Blowing(what).run(ctx)

    kept = ctx.resume / "walk_step34.safetensors"
    assert f"its batch is in {str(kept)!r}" in str(raised.value)
    assert torch.equal(load_file(kept)["images"], torch.full((2, 3), 33.0))
    saved = torch.load(ctx.resume / "walk.pt", weights_only=True)
    assert saved["run"]["done"] == 33
    assert all(value.isfinite().all() for value in saved["state"]["net"].values())


def test_a_run_that_is_not_finite_fails_before_its_end_whatever_the_interval(stage_context: MakeContext) -> None:
    walk = Walk()
    walk.step = lambda number: {"loss": torch.tensor(float("nan") if number == STEPS - 1 else 1.0)}  # type: ignore[method-assign]

    with pytest.raises(TrainingError, match=rf"loss is nan at step {STEPS} "):
        walk.run(stage_context(checkpoint_seconds=3600.0))


def test_the_log_holds_means(stage_context: MakeContext) -> None:
    walk = Walk()
    walk.step = lambda number: {"loss": torch.tensor(float(number))}  # type: ignore[method-assign]

    log = walk.run(stage_context())

    steps, losses = [20.0, 40.0, 50.0], [9.5, 29.5, 44.5]
    assert log == [{"step": step, "loss": loss, "lr": 0.1} for step, loss in zip(steps, losses, strict=True)]


def test_a_value_that_some_steps_lack_counts_as_0_there(stage_context: MakeContext) -> None:
    walk = Walk()
    walk.step = lambda number: {"loss": torch.ones(())} | ({"odd": torch.ones(())} if number % 2 else {})  # type: ignore[method-assign]

    log = walk.run(stage_context())

    assert [row["odd"] for row in log] == [0.5, 0.5, 0.5]
