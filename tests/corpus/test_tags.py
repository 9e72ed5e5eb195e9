from __future__ import annotations

import numpy as np

from anaus_bench.corpus.packed import Entry, PackedCorpus
from anaus_bench.corpus.tags import clip_views, count_names, labels_of
from anaus_bench.settings.fields import CAMUS_VIEWS, LabelSettings


def corpus_of(*clips: tuple[str, str | None, int]) -> PackedCorpus:
    """One image of each (data set, video, label)."""
    entries = tuple(
        Entry(f"{number}.png", dataset, "g", label, video, None if video is None else 0, None, (0, 0, 8, 8))
        for number, (dataset, video, label) in enumerate(clips)
    )
    images = np.zeros((len(clips), 8, 8), dtype=np.uint8)
    return PackedCorpus(images, None, entries, (), {}, ("lung:regular", "lung:covid"), False)


CORPUS = corpus_of(
    ("lung", "Cov-4ch", 1),
    ("camus", "patient1_2CH", -1),
    ("camus", "patient1_4ch", -1),
    ("other", None, -1),
    ("other", "sweep", -1),
)


def test_views_are_read_from_the_ids_of_clips() -> None:
    assert clip_views(CORPUS, CAMUS_VIEWS) == ["4CH", "2CH", "4CH", None, None]
    assert clip_views(CORPUS, "(sweep)") == [None] * 4 + ["SWEEP"]


def test_a_view_is_the_class_of_an_image_without_label() -> None:
    labels, names = labels_of(CORPUS, LabelSettings())

    assert names == ("lung:regular", "lung:covid", "camus:2CH", "camus:4CH")
    assert labels.tolist() == [1, 2, 3, -1, -1]


def test_classes_alone_on_request() -> None:
    labels, names = labels_of(CORPUS, LabelSettings(label_set="classes"))

    assert names == ("lung:regular", "lung:covid")
    assert labels.tolist() == [1, -1, -1, -1, -1]


def test_counts_name_what_occurs_and_what_has_no_label() -> None:
    assert count_names(np.array([1, 1, 0, -1]), ("a", "b", "c")) == "a 1, b 2, none 1"
