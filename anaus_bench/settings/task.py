"""Settings that all tasks share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from anaus_bench.settings.base import Settings


class TaskSettings(Settings):
    """How the labelled images are split; the same for every method of a table."""

    folds: int = Field(5, ge=2, description="number of cross-validation folds (Sec. 3.1: five-fold)")
    fold_seed: int = Field(0, ge=0, description="seed of the assignment of groups to folds")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"demo": {"folds": 2}, "tiny": {"folds": 2}}
