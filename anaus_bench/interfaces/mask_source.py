"""A mask source: what makes the label maps of a corpus, and from what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from anaus_bench.interfaces.plugin import Plugin, S
from anaus_bench.interfaces.stage import StageContext
from anaus_bench.lazy import torch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from anaus_bench.corpus.packed import Entry, PackedCorpus


class MaskSource(Plugin[S]):
    """What makes label maps; a plugin derives from the class below that says from what.

    Label maps are (B, H, W) uint8; ids of each image are contiguous from 0, where 0 is the background for sources that
    know one; every pixel has exactly one id.
    """

    def check(self, corpus: PackedCorpus) -> None:
        """Refuses a corpus of which label maps cannot be made, before any work is done."""

    def label_maps(self, images: Tensor, truth: Tensor | None, entries: Sequence[Entry]) -> Tensor:
        """Label maps (B, H, W) uint8 of images of a corpus that passed `check`.

        Args:
            images: (B, 1, H, W) uint8.
            truth: Their ground-truth ids (B, H, W) uint8, if the corpus has them, on the same device.
            entries: What the corpus says of each.
        """
        raise NotImplementedError


class ImageSource(MaskSource[S]):
    """Label maps from the images alone."""

    def segment(self, images: Tensor) -> Tensor:
        """Label maps (B, H, W) uint8 of images (B, 1, H, W) uint8, on their device."""
        raise NotImplementedError

    def label_maps(self, images: Tensor, truth: Tensor | None, entries: Sequence[Entry]) -> Tensor:
        """From the images."""
        return self.segment(images)


class PartitionSource(ImageSource[S]):
    """Label maps from plain CPU work, picture by picture, which is spread over processes."""

    def partition(self, picture: NDArray[np.uint8]) -> NDArray[np.integer]:
        """Region of each pixel (h, w), any ids from 0, of a picture (h, w) without its black margins."""
        raise NotImplementedError

    def segment(self, images: Tensor) -> Tensor:
        """The partitions with ids by decreasing area; black margins are one region beside them."""
        from anaus_bench.corpus.label_maps import partition_images

        return partition_images(images, self.partition)


class LearnedSource(ImageSource[S]):
    """Label maps of a network that is fitted first, once, in a stage of its own."""

    @property
    def needs_fit(self) -> bool:
        """Whether `fit` and `load` come before `segment`; not where the settings name what was trained elsewhere."""
        return True

    def paired_corpora(self) -> str:
        """Names of the paired data sets that `fit` trains on, joined by `+`; empty: the images of the corpus itself."""
        return ""

    def fit(self, pairs: PackedCorpus, ctx: StageContext) -> dict[str, Tensor]:
        """Trains on images, with their masks if paired, and returns the state that `load` takes (safetensors)."""
        raise NotImplementedError

    def load(self, state: Mapping[str, Tensor], structures: Sequence[str], device: torch.device) -> None:
        """Makes the source ready from the state that `fit` returned; `structures` are those of its pairs."""
        raise NotImplementedError


class OracleSource(MaskSource[S]):
    """Label maps from the images and their ground truth: an upper bound."""

    def segment(self, images: Tensor, truth: Tensor) -> Tensor:
        """Label maps (B, H, W) uint8 of images (B, 1, H, W) uint8 with truth ids (B, H, W) uint8, on their device."""
        raise NotImplementedError

    def check(self, corpus: PackedCorpus) -> None:
        """The corpus must have ground truth.

        Raises:
            MissingMask: It has none.
        """
        from anaus_bench.errors import MissingMask

        if corpus.truth is None:
            raise MissingMask(f"mask source {self.name!r} needs ground truth; this corpus has no masks")

    def label_maps(self, images: Tensor, truth: Tensor | None, entries: Sequence[Entry]) -> Tensor:
        """From the images and their ground truth."""
        assert truth is not None, "check comes first"
        return self.segment(images, truth)


class StoredSource(MaskSource[S]):
    """Label maps that exist already."""

    def read(self, entries: Sequence[Entry], size: int) -> NDArray[np.uint8]:
        """Label maps (B, size, size) uint8 of these images of a corpus."""
        raise NotImplementedError

    def label_maps(self, images: Tensor, truth: Tensor | None, entries: Sequence[Entry]) -> Tensor:
        """From where they are stored."""
        return torch.from_numpy(self.read(entries, images.shape[-1]))
