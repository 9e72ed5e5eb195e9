"""Gray levels that are not in an image file: what range they must have."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from anaus_bench.errors import UnreadableFile


def check_gray(levels: NDArray[Any], where: str) -> None:
    """Refuses values that are not gray levels 0 to 255, among them those that were scaled to 0..1.

    Args:
        levels: Any numbers.
        where: What holds them, for the message.

    Raises:
        UnreadableFile: Values below 0 or above 255, no numbers, or none above 1 though some are above 0.
    """
    if not levels.size:
        return
    low, high = levels.min(), levels.max()
    if not (low >= 0 and high <= 255):  # also not a number
        raise UnreadableFile(f"{where} holds values from {low} to {high}; expected gray levels 0 to 255")
    if 0 < high <= 1 or (levels.dtype == np.bool_ and high):
        raise UnreadableFile(
            f"{where} holds values from {low} to {high}, scaled ones; expected gray levels 0 to 255: save it unscaled"
        )
