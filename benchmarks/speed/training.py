"""Pre-training of any objective on generated images, watched from inside: its steps in turn with something else."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from anaus_bench.corpus.batch import Batch
from anaus_bench.corpus.packed import Entry, PackedCorpus
from anaus_bench.errors import SettingsError
from anaus_bench.interfaces import Objective, StageContext
from anaus_bench.kit.synthetic import silent_context, synthetic_corpus
from anaus_bench.nn.encoder import Encoder
from anaus_bench.settings.core import PretrainSettings
from anaus_bench.training.pretraining import pretrain
from benchmarks.speed.timing import clock

IMAGES, DISTINCT, CLIP = 4224, 64, 16  # more images than a queue has keys; frames of a clip
ENLARGED = 4  # to 256 pixels


@dataclass(frozen=True)
class Run:
    """How a method is run: `batch` items per step, views of `size` pixels, `repeats` steps that count.

    With `profile` the parts that count operators print the slowest of them.
    """

    batch: int = 8
    size: int = 224
    repeats: int = 3
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: str = "fp32"
    profile: bool = False

    def autocast(self) -> torch.autocast:
        """That of pre-training at this precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


@dataclass
class Seconds:
    """Of each counted step: as a whole, its optimiser and moving averages alone, and what was run in turn with it."""

    steps: list[float] = field(default_factory=list)
    updates: list[float] = field(default_factory=list)
    others: list[tuple[float, ...]] = field(default_factory=list)


Others = Callable[[nn.ModuleDict, Batch], Sequence[Callable[[], object]]]
"""Given networks and batch of the first step, within its autocast: the functions that are run after each step."""


def alternate(objective: Objective[Any], run: Run, others: Others) -> Seconds:
    """Times the steps of `pretrain` in turn with other functions; the first round is not counted.

    The steps are spread over the schedule of the method, so that what changes with the progress is seen at all stages.

    Raises:
        AnausError: The objective cannot train on the generated corpus, or not with this batch.
    """
    watched = _Alternating(objective, run, others)
    watch(watched, run, run.repeats + 1)
    return watched.seconds


def first_batch(objective: Objective[Any], run: Run) -> tuple[nn.ModuleDict, Batch]:
    """The networks of an objective and the batch of its first step.

    Raises:
        AnausError: As `alternate`.
    """
    found: list[tuple[nn.ModuleDict, Batch]] = []

    def stop(nets: nn.ModuleDict, batch: Batch) -> Sequence[Callable[[], object]]:
        found.append((nets, batch))
        raise Enough

    watch(_Alternating(objective, run, stop), run, run.repeats + 1)
    return found[0]


def taken(objective: Objective[Any], run: Run) -> Run:
    """The run with its batch doubled until the method takes it, such as one that splits it; as it is if none is taken.

    Raises:
        AnausError: The objective cannot train on the generated corpus.
    """
    batch = run.batch
    while batch <= IMAGES:
        try:
            objective.sampler(generated_corpus(), batch, 0)
        except SettingsError:
            batch *= 2
        else:
            return dataclasses.replace(run, batch=batch)
    return run


class Enough(BaseException):
    """Ends a training before it saves anything; no error, so nothing on the way takes it for one."""


class Watched:
    """An objective for `pretrain` that is looked at from inside; it raises `Enough` when it has seen all it wants."""

    def __init__(self, objective: Objective[Any]) -> None:
        self.objective = objective

    def __getattr__(self, name: str) -> Any:
        return getattr(self.objective, name)

    def before_update(self, *_: object) -> None:
        """Called when a step has its gradients."""


def watch(watched: Watched, run: Run, steps: int) -> None:
    """Pre-trains on the generated corpus for at most so many steps.

    Raises:
        AnausError: The objective cannot train on the generated corpus, or not with this batch.
    """
    objective, corpus = watched.objective, generated_corpus()
    settings = PretrainSettings(
        size=run.size, batch=run.batch, steps=steps, init="random", precision=cast("Any", run.precision)
    )
    label_maps = corpus.truth if "masks" in objective.needs else None
    torch.manual_seed(0)
    encoder = Encoder(objective.default_backbone("paper"), objective.finest_stride())
    handle = register_optimizer_step_pre_hook(watched.before_update)
    try:
        with tempfile.TemporaryDirectory() as folder:
            ctx = context(Path(folder), run)
            pretrain(cast("Objective[Any]", watched), encoder, corpus, label_maps, np.arange(IMAGES), settings, ctx)
    except Enough:
        return
    finally:
        handle.remove()


def context(folder: Path, run: Run) -> StageContext:
    """That of a silent stage on the device of the run, without checkpoints under way."""
    return dataclasses.replace(silent_context(folder), device=run.device, checkpoint_seconds=math.inf)


class _Alternating(Watched):
    """Times the steps in turn with other functions."""

    def __init__(self, objective: Objective[Any], run: Run, others: Others) -> None:
        super().__init__(objective)
        self.run, self.others = run, others
        self.seconds = Seconds()
        self._now = clock(run.device)
        self._functions: Sequence[Callable[[], object]] | None = None
        self._since = self._average = self._update = 0.0

    def before_forward(self, nets: nn.ModuleDict, progress: float) -> None:
        start = self._now()
        self.objective.before_forward(nets, progress)
        self._average = self._now() - start

    def loss(self, nets: nn.ModuleDict, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        if self._functions is None:
            self._functions = self.others(nets, batch)
        return self.objective.loss(nets, batch)

    def before_update(self, *_: object) -> None:
        self._update = self._now()

    def after_step(self, nets: nn.ModuleDict, progress: float) -> None:
        self.objective.after_step(nets, progress)
        times = [self._now()]
        for function in self._functions or ():
            function()
            times.append(self._now())
        if self._since > 0:
            self.seconds.steps.append(times[0] - self._since)
            self.seconds.updates.append(self._average + times[0] - self._update)
            self.seconds.others.append(tuple(end - start for start, end in itertools.pairwise(times)))
        if len(self.seconds.steps) == self.run.repeats:
            raise Enough
        self._since = self._now()


@functools.cache
def generated_corpus() -> PackedCorpus:
    """Clips of two views of the heart by their ids, with masks and three classes."""
    drawn = synthetic_corpus(DISTINCT)

    def enlarged(images: np.ndarray) -> np.ndarray:
        return np.tile(images.repeat(ENLARGED, axis=1).repeat(ENLARGED, axis=2), (IMAGES // DISTINCT, 1, 1))

    images, truth = enlarged(drawn.images), enlarged(cast("np.ndarray", drawn.truth))
    entries = []
    for number in range(IMAGES):
        clip, frame = divmod(number, CLIP)
        patient, view = f"patient{clip}", f"{(2, 4)[clip % 2]}CH"
        box = (0, 0, *images.shape[1:])
        entries.append(Entry(f"{number}.png", "synthetic", patient, clip % 3, f"{patient}_{view}", frame, patient, box))
    return dataclasses.replace(drawn, images=images, truth=truth, entries=tuple(entries))
