"""An executor: it decides where and in which order the stages of a plan run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from anaus_bench.interfaces.plugin import Plugin, S
from anaus_bench.interfaces.stage import Stage


class Runner(Protocol):
    """Runs one stage after the other; what an executor is given.

    Attributes:
        checkpoint_seconds: Least time between the checkpoints of a stage.
    """

    checkpoint_seconds: float

    def run(self, stage: Stage) -> Mapping[str, Any]:
        """Record of the stage; runs it if the store does not hold it. Its inputs must be there."""


class Executor(Plugin[S]):
    """Runs stages."""

    def run(self, stages: Sequence[Stage], runner: Runner) -> None:
        """Runs all stages, each after its inputs; those in the store are skipped.

        Args:
            stages: Inputs first.
            runner: Runs one stage.
        """
        raise NotImplementedError
