from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from anaus_bench.corpus.clips import ClipSampler, ClipSampling, find_clips, uniform_integers
from anaus_bench.corpus.labels import BalancedSampler, SemiSupervisedSampler, labelled_part, share_of_clips
from anaus_bench.corpus.packed import Entry, PackedCorpus
from anaus_bench.corpus.sampling import ImageSampler, WeightedSampler
from anaus_bench.errors import CountMismatch, DataError, LabelError


def corpus_of(clips: Sequence[tuple[str, str | None, int, int]]) -> PackedCorpus:
    """A corpus of clips (data set, video id, frames, label); frames are packed in reverse order."""
    entries = [
        Entry(
            f"{dataset}/{video}#{frame}",
            dataset,
            f"g{number}",
            label,
            video,
            None if video is None else 10 * frame,
            None,
            (0, 0, 8, 8),
        )
        for number, (dataset, video, frames, label) in enumerate(clips)
        for frame in reversed(range(frames))
    ]
    images = np.zeros((len(entries), 8, 8), dtype=np.uint8)
    return PackedCorpus(images, None, tuple(entries), (), {}, ("a", "b"), False)


CORPUS = corpus_of([("one", "v", 4, 0), ("two", "v", 2, 1), ("two", "w", 10, -1)])


def first_frames(clips: Tensor, progress: float, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
    return torch.zeros(len(clips), 1, dtype=torch.long), torch.full((len(clips),), progress)


def test_clips_are_told_apart_by_data_set_and_ordered_by_frame() -> None:
    clips = find_clips(CORPUS, "method")

    assert clips.lengths.tolist() == [4, 2, 10]
    assert clips.datasets == ("one", "two", "two")
    positions = clips.at(torch.tensor([0, 1]), torch.tensor([[0, 3], [1, 0]]))
    assert positions.tolist() == [[3, 0], [4, 5]]


def test_short_clips_are_left_out_and_counted() -> None:
    clips = find_clips(CORPUS, "method", least=3)

    assert clips.lengths.tolist() == [4, 10]
    assert clips.too_short == 1


def test_a_corpus_without_usable_clips_is_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"'uscl' .* 3 of 7 images belong to none \(data sets: busi\)"):
        find_clips(corpus_of([("one", "v", 4, 0), ("busi", None, 3, 0)]), "uscl")
    with pytest.raises(DataError, match="at least 11 frames; the longest of 3 clips of this corpus has 10"):
        find_clips(CORPUS, "usucl", least=11)


@pytest.mark.parametrize("sampling", ["frames", "clips"])
def test_a_clip_draw_is_a_function_of_seed_step_and_progress(sampling: ClipSampling) -> None:
    def draw(seed: int, step: int) -> list[list[int]]:
        sampler = ClipSampler(find_clips(CORPUS, "method"), 2, seed, first_frames, sampling)
        return sampler.draw(step, 0.5).images.tolist()

    sampler = ClipSampler(find_clips(CORPUS, "method"), 2, 0, first_frames, sampling)
    for step in (7, 3, 0, 7):
        assert sampler.draw(step, 0.5).images.tolist() == draw(0, step)
    assert any(draw(0, step) != draw(1, step) for step in range(10))


def test_clips_of_a_batch_differ_where_there_are_enough_and_are_drawn_by_their_length() -> None:
    clips = find_clips(CORPUS, "method")
    pairs = ClipSampler(clips, 2, 0, first_frames, "frames")
    single = ClipSampler(clips, 1, 0, first_frames, "frames")

    assert all(len(set(pairs.draw(step, 0.0).images.flatten().tolist())) == 2 for step in range(50))
    counts = Counter(single.draw(step, 0.0).images.item() for step in range(1600))
    shares = {position: count / 1600 for position, count in counts.items()}
    first = {int(clips.positions[start]): int(length) / 16 for start, length in zip(clips.starts, clips.lengths)}  # noqa: B905
    assert shares == pytest.approx(first, abs=0.05)
    assert ClipSampler(clips, 5, 0, first_frames, "frames").draw(0, 0.0).images.shape == (5, 1)


def test_an_epoch_has_as_many_items_as_frames_or_as_clips() -> None:
    clips = find_clips(CORPUS, "method")

    assert ClipSampler(clips, 2, 0, first_frames, "frames").steps_per_epoch == 8
    by_clip = ClipSampler(clips, 1, 0, first_frames, "clips")
    assert by_clip.steps_per_epoch == 3
    seen = {by_clip.draw(step, 0.0).images.item() for step in range(3, 6)}
    assert seen == {int(clips.positions[start]) for start in clips.starts}
    with pytest.raises(CountMismatch, match="corpus has 3 clips, fewer than one batch of 4"):
        ClipSampler(clips, 4, 0, first_frames, "clips")


def test_weights_and_progress_pass_through() -> None:
    draw = ClipSampler(find_clips(CORPUS, "method"), 2, 0, first_frames, "frames").draw(0, 0.25)

    assert draw.weights is not None
    assert draw.weights.tolist() == [0.25, 0.25]


def test_uniform_integers_cover_their_range_and_nothing_else() -> None:
    low, high = torch.tensor([0, 5, -2]).repeat(400, 1), torch.tensor([3, 6, 1]).repeat(400, 1)

    drawn = uniform_integers(low, high, torch.Generator().manual_seed(0))

    assert [sorted(set(column.tolist())) for column in drawn.T] == [[0, 1, 2], [5], [-2, -1, 0]]


def test_images_pass_once_per_epoch() -> None:
    sampler = ImageSampler(7, 3, 0)

    epoch = torch.cat([sampler.draw(step, 0.0).images for step in range(2)]).flatten().tolist()
    assert len(set(epoch)) == 6
    assert sampler.steps_per_epoch == 2


def test_a_weighted_sampler_gives_each_item_the_number_of_its_image() -> None:
    sampler = WeightedSampler(ImageSampler(7, 3, 0), 10 * torch.arange(7.0))

    draw = sampler.draw(1, 0.0)

    assert sampler.steps_per_epoch == 2
    assert torch.equal(draw.images, ImageSampler(7, 3, 0).draw(1, 0.0).images)
    assert draw.weights is not None
    assert torch.equal(draw.weights, 10.0 * draw.images[:, 0])


def test_labels_are_kept_by_clip_in_every_class() -> None:
    corpus = corpus_of([("one", f"v{number}", 3, number % 2) for number in range(20)] + [("one", "x", 5, -1)])

    kept = labelled_part(corpus, corpus.labels(), 0.2, seed=0)

    by_clip: dict[str | None, list[bool]] = {}
    for entry, keeps in zip(corpus.entries, kept.tolist(), strict=True):
        by_clip.setdefault(entry.video_id, []).append(keeps)
    assert all(len(set(values)) == 1 for values in by_clip.values())
    chosen = [video for video, values in by_clip.items() if values[0]]
    assert Counter(int(str(video)[1:]) % 2 for video in chosen) == {0: 2, 1: 2}
    assert (labelled_part(corpus, corpus.labels(), 0.2, seed=0) == kept).all()
    assert any((labelled_part(corpus, corpus.labels(), 0.2, seed=seed) != kept).any() for seed in range(1, 5))


def test_at_least_one_clip_of_a_class_keeps_its_label_and_all_do_at_fraction_one() -> None:
    assert labelled_part(CORPUS, CORPUS.labels(), 0.01, 0).sum() == 6
    assert (labelled_part(CORPUS, CORPUS.labels(), 1.0, 0) == (CORPUS.labels() >= 0)).all()
    with pytest.raises(LabelError, match="none of the 16 images of this corpus has a class label"):
        labelled_part(CORPUS, np.full(16, -1), 0.5, 0)


@pytest.mark.parametrize("seed", range(3))
def test_shares_are_of_whole_clips_of_every_data_set_and_smaller_ones_are_parts_of_larger(seed: int) -> None:
    clips = [("one", f"v{n}", 3, -1) for n in range(20)] + [("two", f"v{n}", 5, -1) for n in range(10)]
    corpus = corpus_of([*clips, ("three", None, 1, -1), ("three", None, 2, -1)])
    rows = np.arange(len(corpus))

    parts = {share: share_of_clips(corpus, rows, share, seed) for share in (0.01, 0.5, 0.6, 0.9, 1.0)}

    for share, part in parts.items():
        units = Counter((corpus.entries[row].dataset, corpus.entries[row].group_id) for row in part)
        whole = Counter((entry.dataset, entry.group_id) for entry in corpus.entries)
        assert all(whole[unit] == count for unit, count in units.items())
        counts = Counter(dataset for dataset, _ in units)
        assert counts == {name: max(1, round(share * n)) for name, n in (("one", 20), ("two", 10), ("three", 2))}
    ordered = list(parts.values())
    assert all(set(small) <= set(large) for small, large in itertools.pairwise(ordered))
    assert parts[1.0].tolist() == rows.tolist()
    assert [part.tolist() == sorted(part) for part in ordered] == [True] * 5


def test_another_seed_gives_another_share_and_rows_left_out_stay_out() -> None:
    corpus = corpus_of([("one", f"v{n}", 2, -1) for n in range(20)])
    rows = np.arange(4, 40)

    first, again, other = (share_of_clips(corpus, rows, 0.5, seed).tolist() for seed in (0, 0, 1))

    assert first == again != other
    assert min(first) >= 4


def test_labelled_and_other_images_pass_in_permutations_without_end() -> None:
    labelled = torch.tensor([3, 9, 11])
    sampler = SemiSupervisedSampler(labelled, 12, 2, 3, seed=0)

    draws = [sampler.draw(step, 0.0).images for step in range(6)]

    assert sampler.steps_per_epoch == 6
    assert all(draw.shape == (2, 4) for draw in draws)
    assert Counter(torch.cat(draws)[:, 0].tolist()) == {3: 4, 9: 4, 11: 4}
    assert Counter(torch.cat(draws)[:, 1:].flatten().tolist()) == dict.fromkeys(range(12), 3)
    again = SemiSupervisedSampler(labelled, 12, 2, 3, seed=0)
    assert torch.equal(again.draw(4, 0.0).images, draws[4])
    with pytest.raises(CountMismatch, match="corpus has 12 images, fewer than one batch of 13"):
        SemiSupervisedSampler(labelled, 12, 13, 1, seed=0)


def test_balanced_draws_show_every_class_as_often_and_no_unlabelled_image() -> None:
    labels = np.array([0, 2, 0, -1, 0, 0, -1, 2, 0])  # five of class 0, two of class 2, none of class 1
    sampler = BalancedSampler(labels, 4, 7)

    drawn = torch.cat([sampler.draw(step, 0.0).images for step in range(10)])[:, 0]

    assert drawn.shape == (40,)
    assert all(sorted(labels[pair].tolist()) == [0, 2] for pair in drawn.view(-1, 2))  # every round has every class
    for label, count in ((0, 4), (2, 10)):
        assert set(Counter(drawn[labels[drawn] == label].tolist()).values()) == {count}
    assert sampler.steps_per_epoch == 2


def test_a_balanced_draw_is_a_function_of_seed_and_step_also_across_rounds() -> None:
    labels = np.array([0, 1, 2, 0, 1, 2, 0])

    def draws(batch: int, steps: int, seed: int = 0) -> list[int]:
        sampler = BalancedSampler(labels, batch, seed)
        parts = {step: sampler.draw(step, 0.0).images[:, 0] for step in reversed(range(steps))}
        return torch.cat([parts[step] for step in range(steps)]).tolist()

    assert draws(4, 6) == draws(6, 4) == draws(2, 12)  # batches need not be whole rounds of classes
    assert draws(4, 6) != draws(4, 6, seed=1)


def test_the_words_for_clips_name_those_left_out() -> None:
    assert find_clips(CORPUS, "method").in_words() == "3 of 2 to 10 frames"
    expected = "2 of 4 to 10 frames; 1 of fewer than 3 frames are left out"
    assert find_clips(CORPUS, "method", least=3).in_words(3) == expected
