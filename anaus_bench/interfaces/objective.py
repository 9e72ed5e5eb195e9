"""An objective: a pre-training method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from anaus_bench.interfaces.plugin import Plugin, S
from anaus_bench.nn.backbones import BACKBONES
from anaus_bench.nn.weights import IMAGENET, PublishedWeights
from anaus_bench.settings.base import Settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from anaus_bench.corpus.batch import Batch
    from anaus_bench.corpus.packed import PackedCorpus
    from anaus_bench.corpus.sampling import Sampler
    from anaus_bench.corpus.view import View
    from anaus_bench.nn.encoder import Encoder


Need = Literal["masks", "labels", "video"]


class Objective(Plugin[S]):
    """A pre-training method.

    Attributes:
        needs: What the corpus must have; checked before training.
        trains: False for initialisations, which only build an encoder.
        initialisation: What the encoder must start from; None leaves it to the pre-training settings.
        makes_own_groups: Whether it can group pixels itself, so that masks are optional.
        backbones: Those that its networks can be built around.
        imagenet: Backbone -> the weights that `load_imagenet` takes.
        masks_become: What masks are to it, where it takes any.
        without: What a corpus may lack -> what the method does then.
        recipes: Preset -> values of the pre-training protocol, such as the paper's own under `native`.
    """

    needs: ClassVar[frozenset[Need]] = frozenset()
    trains: ClassVar[bool] = True
    initialisation: ClassVar[Literal["imagenet", "random"] | None] = None
    makes_own_groups: ClassVar[bool] = False
    backbones: ClassVar[tuple[str, ...]] = BACKBONES
    imagenet: ClassVar[Mapping[str, PublishedWeights]] = IMAGENET
    masks_become: ClassVar[str] = ""
    without: ClassVar[Mapping[str, str]] = {}
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    @classmethod
    def takes_masks(cls) -> Literal["needed", "optional", "none"]:
        """Whether masks must, may or must not be given."""
        return "needed" if "masks" in cls.needs else "optional" if cls.makes_own_groups else "none"

    def default_backbone(self, preset: str) -> str:
        """The backbone of a cell that names none."""
        return self.backbones[0]

    def load_imagenet(self, encoder: Encoder, source: str) -> None:
        """Loads ImageNet weights from a path, or `official`, before `build`.

        Raises:
            WeightsError: Absent, damaged or of another model.
        """
        from anaus_bench.nn.encoder import load_imagenet

        load_imagenet(encoder, source)

    def finest_stride(self) -> int:
        """Finest map of the encoder's pyramid that is used: 4, 8 or 16; 32 if none is."""
        return 32

    def views(self, size: int) -> tuple[View, ...]:
        """The recipe of each view, (size, size) pixels."""
        raise NotImplementedError

    def labels(self, corpus: PackedCorpus) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """Class (N,) of each image, -1 = none, and the classes' names; those of the corpus by default."""
        return corpus.labels(), corpus.classes

    def corpus_facts(self, corpus: PackedCorpus, seed: int) -> dict[str, str]:
        """What the method makes of this corpus: its labels or clips, and what stands for those it lacks; recorded."""
        return {}

    def sampler(self, corpus: PackedCorpus, batch: int, seed: int) -> Sampler:
        """Draws the images of each step, `batch` items; single images by default.

        Raises:
            DataError: The corpus lacks what the method compares, such as clips.
        """
        from anaus_bench.corpus.sampling import ImageSampler

        return ImageSampler(len(corpus), batch, seed)

    def build(self, encoder: Encoder, num_classes: int = 0) -> nn.ModuleDict:
        """All networks, with the online encoder under `encoder`: what is exported, nothing else survives.

        Target networks have `requires_grad` False. All state lives here (queues as buffers).
        """
        raise NotImplementedError

    def loss(self, nets: nn.ModuleDict, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar loss and detached scalars to log. Never calls `.item()`: that would wait for the device."""
        raise NotImplementedError

    def lr_factor(self, batch: Batch, progress: float) -> float:
        """Factor of the learning rate of a step; `progress` = step / steps in [0, 1)."""
        return 1.0

    def before_forward(self, nets: nn.ModuleDict, progress: float) -> None:
        """Called before each step's loss; `progress` = step / steps in [0, 1)."""

    def after_step(self, nets: nn.ModuleDict, progress: float) -> None:
        """Called after each optimiser step; `progress` = (step + 1) / steps in (0, 1]."""


class Initialisation(Objective[Settings]):
    """An encoder that is not trained: what `initialisation` says is the result."""

    trains: ClassVar[bool] = False

    def views(self, size: int) -> tuple[View, ...]:
        """None: nothing is trained."""
        return ()

    def build(self, encoder: Encoder, num_classes: int = 0) -> nn.ModuleDict:
        """The encoder alone."""
        from anaus_bench.lazy import nn

        return nn.ModuleDict({"encoder": encoder})

    def loss(self, nets: nn.ModuleDict, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Never called, because `trains` is False.

        Raises:
            TypeError: Always.
        """
        raise TypeError(f"objective {self.name!r} is an initialisation and has no loss")
