"""What a plugin provides and what it is given.

A plugin class describes: its name, version, settings, needs and source. It is cheap to import, so that `show` and
`plan` answer at once: torch comes from `anaus_bench.lazy`. Networks are built on demand (`Objective.build`) and hold
all state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Protocol, TypeVar

from anaus_bench.backbones import BACKBONES
from anaus_bench.config import Settings
from anaus_bench.weights import IMAGENET, PublishedWeights

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from anaus_bench.data.corpus import Entry, PackedCorpus
    from anaus_bench.data.sampling import Sampler
    from anaus_bench.data.views import Batch, View
    from anaus_bench.nn.encoder import Encoder

S = TypeVar("S", bound=Settings)


class Plugin(Generic[S]):
    """What all plugins share.

    Attributes:
        name: The name on the command line.
        version: Raised when results change; it enters the key of every stage the plugin takes part in.
        settings_class: Its settings; the defaults are the paper's values.
        reference: Paper and identifier, as one would cite it; BibTeX or a DOI/arXiv id.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    settings_class: ClassVar[type[Settings]] = Settings
    reference: ClassVar[str] = ""

    def __init__(self, settings: S) -> None:
        self.settings = settings

    def identity(self) -> dict[str, str]:
        """What shapes results beside the settings, such as the digest of a weights file; enters the keys."""
        return {}

    def describe(self) -> dict[str, str]:
        """What a reader of a result must know, such as a random start; shown and recorded."""
        return {}


# ---- data ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """One image (or one frame of a video) of a data set.

    Attributes:
        sample_id: Unique and stable: the path relative to the root, plus `#<frame>` for a frame of a video.
        group_id: Unit of leakage (patient, else video, else near-duplicate group): never split over folds.
        path: File relative to the root.
        mask_paths: Mask files relative to the root; their union is the mask.
        label: Class id, or None.
        video_id: The clip the frame is from, or None.
        frame_index: Position in the clip, from 0, or None.
        patient_id: The patient, where known.
    """

    sample_id: str
    group_id: str
    path: str
    mask_paths: tuple[str, ...] = ()
    label: int | None = None
    video_id: str | None = None
    frame_index: int | None = None
    patient_id: str | None = None


@dataclass(frozen=True)
class Index:
    """What `Dataset.scan` found: the samples in natural order and what identifies them.

    Attributes:
        root: Folder the paths are relative to.
        samples: In natural order of their ids.
        fingerprint: Hash of the names and contents of all files used.
        phantom: Whether the images are generated; results on them are marked everywhere.
        warnings: Remarks that do not forbid using the data, such as an unusual count.
        unreadable: File that was left out because it cannot be read -> why; empty unless asked for.
    """

    root: Path
    samples: tuple[Sample, ...]
    fingerprint: str
    phantom: bool = False
    warnings: tuple[str, ...] = ()
    unreadable: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Picture:
    """One decoded sample.

    Attributes:
        image: (H, W) uint8 gray.
        mask: (H, W) uint8 structure ids (0 = none), or None.
        remarks: What a person should look at, such as a mask that marks everything; each names its file.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8] | None = None
    remarks: tuple[str, ...] = ()


class Dataset(Plugin[S]):
    """A folder in its official layout.

    Attributes:
        title: Name in full.
        classes: Names of the class labels 0, 1, ...; empty if there are none.
        structures: Names of the mask ids 1, 2, ...; empty if there are no masks.
        licence, url: As stated by the publishers.
        how_to_get: Where to get it and which folder to put where, in two or three sentences.
        expected_count: Documented number of samples, or None.
        skips_unreadable: Whether `scan` leaves out clips that cannot be read, and lists them, in place of refusing.
    """

    title: ClassVar[str]
    classes: ClassVar[tuple[str, ...]] = ()
    structures: ClassVar[tuple[str, ...]] = ()
    licence: ClassVar[str] = ""
    url: ClassVar[str] = ""
    how_to_get: ClassVar[str] = ""
    expected_count: ClassVar[int | None] = None
    skips_unreadable: bool = False

    def scan(self, root: Path) -> Index:
        """The samples under `root`, by names and headers: no image is decoded.

        Raises:
            DataError: Root missing, wrong layout, another version, missing or orphan masks.
        """
        raise NotImplementedError

    def read(self, index: Index, sample: Sample) -> Picture:
        """Decodes one sample at its own size.

        Raises:
            DataError: Unreadable file, or mask and image of different sizes.
        """
        raise NotImplementedError

    def groups(self, index: Index) -> tuple[str, ...]:
        """Group of each sample; override where it needs the pixels (near-duplicate groups)."""
        return tuple(sample.group_id for sample in index.samples)

    def published_folds(self, index: Index) -> list[int] | None:
        """Fold of each sample in a published protocol, -1 = fixed test set of all folds; None where there is none."""
        return None

    def write_phantoms(self, root: Path, count: int, size: int, seed: int) -> None:
        """Writes about `count` generated images in this data set's official layout into the empty folder `root`."""
        from anaus_bench.errors import DataError

        raise DataError(
            f"data set {self.name!r} cannot be generated; give its folder with --data-root {self.name}=PATH"
        )


# ---- mask sources ----------------------------------------------------------------------------------------------------


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


# ---- objectives ------------------------------------------------------------------------------------------------------

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
        from anaus_bench.data.sampling import ImageSampler

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


# ---- tasks -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """A column of a table: key in the records, heading, direction, whether it is a fraction (printed in %)."""

    key: str
    title: str
    higher_is_better: bool = True
    fraction: bool = True


@dataclass(frozen=True)
class Case:
    """One labelled image of a task; pictures are read on demand.

    Attributes:
        sample: Its index entry.
        read: Decodes it: `image` (H, W) uint8, `mask` (H, W) uint8 or None.
    """

    sample: Sample
    read: Callable[[], Picture]


@dataclass(frozen=True)
class Fold:
    """Cases to train on and cases held out, for one fold."""

    number: int
    train: tuple[Case, ...]
    test: tuple[Case, ...]
    classes: tuple[str, ...] = ()


class Task(Plugin[S]):
    """A data set, a protocol and metrics.

    Attributes:
        dataset: Name of the data set.
        metrics: Columns of the table; the first is the headline.
        split_settings: Settings that shape `select` and the folds; the others leave the folds as they are.
    """

    dataset: ClassVar[str]
    metrics: ClassVar[tuple[Metric, ...]]
    split_settings: ClassVar[tuple[str, ...]] = ("folds", "fold_seed")

    def select(self, samples: Sequence[Sample]) -> list[Sample]:
        """The samples that take part, in order; all by default."""
        return list(samples)

    def fit(self, encoder: Encoder, fold: Fold, ctx: StageContext) -> None:
        """Fine-tunes on `fold.train` and writes predictions of `fold.test` into `ctx.out`."""
        raise NotImplementedError

    def score(self, folds: Sequence[tuple[Fold, Path]]) -> Scores:
        """Scores of all folds from the folders that `fit` wrote."""
        raise NotImplementedError

    def draw(self, case: Case, predictions: Path) -> tuple[NDArray[np.uint8] | None, NDArray[np.uint8] | None, str]:
        """For the panel: true and predicted mask (H, W) uint8 of a held-out case, None without one; caption."""
        raise NotImplementedError


@dataclass(frozen=True)
class Scores:
    """Result of `Task.score`.

    Attributes:
        rows: One dictionary per image, with `image_id`, `fold` and its metrics; stored as CSV.
        folds: Per fold, metric key -> value.
        pooled: Metric key -> value over all images together.
        notes: Definitions and counts that a reader needs (resolution, empty rule, penalised images).
    """

    rows: list[dict[str, Any]]
    folds: list[dict[str, float]]
    pooled: dict[str, float]
    notes: list[str] = field(default_factory=list)


# ---- what a running stage is given -----------------------------------------------------------------------------------


class Tracker(Protocol):
    """Progress of one loop: shown to the user with ETA, the logged values, images/s and the share of time waiting."""

    def advance(self, step: int, *, images: int, waited: float, values: Mapping[str, float] | None = None) -> None:
        """Reports that `step` steps are done, `images` more images, and seconds waited for data since the last call."""


class Progress(Protocol):
    """How a stage talks to the user."""

    def track(self, label: str, total: int, done: int = 0) -> AbstractContextManager[Tracker]:
        """A progress line for a loop of `total` steps, of which `done` were done before (resumed)."""

    def note(self, text: str) -> None:
        """One line of information."""


@dataclass(frozen=True)
class StageContext:
    """What a running stage is given beside its inputs.

    Attributes:
        out: Folder for the artifact's files; published when the stage returns.
        resume: Folder for private resume state; kept when the stage is killed, dropped when it is done.
        device: Where to compute.
        seed: Seed of the stage: everything random is a function of it and the step.
        progress: How to talk to the user.
        checkpoint_seconds: Least time between checkpoints; 0 saves after every step.
    """

    out: Path
    resume: Path
    device: torch.device
    seed: int
    progress: Progress
    checkpoint_seconds: float = 60.0


@dataclass(frozen=True)
class StageInputs:
    """Where a stage finds what it works on.

    Attributes:
        folders: Role -> folder of the input's artifact.
        roots: Data set name -> folder of the user's data.
        phantom: Whether any of the inputs rests on generated images.
    """

    folders: Mapping[str, Path]
    roots: Mapping[str, Path]
    phantom: bool = False


def batches(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover `range(count)`."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
