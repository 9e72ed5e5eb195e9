"""ImageNet initialisation: no pre-training; the published weights of torchvision are the result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from anaus_bench.config import Settings
from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import Objective
from anaus_bench.lazy import nn

if TYPE_CHECKING:
    from torch import Tensor

    from anaus_bench.data.views import Batch, View
    from anaus_bench.nn.encoder import Encoder


class ImageNet(Objective[Settings]):
    """Weights trained on ImageNet, not trained further."""

    name = "imagenet"
    reference = "He et al., Deep residual learning, CVPR 2016; weights IMAGENET1K_V1 of torchvision"
    trains: ClassVar[bool] = False
    initialisation: ClassVar[Literal["imagenet", "random"] | None] = "imagenet"

    def describe(self) -> dict[str, str]:
        """Says what the encoder is."""
        return {"encoder": "ImageNet weights, not pre-trained on ultrasound"}

    def views(self, size: int) -> tuple[View, ...]:
        """None: nothing is trained."""
        return ()

    def build(self, encoder: Encoder, num_classes: int = 0) -> nn.ModuleDict:
        """The encoder alone."""
        return nn.ModuleDict({"encoder": encoder})

    def loss(self, nets: nn.ModuleDict, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Never called, because `trains` is False.

        Raises:
            TypeError: Always.
        """
        raise TypeError("objective 'imagenet' is an initialisation and has no loss")


@hookimpl
def anaus_objectives() -> list[type[Objective[Any]]]:
    """The objective of this module."""
    return [ImageNet]
