"""The record of an artifact: a JSON object that carries its own digest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from anaus_bench.errors import StoreError

RECORD = "record.json"


Record = dict[str, Any]


def mend(folder: Path) -> str:
    """What mends a damaged artifact."""
    return f"delete {folder} and run again"


def no_record(folder: Path) -> str:
    """What is wrong with an artifact without a record."""
    return f"{folder} is incomplete ({RECORD} is missing); {mend(folder)}"


def sealed(record: Record) -> Record:
    """The record as it is read back, with a digest of all the rest of it."""
    content: Record = json.loads(json.dumps(record, allow_nan=True))
    return {**content, "digest": digest_of(content)}


def digest_of(record: Record) -> str:
    """Digest of all of a record but the digest that it carries."""
    content = {name: value for name, value in record.items() if name != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def parsed(path: Path, content: bytes, advice: str) -> Record:
    """The JSON object in a file of the store.

    Raises:
        StoreError: There is none; with the advice.
    """
    try:
        found = json.loads(content)
    except ValueError as error:
        raise StoreError(f"{path} is damaged ({error}); {advice}") from error
    if not isinstance(found, dict):
        raise StoreError(f"{path} is damaged (no record); {advice}")
    return found
