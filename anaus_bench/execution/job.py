"""A stage as a process is asked to do it: all by value or by path, so that another process can be asked as well."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anaus_bench.execution.device import find_device
from anaus_bench.interfaces import Progress, StageContext, StageInputs
from anaus_bench.planning.specs import SPECS
from anaus_bench.registry import Registry


@dataclass(frozen=True)
class Job:
    """One stage; `dataclasses.asdict` gives its JSON form.

    Attributes:
        kind: Of the stage.
        spec: Of the stage, as JSON.
        folders: Role -> folder of the input's artifact.
        roots: Data set name -> folder of the user's data.
        phantom: Whether any input rests on generated images.
        resume: Folder of the private resume state.
        device: Name of the device, as the user gave it.
        plugins: Files with plugins.
    """

    kind: str
    spec: Mapping[str, Any]
    folders: Mapping[str, str]
    roots: Mapping[str, str]
    phantom: bool
    resume: str
    device: str
    plugins: tuple[str, ...]

    def run(
        self, out: Path, registry: Registry, progress: Progress, checkpoint_seconds: float = 60.0
    ) -> dict[str, Any]:
        """Does the stage, writes its artifact into `out` and gives its result.

        Raises:
            AnausError: Whatever the stage raises.
        """
        inputs = StageInputs(
            {role: Path(folder) for role, folder in self.folders.items()},
            {name: Path(root) for name, root in self.roots.items()},
            self.phantom,
        )
        device, seed = find_device(self.device), int(self.spec.get("seed", 0))
        ctx = StageContext(out, Path(self.resume), device, seed, progress, checkpoint_seconds)
        stage = importlib.import_module(f"anaus_bench.stages.{self.kind}")
        result: dict[str, Any] = stage.run(SPECS[self.kind].model_validate(self.spec), inputs, ctx, registry)
        return result
