"""CPU work over all cores: one function over many parts, results in order."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import TypeVar

from anaus_bench.errors import MachineError

PartT = TypeVar("PartT")
ResultT = TypeVar("ResultT")


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_processes(work: Callable[[PartT], ResultT], parts: Sequence[PartT]) -> Iterator[ResultT]:
    """`work(part)` of each part, in order, by one fresh process per core; `work` and its results must pickle.

    Raises:
        MachineError: A process was killed.
    """
    if not parts:
        return
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(min(cores(), len(parts)), context, initializer=_end_with_parent) as pool:
            yield from pool.map(work, parts)
    except BrokenProcessPool as error:
        raise MachineError(
            "a worker process was killed, perhaps for want of memory; end other programs and run again: finished parts "
            "are kept"
        ) from error


def _end_with_parent() -> None:
    """Has this worker end when the process that started it ends, however that does."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def batches(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover `range(count)`."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
