"""Fixtures shared by all tests."""

from __future__ import annotations

import os

# Tests run side by side, one process per core: more threads would only fight. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from anaus_bench.interfaces import StageContext


@dataclass
class RecordedProgress:
    """A `Progress` that keeps what it was told."""

    notes: list[str] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)

    @contextmanager
    def track(self, label: str, total: int, done: int = 0) -> Iterator[RecordedProgress]:
        yield self

    def advance(self, step: int, *, images: int, waited: float, values: Mapping[str, float] | None = None) -> None:
        self.steps.append(step)

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the tests find out about files is not kept in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANAUS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def stage_context(tmp_path: Path) -> Callable[..., StageContext]:
    """Makes the context of a stage on the CPU; the same `name` finds its checkpoints again."""

    def make(name: str = "stage", seed: int = 0, checkpoint_seconds: float = 60.0) -> StageContext:
        out, resume = tmp_path / name / "out", tmp_path / name / "resume"
        out.mkdir(parents=True, exist_ok=True)
        resume.mkdir(parents=True, exist_ok=True)
        return StageContext(out, resume, torch.device("cpu"), seed, RecordedProgress(), checkpoint_seconds)

    return make


@pytest.fixture
def data_root() -> Callable[[str], Path]:
    """Folder of a real data set under ANAUS_DATA; skips, saying so, where it is not there."""

    def find(name: str) -> Path:
        folder = Path(os.environ.get("ANAUS_DATA", "")) / name
        if "ANAUS_DATA" not in os.environ or not folder.is_dir():
            pytest.skip(f"needs real data: set ANAUS_DATA to a folder that holds {name}/")
        return folder

    return find
