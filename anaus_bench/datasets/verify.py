"""Reads every sample of a data set and says what is right and wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from anaus_bench.datasets.listing import first_names, left_out
from anaus_bench.errors import DataError, EndOfClip
from anaus_bench.interfaces import Dataset, Index, Progress

SHOWN = 5


@dataclass(frozen=True)
class Report:
    """What `verify` found.

    Attributes:
        name: Data set.
        root: Its folder.
        images: Number of samples.
        classes: Samples per class.
        groups: Number of groups that folds keep whole.
        with_mask: Samples whose mask is not empty.
        sizes: Smallest and largest (height, width) by area.
        offenders: Messages of the files and samples that cannot be used.
        warnings: Remarks that do not forbid using the data.
    """

    name: str
    root: str
    images: int
    classes: dict[str, int]
    groups: int
    with_mask: int
    sizes: tuple[tuple[int, int], tuple[int, int]] | None
    offenders: tuple[str, ...]
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dict(vars(self))

    def lines(self) -> list[str]:
        """For people."""
        counts = ", ".join(f"{name} {count}" for name, count in self.classes.items())
        lines = [
            f"{self.name} in {self.root}: {self.images} images in {self.groups} groups"
            + (f" ({counts})" if counts else "")
        ]
        if self.sizes:
            (low, high) = self.sizes
            lines.append(
                f"sizes from {low[0]}x{low[1]} to {high[0]}x{high[1]} (height x width), {self.with_mask} with a mask"
            )
        lines += [f"warning: {text}" for text in self.warnings]
        lines += [f"wrong: {text}" for text in self.offenders[:SHOWN]]
        if len(self.offenders) > SHOWN:
            lines.append(f"wrong: {len(self.offenders) - SHOWN} more; --json lists all")
        lines.append(
            "all images and masks can be read" if not self.offenders else f"{len(self.offenders)} images cannot be used"
        )
        return lines


def verify(dataset: Dataset[Any], index: Index, progress: Progress, changed: Sequence[str] = ()) -> Report:
    """Decodes every sample; collects the errors, one of each file, instead of stopping at the first.

    Args:
        dataset: What is read.
        index: Its samples.
        progress: Who is told.
        changed: Files whose content changed though their size and times did not.
    """
    offenders = dict(index.unreadable)
    remarks: list[str] = []
    ends: dict[str, str] = {}  # of clips that end before their last frame
    sizes: set[tuple[int, int]] = set()
    with_mask = lost = 0
    with progress.track(f"read {dataset.name}", len(index.samples)) as tracker:
        for number, sample in enumerate(index.samples):
            try:
                picture = dataset.read(index, sample)
            except EndOfClip as error:
                ends.setdefault(sample.path, str(error))
                lost += 1
            except DataError as error:
                offenders.setdefault(sample.path, str(error))
            else:
                remarks += picture.remarks
                height, width = picture.image.shape
                sizes.add((height, width))
                with_mask += picture.mask is not None and bool(picture.mask.any())
            tracker.advance(number + 1, images=1, waited=0.0)
    ordered = sorted(sizes, key=lambda size: size[0] * size[1])
    labels = Counter(sample.label for sample in index.samples if sample.label is not None)
    return Report(
        name=dataset.name,
        root=str(index.root),
        images=len(index.samples) - lost,
        classes={dataset.classes[label]: count for label, count in sorted(labels.items())},
        groups=len(set(dataset.groups(index))) if not offenders else len({sample.group_id for sample in index.samples}),
        with_mask=with_mask,
        sizes=(ordered[0], ordered[-1]) if ordered else None,
        offenders=tuple(offenders.values()),
        warnings=(*index.warnings, *ends.values(), *dict.fromkeys(remarks), *_rotten(changed), *_left_out(index)),
    )


def _rotten(changed: Sequence[str]) -> list[str]:
    if not changed:
        return []
    return [f"the content of {first_names(changed)} changed, size and times did not; check the disk"]


def _left_out(index: Index) -> list[str]:
    """What stands among the data and is none."""
    found = left_out(index.root)
    if not found:
        return []
    names = [f"{name} ({count} times)" if count > 1 else name for name, count in found.most_common()]
    return [f"left out, as what systems and network drives leave behind (remove it if you wish): {first_names(names)}"]
