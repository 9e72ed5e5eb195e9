"""ImageNet initialisation: no pre-training; the published weights of torchvision are the result."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import Initialisation, Objective


class ImageNet(Initialisation):
    """Weights trained on ImageNet, not trained further."""

    name = "imagenet"
    reference = "He et al., Deep residual learning, CVPR 2016; weights IMAGENET1K_V1 of torchvision"
    initialisation: ClassVar[Literal["imagenet", "random"] | None] = "imagenet"

    def describe(self) -> dict[str, str]:
        """Says what the encoder is."""
        return {"encoder": "ImageNet weights, not pre-trained on ultrasound"}


@hookimpl
def anaus_objectives() -> list[type[Objective[Any]]]:
    """The objective of this module."""
    return [ImageNet]
