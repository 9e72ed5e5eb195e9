"""What a corpus says of its images: class labels, and the views that are written in the ids of clips."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from anaus_bench.corpus.packed import PackedCorpus
from anaus_bench.errors import LabelError
from anaus_bench.settings.fields import LabelSettings


def clip_views(corpus: PackedCorpus, pattern: str) -> list[str | None]:
    """View of each image in capitals: the group of `pattern` in the id of its clip; None where it is not found."""
    found = {video: re.search(pattern, video or "") for video in {entry.video_id for entry in corpus.entries}}
    return [match[1].upper() if (match := found[entry.video_id]) else None for entry in corpus.entries]


def labels_of(corpus: PackedCorpus, settings: LabelSettings) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Class (N,) of each image, -1 = none, and the classes' names; a view is the class of what has no label."""
    if settings.label_set == "classes":
        return corpus.labels(), corpus.classes
    names = [
        corpus.classes[entry.label] if entry.label >= 0 else f"{entry.dataset}:{view}" if view else None
        for entry, view in zip(corpus.entries, clip_views(corpus, settings.view_pattern), strict=True)
    ]
    views = sorted({name for name in names if name is not None} - set(corpus.classes))
    number = {name: position for position, name in enumerate([*corpus.classes, *views])}
    return np.array([number.get(name or "", -1) for name in names], dtype=np.int64), tuple(number)


def check_classes(labels: NDArray[np.int64], names: Sequence[str], method: str) -> None:
    """Refuses labels from which nothing can be told apart.

    Raises:
        LabelError: Images of fewer than two classes.
    """
    if len(np.unique(labels[labels >= 0])) < 2:
        raise LabelError(
            f"objective {method!r} needs images of at least 2 classes, the corpus has {count_names(labels, names)}; "
            "pass another --corpus"
        )


def count_names(labels: NDArray[np.int64], names: Sequence[str]) -> str:
    """Images of each class that occurs, and of none, in words: `benign 40, malignant 38, none 2`."""
    counts = {name: int((labels == number).sum()) for number, name in enumerate(names)}
    return ", ".join(f"{name} {count}" for name, count in (*counts.items(), ("none", int((labels < 0).sum()))) if count)
