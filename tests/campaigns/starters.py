"""Starts processes at one instant on a new store: none may be refused, nothing may be done twice.

Run `python -m tests.campaigns.starters --processes 8 --times 100`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import multiprocessing.synchronize
import os
import tempfile
import traceback
from pathlib import Path

from anaus_bench.store import Store

KEYS = [f"{number:016x}" for number in range(2)]


def start_together(folder: Path, processes: int, times: int) -> list[str]:
    """What went wrong, a line per failure.

    Args:
        folder: Where the stores are made.
        processes: How many work on each of them.
        times: How many stores.
    """
    context = multiprocessing.get_context("spawn")
    barrier, wrong = context.Barrier(processes), context.Queue()
    starters = [context.Process(target=_work, args=(folder, times, barrier, wrong)) for _ in range(processes)]
    for starter in starters:
        starter.start()
    found = [line for _ in starters for line in wrong.get()]
    for starter in starters:
        starter.join()
    for number in range(times):
        store = Store(folder / f"store{number}")
        for key in KEYS:
            done = len(list(folder.glob(f"done-{number}-{key}-*")))
            if done != 1 or store.state("masks", key) != "done":
                found.append(f"store {number}: {key} is {store.state('masks', key)} and was done {done} times")
        found += [f"store {number}: {kind} {key} is left" for kind, key in store.unfinished()]
    return found


def _work(
    folder: Path, times: int, barrier: multiprocessing.synchronize.Barrier, wrong: multiprocessing.Queue[list[str]]
) -> None:
    refused = []
    for number in range(times):
        barrier.wait()
        try:
            store = Store(folder / f"store{number}")
            for key in KEYS:
                with store.claim("masks", key) as place:
                    if store.record("masks", key) is None:
                        (place.out / "content").write_text(key)
                        store.publish("masks", key, place, {"kind": "masks", "key": key})
                        (folder / f"done-{number}-{key}-{os.getpid()}").touch()
        except Exception:
            refused.append(traceback.format_exc())
    wrong.put(refused)


def main() -> None:
    """Runs it and prints what went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--times", type=int, default=100)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wrong = start_together(Path(folder), given.processes, given.times)
    print(f"{given.times} stores, {given.processes} processes at one instant: {len(wrong)} refused, twice or left")
    for line in wrong:
        print(line)
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
