"""The user's home folder, which containers and services may lack."""

from __future__ import annotations

import os
from pathlib import Path

from anaus_bench.errors import SettingsError


def expanded(path: str) -> Path:
    """The path with a leading `~` resolved.

    Raises:
        SettingsError: It begins with `~` and there is no such home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise SettingsError(
            f"{path!r} begins with '~' and there is no such home folder; write the whole path"
        ) from error


def cache_folder() -> Path | None:
    """Where what can be made again is kept: `ANAUS_CACHE`, else a folder of the user's cache; None without a home."""
    if own := os.environ.get("ANAUS_CACHE"):
        return Path(own)
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "anaus-bench"
    try:
        return Path.home() / ".cache" / "anaus-bench"
    except RuntimeError:
        return None
