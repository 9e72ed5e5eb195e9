"""Reads every sample of a data set and says what is right and wrong with it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from anaus_bench.errors import DataError
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
        offenders: Messages of the samples that cannot be used.
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


def verify(dataset: Dataset[Any], index: Index, progress: Progress) -> Report:
    """Decodes every sample; collects the errors instead of stopping at the first."""
    offenders: list[str] = []
    sizes: set[tuple[int, int]] = set()
    with_mask = 0
    with progress.track(f"read {dataset.name}", len(index.samples)) as tracker:
        for number, sample in enumerate(index.samples):
            try:
                picture = dataset.read(index, sample)
            except DataError as error:
                offenders.append(str(error))
            else:
                height, width = picture.image.shape
                sizes.add((height, width))
                with_mask += picture.mask is not None and bool(picture.mask.any())
            tracker.advance(number + 1, images=1, waited=0.0)
    ordered = sorted(sizes, key=lambda size: size[0] * size[1])
    labels = Counter(sample.label for sample in index.samples if sample.label is not None)
    return Report(
        name=dataset.name,
        root=str(index.root),
        images=len(index.samples),
        classes={dataset.classes[label]: count for label, count in sorted(labels.items())},
        groups=len(set(dataset.groups(index))) if not offenders else len({sample.group_id for sample in index.samples}),
        with_mask=with_mask,
        sizes=(ordered[0], ordered[-1]) if ordered else None,
        offenders=tuple(offenders),
        warnings=index.warnings,
    )
