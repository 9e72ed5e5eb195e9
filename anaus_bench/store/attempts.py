"""An attempt at a stage: a folder of its own, which begins with what an earlier attempt left."""

from __future__ import annotations

import json
import os
import platform
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from anaus_bench.machine.files import PARTIAL, sync

OWNER = "owner.json"


ROWS = ".rows"  # `resume/NAME.rows` speaks of `out/NAME`, which is kept with it


_OWN = secrets.token_hex(8)  # tells this process from others of its number


@dataclass(frozen=True)
class Workplace:
    """Where an attempt at a stage works.

    Attributes:
        out: Published when it is complete; at first it holds the arrays that `resume` has the finished rows of.
        resume: Private; what an earlier attempt left of it, and what a later one will find.
        locked: False where the file system has no locks, so that others may be at work on the same stage.
    """

    out: Path
    resume: Path
    locked: bool = True


def start_attempt(fresh: Path, left: Path | None) -> None:
    """Makes the folder of an attempt, with a copy of the resume state of an earlier one and the arrays it speaks of."""
    (fresh / "out").mkdir(parents=True)
    (fresh / "resume").mkdir()
    (fresh / "aside").mkdir()
    (fresh / OWNER).write_text(json.dumps({"host": platform.node(), "process": os.getpid(), "own": _OWN}))
    if left is None:
        return
    # What is said of an array before the array: without locks, somebody may be at work on both.
    for path in resume_files(left):
        _copy(path, fresh / "resume" / path.name)
    for rows in (fresh / "resume").glob(f"*{ROWS}"):
        _copy(left / "out" / rows.stem, fresh / "out" / rows.stem)


def _copy(path: Path, to: Path) -> None:
    shutil.copyfile(path, to)
    sync(to)  # the original is removed


def resume_files(attempt: Path) -> list[Path]:
    """What an attempt has saved to go on from."""
    try:
        return [path for path in (attempt / "resume").iterdir() if not path.name.endswith(PARTIAL)]
    except FileNotFoundError:
        return []


def is_alive(attempt: Path) -> bool:
    """Whether an attempt has not ended, as far as this machine can tell."""
    try:
        owner = json.loads((attempt / OWNER).read_text())
        if owner["host"] != platform.node():
            return False
        if owner["process"] == os.getpid():  # in containers, often that of one before
            return bool(owner["own"] == _OWN)
        os.kill(owner["process"], 0)
    except PermissionError:
        return True
    except (OSError, ValueError, LookupError, TypeError):
        return False
    return True


def remove_folder(path: Path) -> int:
    """Removes a folder; bytes that it held."""
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    shutil.rmtree(path, ignore_errors=True)
    return size
