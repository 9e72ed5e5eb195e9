"""Arrays that are filled row by row, and whose finished rows survive a kill."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np
from numpy.lib.format import open_memmap

from anaus_bench.interfaces import StageContext
from anaus_bench.machine.files import reserve, write_whole
from anaus_bench.store.attempts import ROWS

FactT = TypeVar("FactT")


class ResumableArray(Generic[FactT]):
    """A uint8 array `ctx.out / name`, filled in order, with a fact (JSON) about each of its rows.

    Its marker, `ctx.resume / (name + ".rows")`, holds of each finished row the fact and the checksum of both. A row is
    finished only if the array holds what its checksum says: a marker never speaks of another array than its own.

    Attributes:
        rows: The array, memory-mapped; other processes may write rows through the file.
        facts: Those of the finished rows.

    Args:
        ctx: Gives the folders, and the time between checkpoints.
        name: File name of the array.
        shape: (N, ...) of the array.

    Raises:
        OSError: No space left.
    """

    def __init__(self, ctx: StageContext, name: str, shape: tuple[int, ...]) -> None:
        self.path, self._marker = ctx.out / name, ctx.resume / f"{name}{ROWS}"
        self._seconds, self._saved_at = ctx.checkpoint_seconds, time.monotonic()
        self.facts: list[FactT] = []
        self._sums: list[int] = []
        saved = self._saved(shape)
        if not saved:
            self._marker.unlink(missing_ok=True)
        self.rows = open_memmap(self.path, mode="r+" if saved else "w+", dtype=np.uint8, shape=shape)
        if not saved:
            reserve(self.path)
        for fact, checksum in saved:
            if self._sum(len(self.facts), fact) != checksum:
                break
            self.facts.append(fact)
            self._sums.append(checksum)

    def forget(self, start: int) -> None:
        """Takes the rows from `start` on for unfinished."""
        del self.facts[start:], self._sums[start:]

    def add(self, facts: Sequence[FactT]) -> None:
        """Takes the next rows, as many as facts, for finished; saves that if it is time to."""
        for fact in facts:
            self._sums.append(self._sum(len(self.facts), fact))
            self.facts.append(fact)
        if time.monotonic() - self._saved_at >= self._seconds:
            self.rows.flush()  # the rows first: the marker says that they are there
            write_whole(self._marker, json.dumps({"facts": self.facts, "sums": self._sums}))
            self._saved_at = time.monotonic()

    def _sum(self, row: int, fact: FactT) -> int:
        return zlib.crc32(json.dumps(fact).encode(), zlib.crc32(self.rows[row]))

    def _saved(self, shape: tuple[int, ...]) -> list[tuple[FactT, int]]:
        """Fact and checksum of each row that an earlier attempt saved; empty if there is no array for them."""
        try:
            found = np.load(self.path, mmap_mode="r")
            saved = json.loads(self._marker.read_bytes())
            rows = list(zip(saved["facts"], saved["sums"], strict=True))
        except (FileNotFoundError, EOFError, ValueError, LookupError, TypeError):
            return []
        return rows if found.shape == shape and found.dtype == np.uint8 and len(rows) <= shape[0] else []
