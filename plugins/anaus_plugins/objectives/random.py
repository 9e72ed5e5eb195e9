"""Random initialisation: no pre-training at all, the floor of every comparison."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import Initialisation, Objective


class Random(Initialisation):
    """A random start, not trained."""

    name = "random"
    reference = "He et al., Deep residual learning, CVPR 2016 (initialisation of torchvision's ResNet)"
    initialisation: ClassVar[Literal["imagenet", "random"] | None] = "random"

    def describe(self) -> dict[str, str]:
        """Says what the encoder is."""
        return {"encoder": "random weights, not pre-trained"}


@hookimpl
def anaus_objectives() -> list[type[Objective[Any]]]:
    """The objective of this module."""
    return [Random]
