"""Kills runs before chosen file operations and at random moments, resumes them, and compares all that they made.

Run `python -m tests.campaigns.kill --cell masks --kills 100`.

Each run is a process of its own that begins with an empty store; a third of the resumed ones are killed once more. The
last run must end well, with every artifact as an undisturbed run makes it, bit for bit, and nothing left over.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from anaus_bench.cell import Cell
from anaus_bench.execute import Runner
from anaus_bench.plan import Stage, make_plan, masks_stage, pending
from anaus_bench.progress import SilentProgress
from anaus_bench.registry import Registry
from anaus_bench.store import MARKER, RECORD, Store

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.truncate", "shutil.rmtree", "mmap.__new__")
# Where one record differs from another of the same stage: times and machine.
COMPARED = ("kind", "key", "spec", "inputs", "phantom", "result", "files")


@dataclass(frozen=True)
class Kill:
    """A signal before the `operation`-th change of a file, or after so many seconds."""

    number: signal.Signals
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


def run(targets: list[Stage], folder: Path, kill: Kill | None = None) -> tuple[int, int]:
    """Runs the stages in a process of its own; wait status (0: it ended well) and number of file operations."""
    counter, errors = folder.parent / "operations", folder.parent / "errors"
    counter.write_text("0")
    process = os.fork()
    if process == 0:
        os._exit(_work(targets, folder, kill, counter, errors))
    if kill is not None and kill.seconds is not None:
        time.sleep(kill.seconds)
        os.kill(process, kill.number)
    _, status = os.waitpid(process, 0)
    return status, int(counter.read_text() or 0)


def _work(targets: list[Stage], folder: Path, kill: Kill | None, counter: Path, errors: Path) -> int:
    done = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
        inside = str(folder) in str(arguments) or event in ("os.remove", "os.rmdir")  # `rmtree` names no folders there
        if not ((opened or event in CHANGES) and inside):
            return
        done += 1
        if kill is not None and done == kill.operation:
            os.kill(os.getpid(), kill.number)

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
    except BaseException:
        errors.write_text(traceback.format_exc())
        return 1
    return 0


def _warm_up(folder: Path) -> None:
    """Imports here what each run would import for itself; no gradient is computed, after which torch could not fork."""
    torch.set_num_threads(1)
    for module in ("torch._dynamo", "torchvision.models.detection", "sklearn.metrics", "matplotlib.pyplot"):
        importlib.import_module(module)
    runner = Runner(Registry(), Store(folder), SilentProgress(), "cpu")
    for stage in pending(masks_cell(), runner.store):
        runner.run(stage)
    for stage in training_cell():
        for below in stage.walk():
            importlib.import_module(f"anaus_bench.stages.{below.kind}")


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


def campaign(cell: str, kills: int, seed: int, folder: Path, say: Callable[[str], None] = print) -> list[str]:
    """What went wrong, a line per failure, in so many runs that were killed at least once."""
    _warm_up(folder / "warm")
    targets = CELLS[cell]()
    whole, store = folder / "whole", folder / "killed"
    started = time.monotonic()
    status, operations = run(targets, whole)
    assert status == 0, (folder / "errors").read_text()
    seconds = time.monotonic() - started
    expected, rng, wrong, twice, hit = content(whole), random.Random(seed), [], 0, 0
    say(f"{cell}: {operations} file operations in {seconds:.1f} s")
    for number in range(kills):
        sent = SIGNALS[number % len(SIGNALS)]
        at_operation = number % 4 != 3
        operation = 1 + (number * operations // kills if kills < operations else number) % operations
        planned = [Kill(sent, operation) if at_operation else Kill(sent, seconds=rng.uniform(0, seconds))]
        if number % 3 == 0:
            planned.append(Kill(rng.choice(SIGNALS), rng.randint(1, operations)))
        shutil.rmtree(store, ignore_errors=True)
        ended = [run(targets, store, kill)[0] for kill in planned]
        hit += ended[0] != 0
        twice += len(ended) > 1 and all(ended)
        status, _ = run(targets, store)
        found = content(store)
        faults = [fault for kind, key in Store(store).artifacts() for fault in Store(store).faults(kind, key)]
        if status != 0:
            wrong.append(f"{planned}: the resumed run ended with {status}: {(folder / 'errors').read_text()[-300:]}")
        elif found != expected:
            names = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
            wrong.append(f"{planned}: differs in {names[:5]}")
        elif faults:
            wrong.append(f"{planned}: {faults[0]}")
    say(f"{cell}: {kills} runs, {hit} killed, {twice} of them twice; {kills - len(wrong)} end as an undisturbed one")
    return wrong


def main() -> None:
    """Runs a campaign; exit code 1 if any run ended otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", choices=list(CELLS), default="masks")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wrong = campaign(given.cell, given.kills, given.seed, Path(folder))
    for line in wrong:
        print(line)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
