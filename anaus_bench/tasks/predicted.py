"""The rows of a fold's `predictions.csv`, read back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pydantic

from anaus_bench.machine.artifacts import damaged, read_table

Probability = Annotated[float, pydantic.Field(ge=0, le=1)]
PREFIX = "p_"


class PredictedRow(pydantic.BaseModel):
    """One image: its true class, and under `p_<class>` the probability of each."""

    model_config = pydantic.ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Probability]

    image_id: str
    group_id: str
    fold: int
    y_true: int = pydantic.Field(ge=0)

    @property
    def probabilities(self) -> dict[str, float]:
        """Class -> its probability, in the order of the classes."""
        return {name.removeprefix(PREFIX): value for name, value in self.__pydantic_extra__.items()}


def read_predicted(path: Path) -> dict[str, PredictedRow]:
    """Image id -> its row.

    Raises:
        StoreError: Absent, or not of this format.
    """
    rows = read_table(path, PredictedRow)
    by_image = {row.image_id: row for row in rows}
    if not rows or len(by_image) < len(rows):
        raise damaged(path, f"{len(rows)} rows of {len(by_image)} images")
    for row in rows:
        if row.y_true >= len(row.probabilities):
            raise damaged(path, f"{row.image_id!r} is of class {row.y_true} of {len(row.probabilities)}")
    return by_image
