"""Runs stages and shows how they go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import typer
from rich.console import Console

from anaus_bench.cli.printing import print_json, say, warn
from anaus_bench.errors import PluginError
from anaus_bench.execution.progress import console_progress
from anaus_bench.interfaces import Stage
from anaus_bench.planning.plan import pending
from anaus_bench.registry import Registry
from anaus_bench.store import Store


@dataclass(frozen=True)
class Workshop:
    """What a command runs stages with.

    Attributes:
        registry: Where plugins are found.
        store: Where artifacts are.
        device: As the option says.
        quiet: Say nothing but the result.
        executor: Name of what runs the stages.
        settings: Its settings.
    """

    registry: Registry
    store: Store
    device: str = "auto"
    quiet: bool = False
    executor: str = "local"
    settings: Mapping[str, Any] | None = None

    def run(self, stages: Sequence[Stage]) -> None:
        """Runs the stages, inputs first.

        Raises:
            Exit: On Ctrl-C, once what is to be kept is saved.
        """
        from anaus_bench.execution.runner import Runner

        engine = self.registry.create("executors", self.executor, overrides=self.settings)
        for stage in stages:
            self.store.record(stage.kind, stage.key)  # a damaged one is said now, and not after the hours of another
        runner = Runner(self.registry, self.store, console_progress(Console(stderr=True), self.quiet), self.device)
        try:
            engine.run(stages, runner)
        except KeyboardInterrupt:
            left = len(stages) - len(runner.done)
            warn(
                f"interrupted: {len(runner.done)} stages finished, {left} to go; all is kept in "
                f"{str(self.store.root)!r}. Run the same command again to go on"
            )
            raise typer.Exit(130) from None
        if left_out := pending(stages, self.store):
            raise PluginError(
                f"executor {self.executor!r} left {len(left_out)} of {len(stages)} stages out, the first of them "
                f"{left_out[0].title!r}; expected all to be run"
            )

    def make(self, stage: Stage) -> None:
        """Runs one stage with all it rests on, as far as they are missing."""
        self.run(pending([stage], self.store))

    def show(self, stage: Stage, as_json: bool) -> None:
        """Makes a stage and says what came of it and where its artifact is."""
        self.make(stage)
        record = self.store.record(stage.kind, stage.key)
        assert record is not None
        folder = self.store.folder(stage.kind, stage.key)
        if as_json:
            print_json({"key": stage.key, "folder": str(folder), "phantom": record["phantom"], **record["result"]})
            return
        result = dict(record["result"])
        scores = {name: f"{value:.4g}" for name, value in result.pop("scores", {}).items()}
        for name, value in {**result, **scores, "folder": folder}.items():
            say(f"{name:22} {value}")
