"""Operators of a training step, and how often the host waits in it: what can be counted without the GPU at hand.

An operator is an innermost call into torch, those of the backward pass and of the optimiser included, views as well.
The host waits where it reads what the device computed. On a GPU torch itself tells where. On a CPU nothing waits, and
the operators that would are counted: also those on tensors that a GPU run would keep on the CPU as well, while
`tolist()`, `numpy()` and `cpu()` leave no trace there.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from benchmarks.speed.timing import clock
from benchmarks.speed.training import Enough, Run

WARM, COUNTED = 2, 1  # steps that are not timed, and those whose operators are counted
READ_BY_THE_HOST = frozenset(
    f"aten::{name}"
    for name in (
        *("_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount"),
        *("_unique", "_unique2", "unique_dim", "unique_consecutive", "repeat_interleave"),
    )
)


@dataclass
class Counts:
    """Of a piece of work, once it is done; kernels are those of a GPU."""

    operators: int = 0
    waits: int = 0
    kernels: int = 0
    kernel_seconds: float = 0.0

    def per(self, parts: int) -> dict[str, float]:
        """Columns of a table, for one of so many equal parts of the work."""
        columns = {"operators": self.operators / parts, "host waits": self.waits / parts}
        if self.kernels:
            columns |= {"kernels": self.kernels / parts, "kernel ms": 1e3 * self.kernel_seconds / parts}
        return columns


@contextmanager
def counted(run: Run, title: str) -> Iterator[Counts]:
    """Counts what is done within; with `run.profile` prints where its time goes."""
    counts, on_gpu = Counts(), run.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        with _told_waits(on_gpu) as told:
            yield counts
        if on_gpu:
            torch.cuda.synchronize(run.device)
    events = profiler.events()
    kernels = [event for event in events if event.device_type == DeviceType.CUDA and not event.is_user_annotation]
    counts.operators = sum(_innermost(event) for event in events)
    counts.waits = len(told) if on_gpu else sum(event.name in READ_BY_THE_HOST for event in events)
    counts.kernels = len(kernels)
    counts.kernel_seconds = sum(event.time_range.elapsed_us() for event in kernels) / 1e6
    if run.profile:
        slowest = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=slowest, row_limit=15, max_name_column_width=60)
        print(f"{title}\n{table}", file=sys.stderr)


@contextmanager
def _told_waits(on_gpu: bool) -> Iterator[list[warnings.WarningMessage]]:
    """Within, collects a warning for every time that the host waits for the GPU; on a CPU there are none."""
    with warnings.catch_warnings(record=True) as all_told:
        warnings.filterwarnings("always", message="called a synchronizing CUDA operation")
        told: list[warnings.WarningMessage] = []
        if on_gpu:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield told
        finally:
            if on_gpu:
                torch.cuda.set_sync_debug_mode("default")
            told += [one for one in all_told if "synchronizing CUDA" in str(one.message)]


def _innermost(event: FunctionEvent) -> bool:
    return event.name.startswith("aten::") and not any(child.name.startswith("aten::") for child in event.cpu_children)


class Rounds:
    """The steps of a training: a few to warm up, `run.repeats` that are timed, and some that are counted; then enough.

    Used with `with`, so that nothing goes on being counted when the training ends otherwise.

    Attributes:
        seconds: Of a timed step, the mean.
        counts: What the counted steps did.
    """

    def __init__(self, run: Run, title: str) -> None:
        self.run, self.title = run, title
        self.seconds, self.counts = 0.0, Counts()
        self._done, self._start = 0, 0.0
        self._now, self._counting = clock(run.device), ExitStack()

    def __enter__(self) -> Rounds:
        return self

    def __exit__(self, *_: object) -> None:
        self._counting.close()

    @property
    def timed(self) -> bool:
        """Whether the step under way is timed."""
        return WARM <= self._done < WARM + self.run.repeats

    def step_done(self) -> None:
        """Called after each step.

        Raises:
            Enough: All has been seen.
        """
        self._done += 1
        if self._done == WARM:
            self._start = self._now()
        elif self._done == WARM + self.run.repeats:
            self.seconds = (self._now() - self._start) / self.run.repeats
            self.counts = self._counting.enter_context(counted(self.run, self.title))
        elif self._done == self.steps:
            self._counting.close()
            raise Enough

    @property
    def steps(self) -> int:
        """How many there are in all."""
        return WARM + self.run.repeats + COUNTED

    def columns(self) -> dict[str, float]:
        """What a counted step did."""
        return self.counts.per(COUNTED)
