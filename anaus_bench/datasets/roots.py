"""Where the folder of a data set is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anaus_bench.errors import DatasetNotFound
from anaus_bench.interfaces import Dataset, Index


def data_folder(name: str, roots: Mapping[str, Path]) -> Path | None:
    """Where a data set is: as given, else its sub-folder of `ANAUS_DATA`, else None."""
    if name in roots:
        return roots[name]
    shared = os.environ.get("ANAUS_DATA")
    folder = Path(shared) / name if shared else None
    return folder if folder is not None and folder.is_dir() else None


def find_data(dataset: Dataset[Any], roots: Mapping[str, Path], *, skips_unreadable: bool = False) -> Index:
    """Index of a data set's folder; clips that cannot be read are refused, or left out and listed.

    Raises:
        DatasetNotFound: No folder was given; the message says what the data set is, how to get it and where to put it.
        DataError: As `Dataset.scan`.
    """
    folder = data_folder(dataset.name, roots)
    if folder is None:
        raise DatasetNotFound(
            f"{dataset.name}: no folder given for {dataset.title}. {dataset.how_to_get} Then pass --data-root "
            f"{dataset.name}=FOLDER, or set ANAUS_DATA to a folder that holds {dataset.name}/. Without the data, "
            "--preset demo runs on generated phantoms"
        )
    dataset.skips_unreadable = skips_unreadable
    return dataset.scan(folder)
