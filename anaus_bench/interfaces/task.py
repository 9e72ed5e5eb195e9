"""A task: a data set, what is asked of it, and how the answers are scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from anaus_bench.interfaces.dataset import Picture, Sample
from anaus_bench.interfaces.plugin import Plugin, S

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Metric:
    """A column of a table: key in the records, heading, direction, whether it is a fraction (printed in %)."""

    key: str
    title: str
    higher_is_better: bool = True
    fraction: bool = True


@dataclass(frozen=True)
class Case:
    """One labelled image of a task; pictures are read on demand.

    Attributes:
        sample: Its index entry.
        read: Decodes it: `image` (H, W) uint8, `mask` (H, W) uint8 or None.
    """

    sample: Sample
    read: Callable[[], Picture]


@dataclass(frozen=True)
class Fold:
    """Cases to train on and cases held out, for one fold."""

    number: int
    train: tuple[Case, ...]
    test: tuple[Case, ...]
    classes: tuple[str, ...] = ()


class Task(Plugin[S]):
    """A data set, what is asked of its images, and metrics.

    Attributes:
        dataset: Name of the data set.
        protocol: Name of the protocol that a cell takes where none is asked for.
        metrics: Columns of the table; the first is the headline.
        split_settings: Settings that shape `select` and the folds; the others leave the folds as they are.
        score_settings: Settings that shape scores alone; they leave networks and predictions as they are.
    """

    dataset: ClassVar[str]
    protocol: ClassVar[str]
    metrics: ClassVar[tuple[Metric, ...]]
    split_settings: ClassVar[tuple[str, ...]] = ("folds", "fold_seed")
    score_settings: ClassVar[tuple[str, ...]] = ()

    def select(self, samples: Sequence[Sample]) -> list[Sample]:
        """The samples that take part, in order; all by default."""
        return list(samples)

    def score(self, folds: Sequence[tuple[Fold, Path]]) -> Scores:
        """Scores of all folds from the folders that `Protocol.predict` wrote."""
        raise NotImplementedError

    def draw(self, case: Case, predictions: Path) -> tuple[NDArray[np.uint8] | None, NDArray[np.uint8] | None, str]:
        """For the panel: true and predicted mask (H, W) uint8 of a held-out case, None without one; caption."""
        raise NotImplementedError


@dataclass(frozen=True)
class Scores:
    """Result of `Task.score`.

    Attributes:
        rows: One dictionary per image, with `image_id`, `fold` and its metrics; stored as CSV.
        folds: Per fold, metric key -> value.
        pooled: Metric key -> value over all images together.
        notes: Definitions and counts that a reader needs (resolution, empty rule, penalised images).
    """

    rows: list[dict[str, Any]]
    folds: list[dict[str, float]]
    pooled: dict[str, float]
    notes: list[str] = field(default_factory=list)
