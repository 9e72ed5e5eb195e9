"""Stops runs before chosen file operations and at random moments, resumes them, and compares all that they made.

Run `python -m tests.campaigns.stops --cell masks --runs 100`; with `--by errors` the operating system refuses every
file operation from the chosen one on, as on a full disk, and with `--by disk` (as root) the disk is too small.

Each run is a process of its own that begins with an empty store; a third of the resumed ones are stopped once more. The
last run must end well, with every artifact as an undisturbed run makes it, bit for bit, and nothing left over.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from anaus_bench.cells.cell import Cell
from anaus_bench.errors import AnausError
from anaus_bench.execution.progress import SilentProgress
from anaus_bench.execution.runner import Runner
from anaus_bench.interfaces import Stage
from anaus_bench.planning.plan import pending
from anaus_bench.planning.planner import make_plan, masks_stage
from anaus_bench.registry import Registry
from anaus_bench.store import MARKER, Store
from anaus_bench.store.records import RECORD

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT, errno.EMFILE)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.truncate", "shutil.rmtree", "mmap.__new__")
# Where one record differs from another of the same stage: times and machine.
COMPARED = ("kind", "key", "spec", "inputs", "phantom", "result", "files")


@dataclass(frozen=True)
class Stop:
    """A signal, or an error of every operation from then on, before the `operation`-th change of a file.

    With `seconds`, the signal comes after so many instead.
    """

    kill: signal.Signals | None = None
    error: int | None = None
    operation: int | None = None
    seconds: float | None = None


def masks_cell() -> list[Stage]:
    """Phantoms, corpus and label maps: arrays that are filled in parts."""
    return [masks_stage(Cell("", "", "grid", "udiat", preset="tiny"), Registry(), {})]


def training_cell() -> list[Stage]:
    """A whole cell: pre-training and fine-tuning with checkpoints, scores and pictures."""
    overrides = {"pretrain": {"steps": 2, "batch": 2}, "task": {"epochs": 1}}
    plan = make_plan(Cell("byol", "busi-cls", corpus="udiat", preset="tiny", overrides=overrides), Registry(), {})
    return [*([plan.audit] if plan.audit else []), plan.score, plan.panel]


CELLS: Mapping[str, Callable[[], list[Stage]]] = {"masks": masks_cell, "training": training_cell}


def run(targets: list[Stage], folder: Path, scratch: Path, stop: Stop | None = None) -> tuple[int, int]:
    """Runs the stages in a process of its own; wait status (0: it ended well) and number of file operations."""
    counter, errors = scratch / "operations", scratch / "errors"
    counter.write_text("0")
    process = os.fork()
    if process == 0:
        os._exit(_work(targets, folder, stop, counter, errors))
    if stop is not None and stop.seconds is not None and stop.kill is not None:
        time.sleep(stop.seconds)
        os.kill(process, stop.kill)
    _, status = os.waitpid(process, 0)
    return status, int(counter.read_text() or 0)


def _work(targets: list[Stage], folder: Path, stop: Stop | None, counter: Path, errors: Path) -> int:
    done = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
        inside = str(folder) in str(arguments) or event in ("os.remove", "os.rmdir")  # `rmtree` names no folders there
        if not ((opened or event in CHANGES) and inside):
            return
        done += 1
        if stop is None or stop.operation is None or done < stop.operation:
            return
        if stop.kill is not None and done == stop.operation:
            os.kill(os.getpid(), stop.kill)
        if stop.error is not None and event not in ("os.remove", "os.rmdir", "shutil.rmtree"):
            raise OSError(stop.error, os.strerror(stop.error), arguments[0])

    try:
        os.chdir(folder.parent)
        sys.addaudithook(watch)
        store = Store(folder)
        runner = Runner(Registry(), store, SilentProgress(), "cpu", checkpoint_seconds=0)
        for stage in pending(targets, store):
            runner.run(stage)
        counter.write_text(str(done))
    except KeyboardInterrupt:
        return 130
    except (AnausError, OSError) as error:  # what the command says in one line
        errors.write_text(str(error))
        return 2
    except BaseException:
        errors.write_text(traceback.format_exc())
        return 1
    return 0


def _warm_up(folder: Path, cell: str) -> None:
    """Imports here what each run would import for itself; no gradient is computed, after which torch could not fork."""
    torch.set_num_threads(1)
    if cell == "training":
        for module in ("torch._dynamo", "torchvision.models.detection", "sklearn.metrics", "matplotlib.pyplot"):
            importlib.import_module(module)
        for below in {below.kind for stage in training_cell() for below in stage.walk()}:
            importlib.import_module(f"anaus_bench.stages.{below}")
    runner = Runner(Registry(), Store(folder), SilentProgress(), "cpu")
    for stage in pending(masks_cell(), runner.store):
        runner.run(stage)


def content(folder: Path) -> dict[str, Any]:
    """All that a store holds, but for what differs from run to run."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.name == RECORD:
            record = json.loads(path.read_text())
            found[name] = {field: record[field] for field in COMPARED}
        elif name != MARKER:
            found[name] = path.read_bytes()
    return found


def planned(number: int, share: float, operations: int, seconds: float, by: str, rng: random.Random) -> list[Stop]:
    """One or two stops, the first of them at this share of all operations, or by chance at another moment."""
    operation = 1 + int(share * operations)
    if by == "errors":
        return [Stop(error=ERRORS[number % len(ERRORS)], operation=operation)]
    first = Stop(SIGNALS[number % len(SIGNALS)], operation=operation)
    if number % 4 == 3:
        first = Stop(first.kill, seconds=rng.uniform(0, seconds))
    second = [Stop(rng.choice(SIGNALS), operation=rng.randint(1, operations))] if number % 3 == 0 else []
    return [first, *second]


def campaign(cell: str, runs: int, seed: int, folder: Path, by: str = "kills") -> list[str]:
    """What went wrong, a line per failure, in so many runs that were stopped at least once."""
    _warm_up(folder / "warm", cell)
    targets = CELLS[cell]()
    whole, store = folder / "whole", folder / "disk" / "stopped"
    started = time.monotonic()
    status, operations = run(targets, whole, folder)
    assert status == 0, (folder / "errors").read_text()
    seconds = time.monotonic() - started
    expected, rng, wrong, stopped, twice = content(whole), random.Random(seed), [], 0, 0
    offset = rng.random()
    size = sum(path.stat().st_size for path in whole.rglob("*"))
    for number in range(runs):
        (folder / "disk").mkdir()
        with _disk(folder / "disk", 4096 + number * 2 * size // runs if by == "disk" else None) as enlarge:
            stops = (
                [Stop()] if by == "disk" else planned(number, (number + offset) / runs, operations, seconds, by, rng)
            )
            what = f"disk {number}" if by == "disk" else f"{stops}"
            ended = [run(targets, store, folder, stop)[0] for stop in stops]
            stopped += ended[0] != 0
            twice += len(ended) > 1 and all(ended)
            if any(os.waitstatus_to_exitcode(status) == 1 for status in ended):
                wrong.append(f"{what}: a traceback: {(folder / 'errors').read_text()[-300:]}")
            enlarge()
            status, _ = run(targets, store, folder)
            found = content(store)
            faults = [fault for kind, key in Store(store).artifacts() for fault in Store(store).faults(kind, key)]
            if status != 0:
                wrong.append(f"{what}: the resumed run ended with {status}: {(folder / 'errors').read_text()[-300:]}")
            elif found != expected:
                names = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
                wrong.append(f"{what}: differs in {names[:5]}")
            elif faults:
                wrong.append(f"{what}: {faults[0]}")
        shutil.rmtree(folder / "disk")
    print(f"{cell}, {operations} file operations in {seconds:.1f} s: {runs} runs, {stopped} stopped by {by}", end=", ")
    print(f"{twice} of them twice; {runs - len(wrong)} end as an undisturbed one")
    return wrong


@contextmanager
def _disk(folder: Path, size: int | None) -> Iterator[Callable[[], object]]:
    """A disk of so many bytes mounted at `folder`, and what makes it large; none without a size."""
    if size is None:
        yield lambda: None
        return
    mount = ["mount", "-t", "tmpfs", "tmpfs", str(folder), "-o"]
    subprocess.run([*mount, f"size={size}"], check=True)
    try:
        yield lambda: subprocess.run([*mount, "remount,size=8G"], check=True)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def main() -> None:
    """Runs a campaign; exit code 1 if any run ended otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", choices=list(CELLS), default="masks")
    parser.add_argument("--by", choices=["kills", "errors", "disk"], nargs="+", default=["kills"])
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    wrong = []
    for by in given.by:
        with tempfile.TemporaryDirectory() as folder:
            wrong += campaign(given.cell, given.runs, given.seed, Path(folder), by)
    for line in wrong:
        print(line)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
