"""Packs data sets into one corpus: every image decoded once, letterboxed to one size, on all cores."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from anaus_bench import errors
from anaus_bench.corpus.packed import Entry, letterbox, write_index
from anaus_bench.datasets.listing import refusal
from anaus_bench.errors import CountMismatch, DataError, EndOfClip, UnreadableFile
from anaus_bench.interfaces import Dataset, Index, Sample, StageContext, StageInputs
from anaus_bench.machine.files import PARTIAL
from anaus_bench.machine.parallel import batches, in_processes
from anaus_bench.planning.specs import CorpusSpec, DatasetSpec
from anaus_bench.registry import Registry
from anaus_bench.stages.inputs import check_unchanged, folder_of
from anaus_bench.store.resumable import ResumableArray

PART = 256  # images per part; parts run over clips in order, so that videos are decoded once
POOL_FROM = 2000  # images from which starting worker processes pays


class Finding(NamedTuple):
    """What was found of a sample: a remark, or the kind of `error` that kept it out."""

    text: str
    error: str = ""


class Packed(NamedTuple):
    """A sample as it was packed: its file, its box in the packed image, and what was found of it."""

    path: str
    box: tuple[int, int, int, int]
    found: list[Finding]


class Source(NamedTuple):
    """What a worker needs to open a data set."""

    spec: str
    root: Path
    files: tuple[Path, ...]
    skips: bool


def run(spec: CorpusSpec, inputs: StageInputs, ctx: StageContext, registry: Registry) -> dict[str, Any]:
    """Writes `images.npy`, `truth.npy` if any data set has masks, and `index.json`. Finished parts survive a kill.

    Raises:
        DataError: Samples that cannot be read (all their files are named), unless `unreadable` of the spec is `skip`.
    """
    skips = spec.unreadable == "skip"
    opened = [_open(name, part, inputs, registry, skips) for name, part in spec.datasets.items()]
    structures = list(dict.fromkeys(name for dataset, _ in opened for name in dataset.structures))
    classes = [f"{dataset.name}:{name}" for dataset, _ in opened for name in dataset.classes]
    side = _side(opened, spec.size)
    shape = (sum(len(index.samples) for _, index in opened), side, side)
    images: ResumableArray[Any] = ResumableArray(ctx, "images.npy", shape)
    truth: ResumableArray[None] | None = ResumableArray(ctx, "truth.npy", shape) if structures else None
    done = min(len(images.facts), len(truth.facts) if truth else shape[0])
    entries: list[Entry] = []
    with ctx.progress.track("pack", shape[0], done=done) as tracker:
        for dataset, index in opened:
            first = len(entries)
            entries += [_entry(sample, dataset, classes) for sample in index.samples]
            source = Source(spec.datasets[dataset.name].model_dump_json(), index.root, registry.files, skips)
            work = functools.partial(_pack, source, ctx.out, structures, first)
            left = [part for part in batches(len(index.samples), PART) if first + part.stop > done]
            if left:
                images.forget(first + left[0].start)
                if truth:
                    truth.forget(first + left[0].start)
            in_pool = sum(part.stop - part.start for part in left) >= POOL_FROM
            for part, made in zip(left, in_processes(work, left) if in_pool else map(work, left), strict=True):
                if truth:
                    truth.add([None] * len(made))
                images.add(made)
                tracker.advance(len(images.facts), images=part.stop - part.start, waited=0.0)
    packed = [_packed(fact) for fact in images.facts]
    _refuse(packed, skips)
    rows = np.flatnonzero([not any(item.error for item in sample.found) for sample in packed])
    if not len(rows):
        raise CountMismatch("not one image of the corpus can be read; expected some")
    if len(rows) < len(entries):
        for path in (images.path, *([truth.path] if truth else [])):
            _keep_rows(path, rows)
    entries = [dataclasses.replace(entries[row], box=packed[row].box) for row in rows]
    annotated = {dataset.name: tuple(structures.index(s) + 1 for s in dataset.structures) for dataset, _ in opened}
    phantom = any(index.phantom for _, index in opened)
    write_index(ctx.out, entries, structures, annotated, classes, phantom)
    return {"images": len(entries), "phantom": phantom, **_remarks(packed, [index for _, index in opened], ctx)}


def _side(opened: Sequence[tuple[Dataset[Any], Index]], size: int) -> int:
    """Side to pack at: `size`, or that of the largest image where all are smaller, as enlarging adds no detail.

    Frames of one clip are of one size.
    """
    largest = 0
    for dataset, index in opened:
        firsts: dict[str, Sample] = {}  # of each clip
        for sample in index.samples:
            firsts.setdefault(sample.path, sample)
        for sample in firsts.values():
            with contextlib.suppress(DataError):  # said of every sample when it is packed
                largest = max(largest, *dataset.read(index, sample).image.shape)
            if largest >= size:
                return size
    return largest or size


def _open(
    name: str, spec: DatasetSpec, inputs: StageInputs, registry: Registry, skips: bool
) -> tuple[Dataset[Any], Index]:
    dataset: Dataset[Any] = registry.build(spec)
    dataset.skips_unreadable = skips
    index = dataset.scan(folder_of(inputs, name, role=name))
    check_unchanged(name, spec, index)
    return dataset, index


def _entry(sample: Sample, dataset: Dataset[Any], classes: Sequence[str]) -> Entry:
    """The index entry of a sample; its box is known when it is packed."""
    return Entry(
        sample_id=sample.sample_id,
        dataset=dataset.name,
        group_id=f"{dataset.name}:{sample.group_id}",
        label=-1 if sample.label is None else classes.index(f"{dataset.name}:{dataset.classes[sample.label]}"),
        video_id=None if sample.video_id is None else f"{dataset.name}:{sample.video_id}",
        frame_index=sample.frame_index,
        patient_id=sample.patient_id,
        box=(0, 0, 0, 0),
    )


def _pack(source: Source, folder: Path, structures: Sequence[str], first: int, part: slice) -> list[Packed]:
    """Packs some samples of a data set into the arrays in `folder`, from row `first + part.start`."""
    dataset, index = _opened(source)
    images = np.load(folder / "images.npy", mmap_mode="r+")
    truth = np.load(folder / "truth.npy", mmap_mode="r+") if structures else None
    # This data set's mask ids in the corpus's numbering.
    ids = np.array([0, *(structures.index(name) + 1 for name in dataset.structures)], dtype=np.uint8)
    made = []
    for row, sample in enumerate(index.samples[part], start=first + part.start):
        try:
            picture = dataset.read(index, sample)
        except DataError as error:
            made.append(Packed(sample.path, (0, 0, 0, 0), [Finding(str(error), type(error).__name__)]))
            continue
        images[row], box = letterbox(picture.image, images.shape[1], labels=False)
        if truth is not None:
            mask = picture.mask
            truth[row] = 0 if mask is None else letterbox(ids[mask], images.shape[1], labels=True)[0]
        made.append(Packed(sample.path, box, [Finding(remark) for remark in picture.remarks]))
    return made


@functools.lru_cache(maxsize=1)
def _opened(source: Source) -> tuple[Dataset[Any], Index]:
    """The data set, once per worker process."""
    dataset: Dataset[Any] = Registry(source.files).build(DatasetSpec.model_validate_json(source.spec))
    dataset.skips_unreadable = source.skips
    return dataset, dataset.scan(source.root)


def _packed(fact: Any) -> Packed:
    """From JSON, which knows lists alone."""
    path, (top, left, height, width), found = fact
    return Packed(path, (top, left, height, width), [Finding(*item) for item in found])


def _refuse(packed: Sequence[Packed], skips: bool) -> None:
    """Refuses samples that cannot be used, but for what is left out: the lost ends of clips, what the user skips."""
    left_out = ("", EndOfClip.__name__, *([UnreadableFile.__name__] if skips else []))
    failed: dict[str, DataError] = {}
    for sample in packed:
        for item in sample.found:
            if item.error not in left_out:
                failed.setdefault(sample.path, getattr(errors, item.error, DataError)(item.text))
    if failed:
        raise refusal(failed)


def _keep_rows(path: Path, rows: NDArray[np.int64]) -> None:
    """Rewrites an array with some of its rows."""
    old = np.load(path, mmap_mode="r")
    partial = path.with_name(path.name + PARTIAL)
    new = open_memmap(partial, mode="w+", dtype=old.dtype, shape=(len(rows), *old.shape[1:]))
    for part in batches(len(rows), PART):
        new[part] = old[rows[part]]
    new.flush()
    partial.replace(path)


def _remarks(packed: Sequence[Packed], indices: Sequence[Index], ctx: StageContext) -> dict[str, list[str]]:
    """For the record: what a person should look at, and which files were left out; each is said with its number."""
    unreadable = {path: text for index in indices for path, text in index.unreadable.items()}
    remarks: dict[str, None] = {}
    for sample in packed:
        for item in sample.found:
            if item.error == UnreadableFile.__name__:
                unreadable[sample.path] = item.text
            else:
                remarks[item.text] = None
    result = {}
    for name, texts in (("remarks", list(remarks)), ("unreadable", list(unreadable.values()))):
        if texts:
            result[name] = texts
            ctx.progress.note(f"{name}: {texts[0]}" + (f"; and {len(texts) - 1} more" if len(texts) > 1 else ""))
    return result
