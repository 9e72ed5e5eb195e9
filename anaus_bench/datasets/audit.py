"""Leakage: images that stand, under other names or slightly changed, in two folds, in two classes, or in a corpus and
the test set that it must not know.

Everything works on perceptual hashes and names, so that an audit of packed images needs no data set.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic
from numpy.typing import NDArray

from anaus_bench.corpus.packed import PackedCorpus
from anaus_bench.datasets.near_duplicates import BITS, NEAR, close_blocks, near_duplicate_groups
from anaus_bench.interfaces import Index
from anaus_bench.machine.artifacts import damaged, read_json

SHOWN = 5
SOURCE = re.compile(r"^(cov(id)?(-?19)?|pneu?(monia)?|reg(ular)?|vir(al)?)[ _-]+(butterfly[ _-]+)?", re.IGNORECASE)
ENDING = re.compile(r"([._](mp4|avi|mov|mpe?g|gif|mkv))+$", re.IGNORECASE)


@dataclass(frozen=True)
class Part:
    """A data set as the audit sees it.

    Attributes:
        hashes: (N, 32) uint8 perceptual hashes.
        ids: Id of each image.
        groups: Unit of leakage of each image.
        labels: Class of each image; None where unknown.
        clips: Name of the file or folder each image was cut from; None for a still image.
        folds: Fold of each image, -1 = fixed test set; None if the data set is not split.
    """

    hashes: NDArray[np.uint8]
    ids: Sequence[str]
    groups: Sequence[str]
    labels: Sequence[int | None]
    clips: Sequence[str | None]
    folds: Sequence[int] | None = None


def part_of(
    index: Index, hashes: NDArray[np.uint8], groups: Sequence[str] | None = None, folds: Sequence[int] | None = None
) -> Part:
    """The part of a scanned data set, from the hashes of its samples in order."""
    samples = index.samples
    return Part(
        hashes,
        [sample.sample_id for sample in samples],
        groups if groups is not None else [sample.group_id for sample in samples],
        [sample.label for sample in samples],
        [sample.video_id for sample in samples],
        folds,
    )


def audit(parts: Mapping[str, Part], tests: Collection[str] = (), distance: int = NEAR) -> dict[str, Any]:
    """What a record keeps about leakage.

    Args:
        parts: Data set name -> its images.
        tests: Names of those that are tested on; each is compared with each of the others.
        distance: Largest number of differing bits, of 256, of a near-duplicate.

    Returns:
        `bits`, `distance`; under `parts`, per data set: the numbers of images, groups and near-duplicate groups, and
        what is near across folds, classes and groups (see `near_across`); under `between`, per pair `corpus|test`:
        `images` of the test set that are near one of the corpus (see `near_between`), and `clips` that both have by
        name.
    """
    found: dict[str, Any] = {"bits": BITS, "distance": distance, "parts": {}, "between": {}}
    for name, part in parts.items():
        clusters = near_duplicate_groups(part.hashes, distance)
        sizes = np.bincount(clusters) if clusters else np.zeros(0, dtype=int)
        found["parts"][name] = {
            "images": len(part.ids),
            "groups": len(set(part.groups)),
            "near_duplicate_groups": int((sizes > 1).sum()),
            "near_duplicate_images": int(sizes[sizes > 1].sum()),
            "across_folds": None if part.folds is None else near_across(part, part.folds, distance),
            "across_classes": near_across(part, part.labels, distance),
            "across_groups": near_across(part, part.groups, distance),
        }
    for corpus in parts:
        for test in tests:
            if corpus not in tests:
                found["between"][f"{corpus}|{test}"] = {
                    **near_between(parts[corpus], parts[test], distance),
                    "clips": shared_clips(parts[corpus].clips, parts[test].clips),
                }
    return found


def near_across(part: Part, values: Sequence[Hashable], distance: int = NEAR) -> dict[str, Any]:
    """Near-duplicates with different values, such as folds or classes; None as a value is unknown and not compared.

    Returns:
        `pairs` and `images`, their numbers; `examples`, the first five pairs: both ids, both values, differing bits.
    """
    code = _codes(values)
    blocks = _differing(close_blocks(part.hashes, part.hashes, distance, ordered=True), code)
    pairs, touched = 0, np.zeros(len(part.ids), dtype=bool)
    examples: list[list[Any]] = []
    for i, j in blocks:
        pairs += len(i)
        touched[i] = touched[j] = True
        for a, b in zip(i[: SHOWN - len(examples)].tolist(), j.tolist(), strict=False):
            examples.append([part.ids[a], part.ids[b], values[a], values[b], _bits(part.hashes[a], part.hashes[b])])
    return {"pairs": pairs, "images": int(touched.sum()), "examples": examples}


def near_between(corpus: Part, test: Part, distance: int = NEAR) -> dict[str, Any]:
    """Images of the test set that are near an image of the corpus.

    Returns:
        `images`, their number; `share` of the test set; `groups`, the number of its groups they are in; `examples`, the
        first five with their twin: id in the corpus, id in the test set, differing bits.
    """
    touched = np.zeros(len(test.ids), dtype=bool)
    examples: list[list[Any]] = []
    for i, j in close_blocks(corpus.hashes, test.hashes, distance):
        fresh, first = np.unique(j, return_index=True)
        new = ~touched[fresh]
        for a, b in zip(i[first[new]][: SHOWN - len(examples)].tolist(), fresh[new].tolist(), strict=False):
            examples.append([corpus.ids[a], test.ids[b], _bits(corpus.hashes[a], test.hashes[b])])
        touched[fresh] = True
    return {
        "images": int(touched.sum()),
        "share": float(touched.mean()) if len(touched) else 0.0,
        "groups": len({test.groups[row] for row in np.flatnonzero(touched).tolist()}),
        "examples": examples,
    }


def shared_clips(corpus: Sequence[str | None], test: Sequence[str | None]) -> list[list[str]]:
    """Pairs of clips with the same title (see `clip_title`), sorted: their names in the corpus and in the test set."""
    titles: dict[str, set[str]] = {}
    for clip in corpus:
        if clip is not None:
            titles.setdefault(clip_title(clip), set()).add(clip)
    return sorted(
        [twin, clip]
        for clip in {clip for clip in test if clip is not None}
        for twin in titles.get(clip_title(clip), ())
    )


def clip_title(clip: str) -> str:
    """What a clip is called once folder, class, source, container and punctuation are taken off, in lower case.

    `Cov-COVID lung 1_mp4` and `pocus_videos/convex/Cov-Butterfly-COVID Lung 1.mp4` are both `covidlung1`.
    """
    name = ENDING.sub("", clip.rstrip("/").rpartition("/")[2])
    return re.sub(r"[\W_]+", "", SOURCE.sub("", name)).lower()


def _differing(
    blocks: Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]], code: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """The pairs whose codes differ and are known (0 or more)."""
    for i, j in blocks:
        kept = (code[i] != code[j]) & (code[i] >= 0) & (code[j] >= 0)
        if kept.any():
            yield i[kept], j[kept]


def _codes(values: Sequence[Hashable]) -> NDArray[np.int64]:
    """A number from 0 for each distinct value, -1 for None."""
    numbers: dict[Hashable, int] = {}
    return np.array(
        [-1 if value is None else numbers.setdefault(value, len(numbers)) for value in values], dtype=np.int64
    )


def _bits(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> int:
    return int(np.unpackbits(first ^ second).sum())


def without_overlap(corpus: PackedCorpus, folder: Path | None) -> NDArray[np.int64]:
    """(n,) int64 rows of the corpus that the audit in `folder` leaves in; all without an audit.

    Raises:
        StoreError: The audit is absent, of another form, or of another corpus.
    """
    rows = np.arange(len(corpus))
    if folder is None:
        return rows
    found = read_audit(folder).rows
    if not {*found} <= {*range(len(corpus))}:
        raise damaged(folder / "audit.json", f"its rows are not those of {len(corpus)} images")
    return np.delete(rows, np.array(found, dtype=np.int64))


class AuditFile(pydantic.BaseModel):
    """`audit.json` of a stage: its policy, the rows of the corpus that stand in the test data, and what was found."""

    model_config = pydantic.ConfigDict(extra="forbid")

    overlap: Literal["refuse", "exclude", "allow"]
    rows: list[int]
    images: int
    share: float
    groups: int
    examples: list[tuple[str, str, int]]
    clips: list[tuple[str, str]]


def read_audit(folder: Path) -> AuditFile:
    """What an audit stage found.

    Raises:
        StoreError: Absent, or of another form.
    """
    return read_json(folder / "audit.json", AuditFile)
