"""The one training loop: every stage that trains gives it a step, and gets progress, checkpoints and resuming.

A step must be a function of its number and of the stateful objects alone. The loop seeds torch's generators from
(seed, step) before each step, so a run that was killed continues bit for bit on the CPU.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from anaus_bench import distributed
from anaus_bench.errors import TrainingError
from anaus_bench.files import save_torch
from anaus_bench.interfaces import StageContext
from anaus_bench.seeds import step_seed

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
) -> list[dict[str, float]]:
    """Runs `step(0) ... step(steps - 1)` and returns the log: means over every `LOG_EVERY` steps.

    On Ctrl-C the step under way is finished and saved before `KeyboardInterrupt` is raised; a second raises at once.
    In a group of processes all run the same steps and stop after the same one; the log holds means over them, and the
    first saves what the steps change, which must be alike in all.

    Args:
        ctx: Gives the seed, the folder for checkpoints and the progress display.
        label: Names the loop to the user and its checkpoint file.
        steps: Number of steps in all, those done before a kill included.
        step: One optimiser step; returns scalars to log, with the loss under `loss`.
        stateful: All that the steps change.
        images_per_step: For the images/s shown.
        clock: What `step` adds its waiting for data to.

    Raises:
        TrainingError: A logged value is not finite, or the processes do not find one checkpoint; nothing is published.
    """
    clock = clock or Clock()
    checkpoint = ctx.resume / f"{label.replace(' ', '_')}.pt"
    run = _Run()
    if checkpoint.exists():
        run = _load(checkpoint, stateful, ctx.device)
    if distributed.least(run.done) != distributed.greatest(run.done):
        raise TrainingError(
            f"{label}: this process finds step {run.done} in {str(ctx.resume)!r}, another one another step; the store "
            "must be a folder that all processes see alike"
        )
    with ctx.progress.track(label, steps, done=run.done) as tracker, _interrupts() as interrupted:
        if 0 < run.done < steps:
            ctx.progress.note(f"{label}: resumed at step {run.done} of {steps}")
        saved_at = time.monotonic()
        while run.done < steps:
            torch.manual_seed(_seed(ctx.seed, run.done))
            run.add(step(run.done))
            if run.pending == LOG_EVERY or run.done == steps:
                means = run.flush(label)
                tracker.advance(run.done, images=run.flushed * images_per_step, waited=clock.waited, values=means)
                clock.waited = 0.0
            # A finished loop is saved as well: the stage may have another one after it.
            due = run.done == steps or time.monotonic() - saved_at >= ctx.checkpoint_seconds
            wish = distributed.greatest(STOP if interrupted.is_set() else SAVE if due else GO_ON)
            if wish >= SAVE:
                run.share()
                if distributed.is_first():
                    _save(checkpoint, run, stateful)
                saved_at = time.monotonic()
            if wish == STOP:
                ctx.progress.note(f"{label}: interrupted; step {run.done} of {steps} is saved")
                raise KeyboardInterrupt
    return run.log


def _seed(seed: int, step: int) -> int:
    """What torch's generators are seeded with before a step; each process of a group draws its own numbers."""
    own = step_seed(seed, step)
    return step_seed(own, distributed.rank()) if distributed.rank() > 0 else own


class _Run:
    """How far a loop is: steps done, the log, and the running sums of the steps not yet logged."""

    def __init__(self) -> None:
        self.done = 0
        self.pending = 0
        self.flushed = 0
        self.sums: dict[str, Tensor] = {}
        self.log: list[dict[str, float]] = []

    def add(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            # float64: exact enough for the log to be the same after resuming.
            value = value.detach().double()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.done += 1
        self.pending += 1

    def share(self) -> None:
        """Replaces the sums by their means over the processes."""
        self.sums = {name: distributed.mean_over_processes(value) for name, value in self.sums.items()}

    def flush(self, label: str) -> dict[str, float]:
        self.share()
        means = {name: value.item() / self.pending for name, value in self.sums.items()}
        for name, value in means.items():
            if value - value != 0.0:  # nan or infinite
                raise TrainingError(
                    f"{label}: {name} is {value} between steps {self.done - self.pending + 1} and {self.done}; it must "
                    "be finite. Lower the learning rate, lengthen the warm-up, or set the precision to fp32"
                )
        self.log.append({"step": float(self.done), **means})
        self.flushed, self.pending, self.sums = self.pending, 0, {}
        return means


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets; a second Ctrl-C interrupts at once. Outside the main thread it is never set."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.getsignal(signal.SIGINT)

    def handle(*_: object) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    signal.signal(signal.SIGINT, handle)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


def _save(path: Path, run: _Run, stateful: Mapping[str, Stateful]) -> None:
    save_torch(path, {"run": vars(run), "state": {name: holder.state_dict() for name, holder in stateful.items()}})


def _load(path: Path, stateful: Mapping[str, Stateful], device: torch.device) -> _Run:
    saved = torch.load(path, map_location=device, weights_only=True)
    for name, holder in stateful.items():
        holder.load_state_dict(saved["state"][name])
    run = _Run()
    vars(run).update(saved["run"])
    return run
