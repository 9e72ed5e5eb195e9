"""What must hold of what each method of a plugin returns; each check looks at one result and raises `Breach`.

A check is given the plugin, the result, and what the method was given.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, get_type_hints

from anaus_bench.errors import shown
from anaus_bench.interfaces.breach import is_uint8, kind_of, require, require_fields, require_image, require_type
from anaus_bench.interfaces.dataset import Dataset, Index, Picture, Sample
from anaus_bench.interfaces.mask_source import MaskSource
from anaus_bench.interfaces.objective import Objective
from anaus_bench.interfaces.protocol import Protocol
from anaus_bench.interfaces.task import Case, Fold, Scores, Task
from anaus_bench.lazy import torch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from anaus_bench.corpus.batch import Batch
    from anaus_bench.corpus.packed import Entry, PackedCorpus
    from anaus_bench.nn.encoder import Encoder


MOST_IDS = 255  # of a mask or label map, as uint8
HALF = re.compile("[\ud800-\udfff]")  # of a character, as in names that are not UTF-8


STRIDES = (4, 8, 16, 32)


def index(dataset: Dataset[Any], index: Index, root: Path) -> None:
    """Of `Dataset.scan`."""
    require_fields(index, Index)
    samples = index.samples
    require(len(samples) > 0, "no sample", "at least one, or a DataError that says what is missing")
    columns = {name: [getattr(sample, name) for sample in samples] for name in get_type_hints(Sample)}
    for name, hint in get_type_hints(Sample).items():
        require_type(columns[name], list[hint], name)  # type: ignore[valid-type]
    for name in ("sample_id", "group_id", "path"):
        require(all(columns[name]), f"an empty {name}", "a name")
        half = HALF.search("".join(columns[name]))
        require(half is None, f"a {name} with {half and half[0]!r}", "text that can be written as UTF-8")
    twin, count = Counter(columns["sample_id"]).most_common(1)[0]
    require(count == 1, f"{count} samples with the id {shown(twin)}", "unique ids")
    for path in (*columns["path"], *(path for paths in columns["mask_paths"] for path in paths)):
        outside = path.startswith("/") or (".." in path and ".." in PurePosixPath(path).parts)
        require(not outside, f"the path {shown(path)}", "paths relative to the root, inside of it")
    labels = {*columns["label"]} - {None}
    strange = [label for label in labels if not 0 <= label < len(dataset.classes)]
    require(not strange, f"labels {shown(strange)}", f"labels below {len(dataset.classes)}, the number of classes")
    require(bool(index.fingerprint), "an empty fingerprint", "a digest of the files used")


def picture(dataset: Dataset[Any], picture: Picture, index: Index, sample: Sample) -> None:
    """Of `Dataset.read`."""
    require(isinstance(picture, Picture), kind_of(picture), "a Picture")
    require_image(picture.image, f"an image of {shown(sample.sample_id)}:")
    if (mask := picture.mask) is None:
        return
    of = f"a mask of {shown(sample.sample_id)}:"
    require_image(mask, of)
    size = picture.image.shape
    require(mask.shape == size, f"{of} {kind_of(mask)}", f"the size of its image, {size}")
    most = len(dataset.structures)
    require(int(mask.max()) <= most, f"{of} ids up to {mask.max()}", f"ids of the {most} structures, from 1 on")


def groups(dataset: Dataset[Any], groups: Sequence[str], index: Index) -> None:
    """Of `Dataset.groups`."""
    require_type(groups, tuple[str, ...], "groups")
    require(len(groups) == len(index.samples), f"{len(groups)} groups", f"one for each of {len(index.samples)} samples")


def published_folds(dataset: Dataset[Any], folds: list[int] | None, index: Index) -> None:
    """Of `Dataset.published_folds`."""
    require_type(folds, list[int] | None, "folds")
    if folds is not None:
        count, numbers = len(index.samples), {*folds} - {-1}
        require(len(folds) == count, f"{len(folds)} folds", f"one for each of {count} samples")
        whole = len(numbers) > 0 and numbers == {*range(len(numbers))}
        require(whole, f"the folds {shown(sorted(numbers))}", "0, 1, ... without a gap, and -1 for a fixed test set")


def label_maps(source: MaskSource[Any], maps: Tensor, images: Tensor, *_: Any) -> None:
    """Of `MaskSource.label_maps`."""
    require(isinstance(maps, torch.Tensor), kind_of(maps), "a tensor")
    shape = (images.shape[0], *images.shape[2:])
    fits, found = maps.dtype == torch.uint8 and maps.shape == shape, f"{kind_of(maps)} on {maps.device}"
    expected = f"uint8 of shape {shape} on {images.device}: at most 256 regions"
    require(fits and maps.device == images.device, found, expected)
    last = maps.flatten(1).amax(dim=1)
    shift = 256 * torch.arange(len(maps), device=maps.device)[:, None]
    there = torch.bincount((maps.flatten(1).long() + shift).flatten(), minlength=256 * len(maps)).view(-1, 256) > 0
    gaps = there.sum(dim=1) != last.long() + 1
    ids = there[gaps][:1].nonzero()[:, 1].tolist()
    require(not ids, f"a label map with the ids {shown(ids)}", "ids from 0 on without a gap")


def stored_maps(source: MaskSource[Any], maps: NDArray[np.uint8], entries: Sequence[Entry], size: int) -> None:
    """Of `StoredSource.read`."""
    fits = is_uint8(maps) and maps.shape == (len(entries), size, size)
    require(fits, kind_of(maps), f"label maps, uint8 of shape {(len(entries), size, size)}")


def state(source: MaskSource[Any], state: Mapping[str, Tensor], *_: Any) -> None:
    """Of `LearnedSource.fit`."""
    named = isinstance(state, Mapping) and all(isinstance(name, str) for name in state)
    tensors = named and all(isinstance(value, torch.Tensor) for value in state.values())
    require(tensors, kind_of(state), "a dictionary of tensors")


def views(objective: Objective[Any], views: Any, size: int) -> None:
    """Of `Objective.views`."""
    from anaus_bench.corpus.view import View

    of_views = isinstance(views, tuple) and all(isinstance(view, View) for view in views)
    require(of_views and (len(views) > 0 or not objective.trains), shown(views), "a tuple of at least one View")


def nets(objective: Objective[Any], nets: nn.ModuleDict, encoder: Encoder, num_classes: int = 0) -> None:
    """Of `Objective.build`."""
    require(isinstance(nets, torch.nn.ModuleDict), kind_of(nets), "an nn.ModuleDict")
    kept = "encoder" in nets and nets["encoder"] is encoder
    # Another one would be trained, and the one that was given saved.
    require(kept, f"networks {', '.join(nets)} without the given encoder", "that very encoder under 'encoder'")


def loss(objective: Objective[Any], found: tuple[Tensor, dict[str, Tensor]], nets: nn.ModuleDict, batch: Batch) -> None:
    """Of `Objective.loss`."""
    require(isinstance(found, tuple) and len(found) == 2, kind_of(found), "the loss and the values to log")
    loss, logs = found
    scalar = isinstance(loss, torch.Tensor) and loss.ndim == 0 and loss.is_floating_point()
    require(scalar, f"a loss that is {kind_of(loss)}", "a scalar tensor")
    learns = loss.requires_grad or not torch.is_grad_enabled()
    require(learns, "a loss without a gradient", "one that depends on the networks' parameters")
    require(isinstance(logs, dict), f"values to log that are {kind_of(logs)}", "a dictionary")
    for name, value in logs.items():
        free = isinstance(name, str) and name not in ("loss", "step")
        require(free, f"a value to log named {shown(name)}", "a name, other than loss and step")
        single = isinstance(value, torch.Tensor) and value.ndim == 0 and not value.requires_grad
        require(single, f"{shown(name)} to log that is {kind_of(value)}", "detached scalars")


def labels(objective: Objective[Any], found: Any, corpus: PackedCorpus) -> None:
    """Of `Objective.labels`."""
    import numpy as np

    require(isinstance(found, tuple) and len(found) == 2, kind_of(found), "labels and the names of the classes")
    labels, classes = found
    require_type(classes, tuple[str, ...], "classes")
    numbers = isinstance(labels, np.ndarray) and labels.dtype == np.int64 and labels.shape == (len(corpus),)
    require(numbers, f"labels that are {kind_of(labels)}", f"int64 of shape ({len(corpus)},)")
    if len(labels):
        inside = labels.min() >= -1 and labels.max() < len(classes)
        require(inside, f"labels {labels.min()} to {labels.max()}", f"-1 to {len(classes) - 1}")


def sampler(objective: Objective[Any], sampler: Any, *_: Any) -> None:
    """Of `Objective.sampler`."""
    steps = getattr(sampler, "steps_per_epoch", None)
    whole = isinstance(steps, int) and steps >= 1
    draws = callable(getattr(sampler, "draw", None))
    require(draws and whole, kind_of(sampler), "a sampler, with draw() and steps_per_epoch from 1 on")


def stride(objective: Objective[Any], stride: int) -> None:
    """Of `Objective.finest_stride`."""
    require(stride in STRIDES, shown(stride), f"one of {', '.join(map(str, STRIDES))}")


def factor(objective: Objective[Any], factor: float, *_: Any) -> None:
    """Of `Objective.lr_factor`."""
    require_type(factor, float, "a factor")
    require(math.isfinite(factor) and factor >= 0, f"the factor {factor}", "a finite one from 0 on")


def selected(task: Task[Any], chosen: list[Sample], samples: Sequence[Sample]) -> None:
    """Of `Task.select`."""
    require_type(chosen, list[Sample], "samples")
    known = {sample.sample_id for sample in samples}
    ids = [sample.sample_id for sample in chosen]
    require(len(ids) > 0, "no sample", "at least one")
    require(len({*ids}) == len(ids) and {*ids} <= known, f"{len(ids)} samples", "some of those given, each once")


def scores(task: Task[Any], scores: Scores, folds: Sequence[tuple[Fold, Path]]) -> None:
    """Of `Task.score`."""
    require_fields(scores, Scores)
    require(len(scores.folds) == len(folds), f"scores of {len(scores.folds)} folds", f"those of {len(folds)}")
    for values in scores.folds:
        alike = values.keys() == scores.folds[0].keys()
        require(alike, "folds with other metrics than the first", "the same in all folds")
    for key, value in (*scores.pooled.items(), *(item for values in scores.folds for item in values.items())):
        # numpy's own numbers cannot be written as JSON
        require(isinstance(value, float | int), f"{shown(key)} = {shown(value)}", "a number of Python's")
    missing = [metric.key for metric in task.metrics if metric.key not in scores.folds[0]]
    require(not missing, f"folds without {', '.join(missing)}", "the task's metrics in each fold")


def drawn(task: Task[Any], found: Any, case: Case, predictions: Path) -> None:
    """Of `Task.draw`."""
    require(isinstance(found, tuple) and len(found) == 3, kind_of(found), "true mask, predicted mask, caption")
    for mask in found[:2]:
        if mask is not None:
            require_image(mask, "a mask to draw:")
    require_type(found[2], str, "the caption")


def network(protocol: Protocol[Any, Any], network: nn.Module, *_: Any) -> None:
    """Of `Protocol.build`."""
    require(isinstance(network, torch.nn.Module), kind_of(network), "an nn.Module")
