"""The oracle: the annotated masks themselves, an upper bound for every other mask source."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import OracleSource
from anaus_bench.lazy import torch
from anaus_bench.settings.base import Settings

if TYPE_CHECKING:
    from torch import Tensor


class GroundTruthSettings(Settings):
    """How annotated structures become regions."""

    components: bool = Field(True, description="Each 8-connected part of a structure is a region of its own.")


class GroundTruth(OracleSource[GroundTruthSettings]):
    """The ground truth: the oracle.

    Regions of the ground truth; id 0 is what no mask marks.
    """

    name = "groundtruth"
    settings_class = GroundTruthSettings

    def segment(self, images: Tensor, truth: Tensor) -> Tensor:
        """The true regions, by decreasing area if split into components, else in the order of the structures."""
        from anaus_bench.corpus.label_maps import contiguous, split_components

        maps = [
            split_components(ids, min_area=1, most=255) if self.settings.components else contiguous(ids)
            for ids in truth.cpu().numpy()
        ]
        return torch.stack([torch.from_numpy(one) for one in maps]).to(images.device)


@hookimpl
def anaus_mask_sources() -> list[type[OracleSource[Any]]]:
    """The oracle."""
    return [GroundTruth]
