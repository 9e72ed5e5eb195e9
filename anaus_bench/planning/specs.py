"""What stands in the spec of each kind of stage.

The planner writes specs, stages and readers of records read them; a record holds its stage's as JSON.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import pydantic

from anaus_bench.interfaces import Stage
from anaus_bench.registry import PluginSpec


class Spec(pydantic.BaseModel):
    """All settings that shape the result of a stage.

    Attributes:
        kind: Of the stage: its module in `anaus_bench/stages` and its folder in the store.
        version: Raised when stages of this kind change their results.
        files: Fields that say where a file is; they do not enter the key.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", defer_build=True)

    kind: ClassVar[str] = ""
    version: ClassVar[int] = 2
    files: ClassVar[tuple[str, ...]] = ()

    def locations(self) -> tuple[str, ...]:
        """Dotted names of the values that say where a file is."""
        return (*self.files, *_locations(self))


def _locations(value: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(value, PluginSpec):
        yield from (f"{prefix}settings.{name}" for name in value.locations)
    elif isinstance(value, Mapping):
        for name, below in value.items():
            yield from _locations(below, f"{prefix}{name}.")
    elif isinstance(value, pydantic.BaseModel):
        yield from _locations(dict(value), prefix)


class DatasetSpec(PluginSpec):
    """A data set; `fingerprint` is that of a user's folder, None where a stage generates the images."""

    fingerprint: str | None = None


class PhantomsSpec(Spec):
    """About `count` generated images of `size` pixels a side."""

    kind = "phantoms"

    dataset: DatasetSpec
    count: int
    size: int
    seed: int


class CorpusSpec(Spec):
    """Data sets packed at `size` pixels a side, or that of the largest image where all are smaller."""

    kind = "corpus"

    size: int
    datasets: dict[str, DatasetSpec]
    unreadable: Literal["refuse", "skip"] = "refuse"


class FitSpec(Spec):
    """A learned mask source."""

    kind = "fit"

    masks: PluginSpec
    seed: int


class MasksSpec(Spec):
    """Label maps of a corpus."""

    kind = "masks"

    masks: PluginSpec


class OfTask(Spec):
    """What all stages of a task share: the task, with those of its settings that matter to the stage, and its data."""

    task: PluginSpec
    dataset: DatasetSpec


class FoldsSpec(OfTask):
    """The folds of a task."""

    kind = "folds"


class AuditSpec(OfTask):
    """What to do with images of a corpus that stand in a task's data."""

    kind = "audit"

    overlap: Literal["refuse", "exclude", "allow"]


class PretrainSpec(Spec):
    """An encoder.

    Attributes:
        init: What it starts from.
        weights: Digest of the weights it starts from, and `weights_file` where they are.
        share: Of the corpus's clips that are trained on.
        pretrain: The protocol's settings; None for an encoder that is not trained.
    """

    kind = "pretrain"
    files = ("weights_file",)

    objective: PluginSpec
    backbone: str
    init: str
    seed: int
    share: float = 1.0
    weights: str | None = None
    weights_file: str | None = None
    pretrain: dict[str, Any] | None = None


class FinetuneSpec(OfTask):
    """A network for one fold."""

    kind = "finetune"

    protocol: PluginSpec
    fold: int
    seed: int


class PredictSpec(FinetuneSpec):
    """Predictions of the held-out images of one fold, by the network of that spec."""

    kind = "predict"


class ScoreSpec(OfTask):
    """Scores of all folds."""

    kind = "score"

    protocol: PluginSpec


class PanelSpec(OfTask):
    """Pictures of held-out images; the mask source sees them packed at `size` pixels."""

    kind = "panel"

    masks: PluginSpec | None
    size: int


def stage_of(spec: Spec, title: str, **rest: Any) -> Stage:
    """The stage of a spec; `rest`: inputs, roots and labels."""
    return Stage(spec.kind, spec.version, title, spec.model_dump(mode="json"), spec.locations(), **rest)


SPECS: Mapping[str, type[Spec]] = {
    spec.kind: spec
    for spec in (
        *(PhantomsSpec, CorpusSpec, AuditSpec, FitSpec, MasksSpec, PretrainSpec),
        *(FoldsSpec, FinetuneSpec, PredictSpec, ScoreSpec, PanelSpec),
    )
}
