"""What several stages do with their inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from anaus_bench.datasets.folds import read_folds
from anaus_bench.errors import CountMismatch
from anaus_bench.interfaces import Dataset, Fold, Index, LearnedSource, MaskSource, StageInputs, Task
from anaus_bench.machine.artifacts import damaged, read_json
from anaus_bench.planning.specs import DatasetSpec, FinetuneSpec, OfTask
from anaus_bench.registry import Registry


def check_unchanged(name: str, spec: DatasetSpec, index: Index) -> None:
    """Refuses data that changed since the stage was planned.

    Raises:
        CountMismatch: Names or sizes of its files differ.
    """
    if spec.fingerprint not in (None, index.fingerprint):
        raise CountMismatch(f"{name}: the files under {str(index.root)!r} changed since the plan was made; run again")


FOLDER = "data"


def folder_of(inputs: StageInputs, name: str, role: str = "data") -> Path:
    """Where a data set is: generated, under the input `role`, or the user's folder."""
    if role in inputs.folders:
        return inputs.folders[role] / FOLDER
    return inputs.roots[name]


def open_task(spec: OfTask, inputs: StageInputs, registry: Registry) -> tuple[Task[Any], Dataset[Any], Index]:
    """The task of a stage, its data set and what is there of it."""
    task: Task[Any] = registry.build(spec.task)
    dataset: Dataset[Any] = registry.build(spec.dataset)
    index = dataset.scan(folder_of(inputs, dataset.name))
    check_unchanged(dataset.name, spec.dataset, index)
    return task, dataset, index


def open_fold(spec: FinetuneSpec, inputs: StageInputs, registry: Registry) -> tuple[Task[Any], Fold]:
    """The task of a stage and its fold."""
    task, dataset, index = open_task(spec, inputs, registry)
    return task, read_folds(dataset, index, inputs.folders["folds"])[spec.fold]


def ready_source(source: MaskSource[Any], fit: Path | None, device: torch.device) -> MaskSource[Any]:
    """The mask source with the state of its `fit` stage loaded, if it had one."""
    if isinstance(source, LearnedSource) and fit is not None:
        structures = read_json(fit / "structures.json", list[str])
        path = fit / "state.safetensors"
        try:
            state = safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise damaged(path, str(error)) from error
        source.load(state, structures, device)
    return source
