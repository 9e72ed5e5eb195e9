"""Types of settings fields that several plugins share."""

from __future__ import annotations

from typing import Annotated

import pydantic


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 < value[0] <= value[1] <= 1:
        raise ValueError("expected two numbers with 0 < low <= high <= 1")
    return value


CropArea = Annotated[tuple[float, float], pydantic.AfterValidator(_ordered)]
"""Range of a random crop's share of the valid area."""
