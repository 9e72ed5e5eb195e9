"""What makes a key new."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anaus_bench.errors import shown
from anaus_bench.interfaces import Stage, without_locations
from anaus_bench.settings.base import flatten

if TYPE_CHECKING:
    from anaus_bench.store import Record, Store


def why(stage: Stage, store: Store) -> list[str]:
    """What makes a stage's key differ from the nearest finished stage of its kind, one line per field."""
    finished = [record for record in store.records(stage.kind) if record["key"] != stage.key]
    if not finished:
        return [f"no {stage.kind} stage has been run in this store"]
    inputs = {role: below.key for role, below in stage.inputs.items()}
    mine = flatten({"spec": without_locations(stage.spec), "inputs": inputs})

    def differences(record: Record) -> list[str]:
        theirs = flatten({"spec": without_locations(record["spec"]), "inputs": record["inputs"]})
        fields = sorted(mine.keys() | theirs.keys())
        return [
            f"{name.removeprefix('spec.')}: {shown(theirs.get(name, 'absent'))} in {record['key']}, "
            f"here {shown(mine.get(name, 'absent'))}"
            for name in fields
            if mine.get(name) != theirs.get(name)
        ]

    return min((differences(record) for record in finished), key=len)
