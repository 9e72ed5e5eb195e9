"""Packs data sets into one corpus: every image decoded once, letterboxed to one size, on all cores."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from anaus_bench import errors
from anaus_bench.data.corpus import Entry, letterbox, write_index
from anaus_bench.data.images import refusal
from anaus_bench.errors import CountMismatch, DataError, EndOfClip, UnreadableFile
from anaus_bench.interfaces import Dataset, Index, Sample, StageContext, StageInputs, batches
from anaus_bench.parallel import in_processes
from anaus_bench.registry import Registry
from anaus_bench.stages.phantoms import folder_of

PART = 256  # images per part; parts run over clips in order, so that videos are decoded once
POOL_FROM = 2000  # images from which starting worker processes pays

Box = tuple[int, int, int, int]


class Finding(NamedTuple):
    """What was found of a sample: its `row`, its file, and a remark, or the kind of `error` that kept it out."""

    row: int
    path: str
    text: str
    error: str = ""


def run(spec: Mapping[str, Any], inputs: StageInputs, ctx: StageContext, registry: Registry) -> dict[str, Any]:
    """Writes `images.npy`, `truth.npy` if any data set has masks, and `index.json`. Finished parts survive a kill.

    Raises:
        DataError: Samples that cannot be read (all their files are named), unless `unreadable` of the spec is `skip`.
    """
    skips = spec.get("unreadable") == "skip"
    opened = [
        _open(name, part, folder_of(inputs, name, role=name), registry, skips)
        for name, part in spec["datasets"].items()
    ]
    structures = list(dict.fromkeys(name for dataset, _ in opened for name in dataset.structures))
    classes = [f"{dataset.name}:{name}" for dataset, _ in opened for name in dataset.classes]
    shape = (sum(len(index.samples) for _, index in opened), spec["size"], spec["size"])
    held = ctx.resume / "boxes.json"
    paths = [ctx.resume / f"{name}.npy" for name in ["images", *(["truth"] if structures else [])]]
    kept = held.exists() and all(path.exists() for path in paths)
    state = json.loads(held.read_text()) if kept else {"boxes": [], "found": []}
    boxes: list[Box] = [tuple(box) for box in state["boxes"]]
    found: list[Finding] = [Finding(*item) for item in state["found"]]
    if not kept:
        for path in paths:
            open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
            reserve(path)
    entries: list[Entry] = []
    kept_at = time.monotonic()
    with ctx.progress.track("pack", shape[0], done=len(boxes)) as tracker:
        for dataset, index in opened:
            first = len(entries)
            entries += [_entry(sample, dataset, classes) for sample in index.samples]
            source = (json.dumps(spec["datasets"][dataset.name]), index.root, index.fingerprint, registry.files, skips)
            work = functools.partial(_pack, source, ctx.resume, structures, first)
            left = [part for part in batches(len(index.samples), PART) if first + part.start >= len(boxes)]
            in_pool = sum(part.stop - part.start for part in left) >= POOL_FROM
            for part, (new, said) in zip(left, in_processes(work, left) if in_pool else map(work, left), strict=True):
                boxes += new
                found += said
                if time.monotonic() - kept_at >= ctx.checkpoint_seconds:
                    _keep(held, boxes, found)
                    kept_at = time.monotonic()
                tracker.advance(len(boxes), images=part.stop - part.start, waited=0.0)
    _refuse(found, skips)
    rows = np.setdiff1d(np.arange(len(entries)), [item.row for item in found if item.error])
    if not len(rows):
        raise CountMismatch("not one image of the corpus can be read; expected some")
    for path in paths:
        if len(rows) < len(entries):
            _keep_rows(path, rows)
        os.replace(path, ctx.out / path.name)
    entries = [dataclasses.replace(entries[row], box=boxes[row]) for row in rows]
    annotated = {dataset.name: tuple(structures.index(s) + 1 for s in dataset.structures) for dataset, _ in opened}
    phantom = any(index.phantom for _, index in opened)
    write_index(ctx.out, entries, structures, annotated, classes, phantom)
    unreadable = {path: text for _, index in opened for path, text in index.unreadable.items()}
    unreadable |= {item.path: item.text for item in found if item.error == UnreadableFile.__name__}
    remarks = list(dict.fromkeys(item.text for item in found if item.error in ("", EndOfClip.__name__)))
    result: dict[str, Any] = {"images": len(entries), "phantom": phantom}
    for name, texts in (("remarks", remarks), ("unreadable", list(unreadable.values()))):
        if texts:
            result[name] = texts
            ctx.progress.note(f"{name}: {texts[0]}" + (f"; and {len(texts) - 1} more" if len(texts) > 1 else ""))
    return result


def check_unchanged(name: str, spec: Mapping[str, Any], index: Index) -> None:
    """Refuses data that changed since the stage was planned.

    Raises:
        CountMismatch: Names or contents of its files differ.
    """
    if spec.get("fingerprint", index.fingerprint) != index.fingerprint:
        raise CountMismatch(f"{name}: the files under {str(index.root)!r} changed since the plan was made; run again")


def reserve(path: Path) -> None:
    """Takes the file's whole space now: a full disk is then an error here, and not a crash at some later page.

    Raises:
        OSError: No space left.
    """
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)


def _open(
    name: str, spec: Mapping[str, Any], root: Path, registry: Registry, skips: bool
) -> tuple[Dataset[Any], Index]:
    dataset: Dataset[Any] = registry.build(spec)
    dataset.skips_unreadable = skips
    index = dataset.scan(root)
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


def _pack(
    source: tuple[str, Path, str, tuple[Path, ...], bool],
    folder: Path,
    structures: Sequence[str],
    first: int,
    part: slice,
) -> tuple[list[Box], list[Finding]]:
    """Packs some samples of a data set into the arrays in `folder`, from row `first + part.start`.

    Returns:
        Their boxes, and what was found of them.
    """
    dataset, index = _opened(*source)
    images = np.load(folder / "images.npy", mmap_mode="r+")
    truth = np.load(folder / "truth.npy", mmap_mode="r+") if structures else None
    # This data set's mask ids in the corpus's numbering.
    ids = np.array([0, *(structures.index(name) + 1 for name in dataset.structures)], dtype=np.uint8)
    boxes: list[Box] = []
    found = []
    for row, sample in enumerate(index.samples[part], start=first + part.start):
        try:
            picture = dataset.read(index, sample)
        except DataError as error:
            found.append(Finding(row, sample.path, str(error), type(error).__name__))
            boxes.append((0, 0, 0, 0))
            continue
        found += [Finding(row, sample.path, remark) for remark in picture.remarks]
        images[row], box = letterbox(picture.image, images.shape[1], labels=False)
        if truth is not None and picture.mask is not None:
            truth[row], _ = letterbox(ids[picture.mask], images.shape[1], labels=True)
        boxes.append(box)
    return boxes, found


def _refuse(found: Sequence[Finding], skips: bool) -> None:
    """Refuses samples that cannot be used, but for what is left out: the lost ends of clips, what the user skips."""
    left_out = ("", EndOfClip.__name__, *([UnreadableFile.__name__] if skips else []))
    failed: dict[str, DataError] = {}
    for item in found:
        if item.error not in left_out:
            failed.setdefault(item.path, getattr(errors, item.error, DataError)(item.text))
    if failed:
        raise refusal(failed)


def _keep_rows(path: Path, rows: NDArray[np.int64]) -> None:
    """Rewrites an array with some of its rows."""
    old = np.load(path, mmap_mode="r")
    partial = path.with_suffix(".partial")
    new = open_memmap(partial, mode="w+", dtype=old.dtype, shape=(len(rows), *old.shape[1:]))
    for part in batches(len(rows), PART):
        new[part] = old[rows[part]]
    os.replace(partial, path)


@functools.lru_cache(maxsize=1)
def _opened(
    spec: str, root: Path, fingerprint: str, files: tuple[Path, ...], skips: bool
) -> tuple[Dataset[Any], Index]:
    """The data set, once per process and state of its files."""
    dataset: Dataset[Any] = Registry(files).build(json.loads(spec))
    dataset.skips_unreadable = skips
    return dataset, dataset.scan(root)


def _keep(path: Path, boxes: Sequence[Box], found: Sequence[Finding]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"boxes": boxes, "found": found}))
    os.replace(partial, path)
