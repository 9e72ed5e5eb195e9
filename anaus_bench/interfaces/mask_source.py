"""A mask source: images -> label maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from anaus_bench.interfaces.plugin import Plugin, S
from anaus_bench.interfaces.stage import StageContext

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from anaus_bench.corpus.packed import Entry, PackedCorpus


class MaskSource(Plugin[S]):
    """Images -> label maps.

    Attributes:
        learned: Whether `fit` must run (once, as a stage of its own) before `segment`.
        needs_truth: Whether `segment` needs the ground truth (oracle sources).
        per_image: Whether it is plain CPU work image by image, which is then spread over processes.
        stored: Whether the label maps exist already: `read` gives them, and `segment` cannot be asked.
    """

    learned: bool = False
    needs_truth: ClassVar[bool] = False
    per_image: ClassVar[bool] = False
    stored: ClassVar[bool] = False

    def paired_corpora(self) -> str:
        """Names of the paired data sets that `fit` trains on, joined by `+`; empty: the images of the corpus itself."""
        return ""

    def fit(self, pairs: PackedCorpus, ctx: StageContext) -> dict[str, Tensor]:
        """Trains on images, with their masks if paired, and returns the state that `load` takes (safetensors)."""
        raise NotImplementedError

    def load(self, state: Mapping[str, Tensor], structures: Sequence[str], device: torch.device) -> None:
        """Makes the source ready from the state that `fit` returned; `structures` are those of its pairs."""
        raise NotImplementedError

    def segment(self, images: Tensor, truth: Tensor | None = None) -> Tensor:
        """Label maps of a batch.

        Args:
            images: (B, 1, H, W) uint8.
            truth: (B, H, W) uint8 ground-truth ids, where `needs_truth`.

        Returns:
            (B, H, W) uint8 on the device of `images`; ids of each image are contiguous from 0, where 0 is the
            background for sources that know one; every pixel has exactly one id.
        """
        raise NotImplementedError

    def check(self, corpus: PackedCorpus) -> None:
        """Refuses a corpus of which label maps cannot be made, before any work is done.

        Raises:
            MissingMask: The source needs ground truth and there is none.
        """
        from anaus_bench.errors import MissingMask

        if self.needs_truth and corpus.truth is None:
            raise MissingMask(f"mask source {self.name!r} needs ground truth; this corpus has no masks")

    def read(self, entries: Sequence[Entry], size: int) -> NDArray[np.uint8]:
        """Label maps (B, size, size) uint8 of these images of a corpus, as `segment` gives them, where `stored`."""
        raise NotImplementedError
