"""A stage, and what it is given while it runs."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from anaus_bench.settings.base import flatten

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


@dataclass(frozen=True)
class Stage:
    """One unit of work.

    Attributes:
        kind: Module in `anaus_bench/stages` that does it and folder of the store.
        version: Of the stages of its kind; enters the key.
        title: What it is, for people.
        spec: All settings that shape its result, as JSON; enters the key, but for `locations`.
        locations: Dotted names of those parts of the spec that say where a file is.
        inputs: Role -> stage; their keys enter the key.
        roots: Data set name -> folder of the data; not in the key, which holds their fingerprint.
        labels: What a table calls the cell; not in the key.
    """

    kind: str
    version: int
    title: str
    spec: Mapping[str, Any]
    locations: tuple[str, ...] = ()
    inputs: Mapping[str, Stage] = field(default_factory=dict)
    roots: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    @functools.cached_property
    def key(self) -> str:
        """16 hexadecimal digits."""
        content = {"version": self.version, "kind": self.kind, **self.identity}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def identity(self) -> dict[str, Any]:
        """What makes the key, by dotted names: the spec without locations, and the keys of the inputs."""
        return key_parts(self.spec, self.locations, {role: stage.key for role, stage in self.inputs.items()})

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


def key_parts(spec: Mapping[str, Any], locations: Collection[str], inputs: Mapping[str, str]) -> dict[str, Any]:
    """What makes a key, by dotted names, of a stage or of its record: spec without locations, role -> key of inputs."""
    settings = {name: value for name, value in flatten(spec).items() if name not in locations}
    return settings | {f"inputs.{role}": key for role, key in inputs.items()}
