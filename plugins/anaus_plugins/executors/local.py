"""Runs stages one after the other in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import Executor, Runner, Stage
from anaus_bench.settings.base import Settings


class LocalSettings(Settings):
    """Settings of `local`."""

    checkpoint_seconds: float = Field(60.0, ge=0, description="Least time between checkpoints; 0: after every step.")


class Local(Executor[LocalSettings]):
    """This process, one device."""

    name = "local"
    settings_class = LocalSettings

    def run(self, stages: Sequence[Stage], runner: Runner) -> None:
        """Runs the stages in the order given."""
        runner.checkpoint_seconds = self.settings.checkpoint_seconds
        for stage in stages:
            runner.run(stage)


@hookimpl
def anaus_executors() -> list[type[Executor[Any]]]:
    """Offers `local`."""
    return [Local]
