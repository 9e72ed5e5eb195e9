"""A cell -> the stages that fill it, each with a key.

A stage's key is a hash of its kind, its fully resolved settings, the data's fingerprint and its inputs' keys. Cells
share stages by key. Planning reads settings, file names and sizes; it imports no torch and decodes no image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from anaus_bench.cells.cell import Cell
from anaus_bench.interfaces import Stage

if TYPE_CHECKING:
    from anaus_bench.store import Store


@dataclass(frozen=True)
class Plan:
    """All stages of a cell, in an order in which they can run.

    Attributes:
        cell: What was asked for.
        score: The stage that holds the cell's metrics.
        panel: The stage that draws its pictures.
        audit: The stage that looks for test images in the corpus; None without pre-training.
        notes: What the user should know before it runs.
        network_bytes: About what the networks of all folds take in the store; 0 where none is kept.
    """

    cell: Cell
    score: Stage
    panel: Stage
    audit: Stage | None = None
    notes: tuple[str, ...] = ()
    network_bytes: int = 0

    @property
    def stages(self) -> list[Stage]:
        """Inputs first."""
        return list({stage.key: stage for target in self._targets() for stage in target.walk()}.values())

    def pending(self, store: Store) -> list[Stage]:
        """Stages that must run for the cell to be complete."""
        return pending(self._targets(), store)

    def _targets(self) -> list[Stage]:
        """The audit comes first: it may refuse."""
        return [*([self.audit] if self.audit else []), self.score, self.panel]


def pending(targets: Sequence[Stage], store: Store) -> list[Stage]:
    """Stages that must run for `targets` to be in the store, inputs first; not those that only finished ones need."""
    needed: dict[str, Stage] = {}

    def visit(stage: Stage) -> None:
        if stage.key in needed or store.record(stage.kind, stage.key) is not None:
            return
        for below in stage.inputs.values():
            visit(below)
        needed[stage.key] = stage

    for target in targets:
        visit(target)
    return list(needed.values())
