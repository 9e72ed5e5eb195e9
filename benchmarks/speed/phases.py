"""Where a training step goes: views, loss, backward pass, optimiser and moving averages, one after the other.

The device has done all of a phase before the next one begins, so a step takes longer here than in training, where host
and device overlap: `steps` times it undisturbed.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import Tensor, nn

from anaus_bench.corpus.batch import Batch
from anaus_bench.errors import AnausError
from anaus_bench.interfaces import Objective
from benchmarks.speed.counting import Rounds
from benchmarks.speed.timing import clock
from benchmarks.speed.training import Run, Watched, taken, watch

PHASES = ("views", "loss", "backward", "optimiser", "average")


def measure(name: str, objective: Objective[Any], run: Run) -> dict[str, Any]:
    """A row of the table: median milliseconds of each phase, what a step does; or why there is none."""
    row: dict[str, Any] = {"method": name}
    try:
        run = taken(objective, run)
        with Rounds(run, name) as rounds:
            phased = _Phased(objective, rounds)
            watch(phased, run, rounds.steps)
    except AnausError as error:
        return row | {"note": f"not measured: {error}"}
    except torch.cuda.OutOfMemoryError:
        return row | {"note": f"not measured: batch {run.batch} does not fit the device"}
    spans = {phase: 1e3 * statistics.median(step[phase] for step in phased.steps) for phase in PHASES}
    whole = 1e3 * statistics.median(sum(step.values()) for step in phased.steps)
    return row | {"batch": run.batch, "step ms": whole, **spans, **rounds.columns()}


class _Phased(Watched):
    """Adds up the seconds of each phase of each timed step; averages may move before the loss and after the update."""

    def __init__(self, objective: Objective[Any], rounds: Rounds) -> None:
        super().__init__(objective)
        self.rounds = rounds
        self.steps: list[dict[str, float]] = []
        self._now = clock(rounds.run.device)
        self._since = 0.0

    def before_forward(self, nets: nn.ModuleDict, progress: float) -> None:
        self._ended("views")
        self.objective.before_forward(nets, progress)
        self._ended("average")

    def loss(self, nets: nn.ModuleDict, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        result = self.objective.loss(nets, batch)
        self._ended("loss")
        return result

    def before_update(self, *_: object) -> None:
        self._ended("backward")

    def after_step(self, nets: nn.ModuleDict, progress: float) -> None:
        self._ended("optimiser")
        self.objective.after_step(nets, progress)
        self._ended("average")
        self.rounds.step_done()
        if self.rounds.timed:
            self.steps.append(dict.fromkeys(PHASES, 0.0))
            self._since = self._now()

    def _ended(self, phase: str) -> None:
        """Nothing but a timed step is held up by looking at the clock."""
        if self.rounds.timed:
            now = self._now()
            self.steps[-1][phase] += now - self._since
            self._since = now
