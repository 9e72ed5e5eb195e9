"""The whole image as one region: the control that shows what any masks add."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import ImageSource
from anaus_bench.lazy import torch
from anaus_bench.settings.base import Settings

if TYPE_CHECKING:
    from torch import Tensor


class Whole(ImageSource[Settings]):
    """The whole image as one region: the control without regions.

    One region per image, letterbox included.
    """

    name = "whole"

    def segment(self, images: Tensor) -> Tensor:
        """Zeros."""
        return torch.zeros_like(images[:, 0])


@hookimpl
def anaus_mask_sources() -> list[type[ImageSource[Any]]]:
    """Whole image."""
    return [Whole]
