"""Synthetic data for the checks: a corpus, a batch, a task and a fold of it, a silent context."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anaus_bench.corpus.batch import Batch, make_batch
from anaus_bench.corpus.packed import Entry, PackedCorpus
from anaus_bench.execution.progress import SilentProgress
from anaus_bench.interfaces import Case, Fold, Objective, Picture, Sample, StageContext, Task
from anaus_bench.settings.base import resolve
from anaus_bench.settings.task import TaskSettings
from anaus_bench.tasks.classification import ACCURACY, ClassificationTask
from anaus_bench.tasks.segmentation import DICE, SegmentationSettings, SegmentationTask

SIDE = 64  # of the packed images the checks make


def synthetic_corpus(count: int, seed: int = 0) -> PackedCorpus:
    """Speckled images (count, 64, 64) with one or two bright ellipses, their masks, three classes, clips of four."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    truth = np.zeros((count, SIDE, SIDE), dtype=np.uint8)
    for number in range(count):
        for structure in range(1 + number % 2):
            y, x, height, width = rng.uniform(16, 48, 2).tolist() + rng.uniform(6, 12, 2).tolist()
            truth[number][((rows - y) / height) ** 2 + ((columns - x) / width) ** 2 < 1] = structure + 1
    level = np.where(truth > 0, 140, 50) + 10 * np.arange(count)[:, None, None] % 3
    images = np.clip(level * rng.rayleigh(0.8, truth.shape), 0, 255).astype(np.uint8)
    entries = tuple(
        Entry(
            f"{number}.png",
            "synthetic",
            f"g{number // 4}",
            number % 3,
            f"v{number // 4}",
            number % 4,
            f"p{number // 4}",
            (0, 0, SIDE, SIDE),
        )
        for number in range(count)
    )
    return PackedCorpus(images, truth, entries, ("first", "second"), {"synthetic": (1, 2)}, ("a", "b", "c"), True)


def synthetic_batch(objective: Objective[Any], *, size: int, images: int, seed: int = 0, step: int = 0) -> Batch:
    """The batch of one step on a synthetic corpus, with masks if the objective can take them."""
    corpus = synthetic_corpus(max(images, 8), seed)
    draw = objective.sampler(corpus, images, seed).draw(step, 0.0)
    masked = "masks" in objective.needs or objective.makes_own_groups
    return make_batch(
        corpus.images,
        corpus.truth if masked else None,
        corpus.boxes(),
        corpus.labels(),
        draw.images,
        objective.views(size),
        seed,
        step,
        weights=draw.weights,
    )


def silent_context(folder: Path, seed: int = 0) -> StageContext:
    """The context of a stage on the CPU that says nothing, working under `folder`."""
    out, resume = folder / "out", folder / "resume"
    out.mkdir(parents=True, exist_ok=True)
    resume.mkdir(parents=True, exist_ok=True)
    return StageContext(out, resume, torch.device("cpu"), seed, SilentProgress())


class _Regions(SegmentationTask[SegmentationSettings]):
    name = "regions"
    dataset = "synthetic"
    metrics = (DICE,)


class _Classes(ClassificationTask[TaskSettings]):
    name = "classes"
    dataset = "synthetic"
    metrics = (ACCURACY,)


def synthetic_task(task_class: type[Task[Any]]) -> Task[Any]:
    """A task of this kind, for the folds of `synthetic_fold`.

    Raises:
        TypeError: Neither segmentation nor classification.
    """
    if issubclass(_Regions, task_class):
        return _Regions(resolve(SegmentationSettings, "task"))
    if issubclass(_Classes, task_class):
        return _Classes(resolve(TaskSettings, "task"))
    raise TypeError(f"no synthetic task for {task_class.__name__}; expected SegmentationTask or ClassificationTask")


def synthetic_fold(count: int, seed: int = 0) -> Fold:
    """Images of `synthetic_corpus` with their masks and three classes; a third of them is held out."""
    corpus = synthetic_corpus(count, seed)
    assert corpus.truth is not None
    cases = []
    for entry, image, truth in zip(corpus.entries, corpus.images, corpus.truth, strict=True):
        picture = Picture(image, truth)
        sample = Sample(entry.sample_id, entry.group_id, entry.sample_id, label=entry.label)
        cases.append(Case(sample, functools.partial(copy.copy, picture)))
    held_out = count // 3
    return Fold(0, tuple(cases[held_out:]), tuple(cases[:held_out]), ("a", "b", "c"))
