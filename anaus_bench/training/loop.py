"""The one training loop: every stage that trains gives it a step, and gets progress, checkpoints and resuming.

A step must be a function of its number and of the stateful objects alone. The loop seeds torch's generators from
(seed, label, step) before each step, so a run that was killed continues bit for bit on the CPU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
import torch
from torch import Tensor

from anaus_bench.distributed.group import greatest, least, mean_over_processes, rank, world_size
from anaus_bench.distributed.team import is_first
from anaus_bench.errors import TrainingError
from anaus_bench.interfaces import StageContext
from anaus_bench.machine.files import save_torch, write_whole
from anaus_bench.machine.interrupts import deferred
from anaus_bench.seeds import stream

LOG_EVERY = 20
GO_ON, SAVE, STOP = range(3)  # what a process wishes after a step; the strongest wish of all is done


class Stateful(Protocol):
    """A module, an optimiser: what a checkpoint keeps."""

    def state_dict(self) -> dict[str, Any]:
        """All state, as tensors and plain values."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Takes that state back."""
        ...


Report = Callable[[str, int, Mapping[str, float]], TrainingError]
"""(what is not finite, step from 1, the step's values) -> the error that says so."""


class Clock:
    """Seconds a loop waited for data; a step adds to it with `with clock:`."""

    def __init__(self) -> None:
        self.waited = 0.0
        self._since = 0.0

    def __enter__(self) -> None:
        self._since = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.waited += time.perf_counter() - self._since


def train(
    ctx: StageContext,
    *,
    label: str,
    steps: int,
    step: Callable[[int], Mapping[str, Tensor]],
    stateful: Mapping[str, Stateful],
    images_per_step: int,
    clock: Clock | None = None,
    batch: Callable[[int], Mapping[str, Tensor]] | None = None,
) -> list[dict[str, float]]:
    """Runs `step(0) ... step(steps - 1)` and returns the log: means over every `LOG_EVERY` steps.

    On Ctrl-C or SIGTERM the step under way is finished and saved before `KeyboardInterrupt` is raised; a second raises
    at once. What is saved is finite: values and state are checked before, so that the last checkpoint is a good one.
    In a group of processes all run the same steps and stop after the same one; the log holds means over them, and the
    first saves what the steps change, which must be alike in all.

    Args:
        ctx: Gives the seed, the folder for checkpoints and the progress display.
        label: Names the loop to the user and its checkpoint file.
        steps: Number of steps in all, those done before a kill included.
        step: One optimiser step; returns scalars to log, with the loss under `loss`.
        stateful: All that the steps change. The learning rate of an optimiser is logged as `lr`.
        images_per_step: For the images/s shown.
        clock: What `step` adds its waiting for data to.
        batch: Makes what a step was given once more, to be written where the step's values are not finite.

    Raises:
        TrainingError: A logged value or a weight is not finite, or the processes do not find one checkpoint; nothing is
            published.
    """
    clock = clock or Clock()
    report = _reporter(ctx, label, batch)
    checkpoint = ctx.resume / f"{label.replace(' ', '_')}.pt"
    run = _Run()
    if checkpoint.exists():
        run = _load(checkpoint, stateful, ctx.device)
    if least(run.done) != greatest(run.done):
        raise TrainingError(
            f"{label}: this process finds step {run.done} in {str(ctx.resume)!r}, another one another step; the store "
            "must be a folder that all processes see alike"
        )
    with ctx.progress.track(label, steps, done=run.done) as tracker, deferred() as interrupted:
        if 0 < run.done < steps:
            ctx.progress.note(f"{label}: resumed at step {run.done} of {steps}")
        saved_at = time.monotonic()
        while run.done < steps:
            # Each process of a group draws its own numbers.
            torch.manual_seed(stream(ctx.seed, f"loop {label}", run.done, rank()))
            run.add({**step(run.done), **_rate(stateful)})
            if run.pending == LOG_EVERY or run.done == steps:
                means = run.flush(report)
                tracker.advance(run.done, images=run.flushed * images_per_step, waited=clock.waited, values=means)
                clock.waited = 0.0
            # A finished loop is saved as well: the stage may have another one after it.
            # Only the process that saves says when: the others do not know the user's interval.
            late = is_first() and time.monotonic() - saved_at >= ctx.checkpoint_seconds
            due = run.done == steps or late
            wish = greatest(STOP if interrupted.is_set() else SAVE if due else GO_ON)
            if wish >= SAVE:
                _check_state(stateful, run.done, run.last(report), report)
                if is_first():
                    _save(checkpoint, run, stateful)
                saved_at = time.monotonic()
            if wish == STOP:
                break
        # Asked again: a signal that came while the last step was saved stops the run before its next stage.
        if greatest(int(interrupted.is_set())):
            ctx.progress.note(f"{label}: interrupted; step {run.done} of {steps} is saved")
            raise KeyboardInterrupt
    return run.log


class _Run:
    """How far a loop is: steps done, the log, and the values of the steps not yet logged."""

    def __init__(self) -> None:
        self.done = 0
        self.pending = 0
        self.flushed = 0
        self.recent: dict[str, list[Tensor]] = {}
        self.log: list[dict[str, float]] = []

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Takes the values of one more step; one that a step does not have counts as 0."""
        # float64: exact enough for the log to be the same after resuming.
        given = {name: value.detach().double() for name, value in values.items()}
        for name, value in given.items():
            self.recent.setdefault(name, [torch.zeros_like(value)] * self.pending).append(value)
        for name in self.recent.keys() - given.keys():
            self.recent[name].append(torch.zeros_like(self.recent[name][0]))
        self.done += 1
        self.pending += 1

    def check(self, report: Report) -> dict[str, list[float]]:
        """The values of the steps not yet logged, as means over the processes.

        Raises:
            TrainingError: One is not finite.
        """
        # A checkpoint's values all lie on the device, whatever the step after it gives.
        stacked = {
            name: torch.stack([value.to(column[-1].device) for value in column]) for name, column in self.recent.items()
        }
        shared = {name: mean_over_processes(column) for name, column in stacked.items()}
        self.recent = {name: list(column) for name, column in shared.items()}
        columns = {name: column.tolist() for name, column in shared.items()}
        for place in range(self.pending):
            values = {name: column[place] for name, column in columns.items()}
            for name, value in values.items():
                if not math.isfinite(value):
                    raise report(f"{name} is {value} at", self.done - self.pending + place + 1, values)
        return columns

    def last(self, report: Report) -> Mapping[str, float]:
        """The values of the last step, or the last row of the log if it is there already; checked."""
        return {name: column[-1] for name, column in self.check(report).items()} or self.log[-1]

    def flush(self, report: Report) -> dict[str, float]:
        """Moves the values into the log; their means."""
        means = {name: math.fsum(column) / self.pending for name, column in self.check(report).items()}
        self.log.append({"step": float(self.done), **means})
        self.flushed, self.pending, self.recent = self.pending, 0, {}
        return means


def _rate(stateful: Mapping[str, Stateful]) -> dict[str, Tensor]:
    """`lr`: the learning rate () float64 of the optimiser's last step; nothing without an optimiser."""
    for holder in stateful.values():
        if isinstance(holder, torch.optim.Optimizer):
            return {"lr": torch.tensor(holder.param_groups[0]["lr"], dtype=torch.float64)}
    return {}


def _check_state(stateful: Mapping[str, Stateful], step: int, values: Mapping[str, float], report: Report) -> None:
    """Refuses state that is not finite: weights can be ruined by a step whose own loss was fine."""
    for name, holder in stateful.items():
        for path, value in _tensors(name, holder.state_dict()):
            if value.is_floating_point() and not value.isfinite().all():
                raise report(f"{path} is not finite after", step, values)


def _tensors(path: str, state: Any) -> Iterator[tuple[str, Tensor]]:
    """All tensors of nested state, with their names."""
    if isinstance(state, Tensor):
        yield path, state
    elif isinstance(state, Mapping):
        for name, below in state.items():
            yield from _tensors(f"{path}.{name}", below)


def _reporter(ctx: StageContext, label: str, batch: Callable[[int], Mapping[str, Tensor]] | None) -> Report:
    """What makes the error of a step that went wrong, and writes its batch into the folder of the checkpoints."""

    def report(what: str, step: int, values: Mapping[str, float]) -> TrainingError:
        written = ""
        if batch is not None:
            process = f"_process{rank()}" if world_size() > 1 else ""
            path = ctx.resume / f"{label.replace(' ', '_')}_step{step}{process}.safetensors"
            tensors = {name: value.detach().cpu().clone() for name, value in batch(step - 1).items()}
            write_whole(path, safetensors.torch.save(tensors))
            written = f"; its batch is in {str(path)!r}"
        parts = ", ".join(f"{name} {value:.4g}" for name, value in values.items() if name != "step")
        return TrainingError(
            f"{label}: {what} step {step} ({parts}), it must be finite{written}. Lower the learning rate, lengthen the "
            "warm-up, or set the precision to fp32"
        )

    return report


def _save(path: Path, run: _Run, stateful: Mapping[str, Stateful]) -> None:
    save_torch(path, {"run": vars(run), "state": {name: holder.state_dict() for name, holder in stateful.items()}})


def _load(path: Path, stateful: Mapping[str, Stateful], device: torch.device) -> _Run:
    saved = torch.load(path, map_location=device, weights_only=True)
    for name, holder in stateful.items():
        holder.load_state_dict(saved["state"][name])
    run = _Run()
    vars(run).update(saved["run"])
    return run
