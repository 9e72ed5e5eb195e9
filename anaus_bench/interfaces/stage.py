"""A stage, and what it is given while it runs."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


class Tracker(Protocol):
    """Progress of one loop: shown to the user with ETA, the logged values, images/s and the share of time waiting."""

    def advance(self, step: int, *, images: int, waited: float, values: Mapping[str, float] | None = None) -> None:
        """Reports that `step` steps are done, `images` more images, and seconds waited for data since the last call."""


class Progress(Protocol):
    """How a stage talks to the user."""

    def track(self, label: str, total: int, done: int = 0) -> AbstractContextManager[Tracker]:
        """A progress line for a loop of `total` steps, of which `done` were done before (resumed)."""

    def note(self, text: str) -> None:
        """One line of information."""


@dataclass(frozen=True)
class StageContext:
    """What a running stage is given beside its inputs.

    Attributes:
        out: Folder for the artifact's files; published when the stage returns.
        resume: Folder for private resume state; kept when the stage is killed, dropped when it is done.
        device: Where to compute.
        seed: Seed of the stage: everything random is a function of it and the step.
        progress: How to talk to the user.
        checkpoint_seconds: Least time between checkpoints; 0 saves after every step.
    """

    out: Path
    resume: Path
    device: torch.device
    seed: int
    progress: Progress
    checkpoint_seconds: float = 60.0


@dataclass(frozen=True)
class StageInputs:
    """Where a stage finds what it works on.

    Attributes:
        folders: Role -> folder of the input's artifact.
        roots: Data set name -> folder of the user's data.
        phantom: Whether any of the inputs rests on generated images.
    """

    folders: Mapping[str, Path]
    roots: Mapping[str, Path]
    phantom: bool = False


# Raised when the stages themselves change their results.
STAGES_VERSION = 1


@dataclass(frozen=True)
class Stage:
    """One unit of work.

    Attributes:
        kind: Module in `anaus_bench/stages` that does it and folder of the store.
        title: What it is, for people.
        spec: All settings that shape its result, as JSON; enters the key, but for `locations`: where files are.
        inputs: Role -> stage; their keys enter the key.
        roots: Data set name -> folder of the data; not in the key, which holds their fingerprint.
        labels: What a table calls the cell; not in the key.
    """

    kind: str
    title: str
    spec: Mapping[str, Any]
    inputs: Mapping[str, Stage] = field(default_factory=dict)
    roots: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    @functools.cached_property
    def key(self) -> str:
        """16 hexadecimal digits."""
        content = {
            "version": STAGES_VERSION,
            "kind": self.kind,
            "spec": without_locations(self.spec),
            "inputs": {role: stage.key for role, stage in self.inputs.items()},
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def walk(self) -> Iterator[Stage]:
        """This stage and all it rests on, inputs first, each once."""
        seen: set[str] = set()

        def visit(stage: Stage) -> Iterator[Stage]:
            if stage.key in seen:
                return
            seen.add(stage.key)
            for below in stage.inputs.values():
                yield from visit(below)
            yield stage

        return visit(self)


def without_locations(value: Any) -> Any:
    """A spec without the parts named `locations`, at any depth."""
    if not isinstance(value, Mapping):
        return value
    return {name: without_locations(below) for name, below in value.items() if name != "locations"}
