"""CPU work over all cores: one function over many parts, results in order."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

PartT = TypeVar("PartT")
ResultT = TypeVar("ResultT")


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_processes(work: Callable[[PartT], ResultT], parts: Sequence[PartT]) -> Iterator[ResultT]:
    """`work(part)` of each part, in order, by one fresh process per core; `work` and its results must pickle."""
    if not parts:
        return
    with ProcessPoolExecutor(min(cores(), len(parts)), multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(work, parts)


def batches(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover `range(count)`."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
