"""Settings that several plugins share, and types of them."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import pydantic

from anaus_bench.settings.base import Settings


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 < value[0] <= value[1] <= 1:
        raise ValueError("expected two numbers with 0 < low <= high <= 1")
    return value


def _one_group(pattern: str) -> str:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"no regular expression ({error})") from None
    if groups != 1:
        raise ValueError(f"expected a regular expression with one group, found {groups}")
    return pattern


CropArea = Annotated[tuple[float, float], pydantic.AfterValidator(_ordered)]
"""Range of a random crop's share of the valid area."""

ViewPattern = Annotated[str, pydantic.AfterValidator(_one_group)]
"""Regular expression whose one group is the acoustic view in the id of a clip."""

CAMUS_VIEWS = "(?i)([2-5]CH)"


class LabelSettings(Settings):
    """Which labels of a corpus are learned; `anaus_bench.corpus.tags.labels_of` reads them."""

    label_set: Literal["classes", "classes+views"] = pydantic.Field(
        "classes+views",
        description="The class labels, and the views of clips that have none, so that every data set of the default "
        "corpus takes part; or the class labels alone",
    )
    view_pattern: ViewPattern = pydantic.Field(
        CAMUS_VIEWS, description="Regular expression whose group is the view in the id of a clip, as CAMUS has it"
    )
