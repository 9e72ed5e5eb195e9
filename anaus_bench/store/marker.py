"""The file that marks a folder as a store, and which folders are taken for one."""

from __future__ import annotations

import json
import re
from pathlib import Path

from anaus_bench.errors import StoreError
from anaus_bench.machine.files import PARTIAL, write_whole
from anaus_bench.store.records import parsed

FORMAT = 2
MARKER = "store.json"

_KEPT_KEY = re.compile(r"\.?[0-9a-f]{16}(\..*)?")


def check(root: Path) -> None:
    """Refuses a folder that is no store of this format; one that is empty or not there yet is fine.

    Raises:
        StoreError: Not a store, or one of another version.
    """
    if is_marked(root):
        _check_format(root)
    elif root.exists() and (stranger := _stranger(root)) is not None:
        raise StoreError(
            f"{str(root)!r} is no store and not an empty folder (it holds {stranger!r}); pass another --store"
        )


def is_marked(root: Path) -> bool:
    """Whether the number of the format is there; any attempt at a stage, and `mark`, writes it."""
    return (root / MARKER).exists()


def mark(root: Path) -> None:
    """Makes the folder, and writes the number of the format before anything else is in it."""
    if is_marked(root):
        return
    root.mkdir(parents=True, exist_ok=True)
    try:
        write_whole(root / MARKER, json.dumps({"format": FORMAT}))
    except FileNotFoundError:  # another process has marked it, and removed what it took for a killed one's
        if not is_marked(root):
            raise
    for left in root.glob(f".{MARKER}.*{PARTIAL}"):
        left.unlink(missing_ok=True)


def _check_format(root: Path) -> None:
    path = root / MARKER
    mend = f"delete {path}: the artifacts beside it are kept and used again"
    found = parsed(path, path.read_bytes(), mend).get("format")
    if type(found) is not int or found < 1:
        raise StoreError(f"{path} is damaged (format {found!r}); {mend}")
    if found > FORMAT:
        raise StoreError(
            f"store {str(root)!r} has format {found}, this version reads up to {FORMAT}; "
            "upgrade anaus-bench or pass another --store"
        )
    if found < FORMAT:
        raise StoreError(
            f"store {str(root)!r} has format {found}, this version reads none before {FORMAT}; pass another --store"
        )


def _stranger(root: Path) -> str | None:
    """Something in the folder that no store holds; None for an empty folder, or a store without its marker."""
    if not root.is_dir():
        return root.name
    for path in sorted(root.iterdir()):
        if path.name == MARKER or (path.name.startswith(f".{MARKER}.") and path.name.endswith(PARTIAL)):
            continue
        inside = list(path.iterdir()) if path.is_dir() else [path]
        strangers = [below.name for below in inside if not _KEPT_KEY.fullmatch(below.name)]
        if strangers or path.name.startswith("."):
            return path.name
    return None
