"""The audit of a packed corpus against a task's images."""

from __future__ import annotations

import dataclasses

from anaus_bench.datasets.audit import shared_clips
from anaus_bench.kit.synthetic import synthetic_corpus
from anaus_bench.stages.audit import _part_of_corpus


def test_clips_of_a_packed_corpus_are_found_by_name() -> None:
    corpus = synthetic_corpus(2)
    clip = "butterfly:Cov-Butterfly-COVID Lung 1_mp4"
    entries = tuple(dataclasses.replace(entry, dataset="butterfly", video_id=clip) for entry in corpus.entries)

    part = _part_of_corpus(dataclasses.replace(corpus, entries=entries))

    test_clip = "pocus_videos/convex/Cov-Butterfly-COVID Lung 1.mp4"
    assert shared_clips(part.clips, [test_clip]) == [["Cov-Butterfly-COVID Lung 1_mp4", test_clip]]
