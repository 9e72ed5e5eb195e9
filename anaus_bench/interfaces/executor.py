"""What an executor plugin implements: it decides where and in which order the stages of a plan run."""

from __future__ import annotations

from collections.abc import Sequence

from anaus_bench.execution.runner import Runner
from anaus_bench.interfaces import Plugin, S
from anaus_bench.planning.plan import Stage


class Executor(Plugin[S]):
    """Runs stages."""

    def run(self, stages: Sequence[Stage], runner: Runner) -> None:
        """Runs all stages, each after its inputs; those in the store are skipped.

        Args:
            stages: Inputs first.
            runner: Runs one stage.
        """
        raise NotImplementedError
