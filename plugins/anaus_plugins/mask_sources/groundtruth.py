"""The oracle: the annotated masks themselves, an upper bound for every other mask source."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from anaus_bench.errors import DataError
from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import MaskSource
from anaus_bench.lazy import torch
from anaus_bench.settings.base import Settings

if TYPE_CHECKING:
    from torch import Tensor


class GroundTruthSettings(Settings):
    """How annotated structures become regions."""

    components: bool = Field(True, description="Each 8-connected part of a structure is a region of its own.")


class GroundTruth(MaskSource[GroundTruthSettings]):
    """The ground truth: the oracle.

    Regions of the ground truth; id 0 is what no mask marks.
    """

    name = "groundtruth"
    settings_class = GroundTruthSettings
    needs_truth = True

    def segment(self, images: Tensor, truth: Tensor | None = None) -> Tensor:
        """The true regions, by decreasing area if split into components, else in the order of the structures.

        Raises:
            DataError: The corpus has no masks.
        """
        from anaus_bench.corpus.label_maps import contiguous, split_components

        if truth is None:
            raise DataError("masks 'groundtruth': the corpus has no masks; pass a --corpus with masks or other --masks")
        maps = [
            split_components(ids, min_area=1, most=255) if self.settings.components else contiguous(ids)
            for ids in truth.cpu().numpy()
        ]
        return torch.stack([torch.from_numpy(one) for one in maps]).to(images.device)


@hookimpl
def anaus_mask_sources() -> list[type[MaskSource[Any]]]:
    """The oracle."""
    return [GroundTruth]
