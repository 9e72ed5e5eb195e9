"""What makes a key new."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from anaus_bench.errors import shown
from anaus_bench.interfaces import Stage, key_parts

if TYPE_CHECKING:
    from anaus_bench.store import Record, Store


def why(stage: Stage, store: Store) -> list[str]:
    """What makes a stage's key differ from the nearest finished stage of its kind, one line per field.

    Nearest is one of the same data sets, with the fewest fields that differ.
    """
    finished = [record for record in store.records(stage.kind) if record["key"] != stage.key]
    if not finished:
        return [f"no {stage.kind} stage has been run in this store"]
    mine = stage.identity

    def theirs(record: Record) -> dict[str, Any]:
        return key_parts(record["spec"], record["locations"], record["inputs"])

    def differing(record: Record) -> list[str]:
        other = theirs(record)
        return [name for name in sorted(mine.keys() | other.keys()) if mine.get(name) != other.get(name)]

    nearest = min(finished, key=lambda record: (_datasets(theirs(record)) != _datasets(mine), len(differing(record))))
    other = theirs(nearest)
    fields = differing(nearest)
    if not fields:
        return [f"stages of this kind were changed since {nearest['key']}"]
    return [
        f"{name}: {shown(other.get(name, 'absent'))} in {nearest['key']}, here {shown(mine.get(name, 'absent'))}"
        for name in fields
    ]


def _datasets(parts: Mapping[str, Any]) -> set[str]:
    """Names of the data sets in a spec."""
    return {str(parts[name]) for name in parts if name.startswith("dataset") and name.endswith(".name")}
