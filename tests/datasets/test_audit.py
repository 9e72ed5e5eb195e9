"""The audit finds what is planted, counts it once, and copes with large sets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from anaus_bench.datasets.audit import Part, audit, clip_title, near_across, near_between, part_of, shared_clips
from anaus_bench.datasets.near_duplicates import close_blocks, close_pairs, image_hashes, near_duplicate_groups
from anaus_bench.settings.base import Settings


def random_hashes(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 32), dtype=np.uint8)


def flipped(code: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    values = np.unpackbits(code)
    values[:bits] ^= 1
    return np.packbits(values)


def part(
    hashes: NDArray[np.uint8], labels: list[int | None], folds: list[int] | None = None, prefix: str = "a"
) -> Part:
    ids = [f"{prefix}{number}" for number in range(len(hashes))]
    return Part(hashes, ids, ids, labels, [None] * len(ids), folds)


def test_pairs_between_two_sets_are_those_of_a_slow_loop_at_any_block_size() -> None:
    first, second = random_hashes(9), random_hashes(7, seed=1)
    second[2], second[5] = flipped(first[4], 3), flipped(first[8], 12)
    expected = {(i, j) for i in range(9) for j in range(7) if int(np.unpackbits(first[i] ^ second[j]).sum()) <= 12}

    for block in (1, 4, 2048):
        found = {
            pair for i, j in close_blocks(first, second, 12, block) for pair in zip(i.tolist(), j.tolist(), strict=True)
        }
        assert found == expected == {(4, 2), (8, 5)}


def test_pairs_across_folds_and_classes_are_counted_with_examples() -> None:
    hashes = random_hashes(6)
    hashes[3], hashes[5] = flipped(hashes[0], 7), flipped(hashes[1], 40)
    data = part(hashes, labels=[0, 0, 1, 0, None, 1], folds=[0, 1, 2, 1, 0, 1])

    assert near_across(data, data.folds or [], 40) == {"pairs": 1, "images": 2, "examples": [["a0", "a3", 0, 1, 7]]}
    assert near_across(data, data.labels, 40) == {"pairs": 1, "images": 2, "examples": [["a1", "a5", 0, 1, 40]]}
    assert near_across(data, data.labels, 39)["pairs"] == 0
    hashes[4] = hashes[5]
    assert near_across(data, data.labels, 40)["pairs"] == 1  # an unknown class differs from none


def test_test_images_that_a_corpus_knows_are_counted_once() -> None:
    corpus, test = random_hashes(50), random_hashes(10, seed=1)
    test[3], test[7] = flipped(corpus[20], 5), corpus[21]
    corpus[22] = corpus[21]

    found = near_between(part(corpus, [None] * 50, prefix="c"), part(test, [0] * 10, prefix="t"), 40)

    assert (found["images"], found["share"], found["groups"]) == (2, 0.2, 2)
    assert sorted(found["examples"]) == [["c20", "t3", 5], ["c21", "t7", 0]]


def test_clips_are_known_again_by_their_title() -> None:
    corpus = ["Cov-COVID lung 1_mp4", "Reg-Normal A lines_mp4", "Cov-other_mp4", None]
    test = [
        "pocus_videos/convex/Cov-Butterfly-COVID Lung 1.mp4",
        "pocus_videos/convex/Reg-Butterfly-normal_A-lines.avi",
        "pocus_videos/convex/Pneu_Avi_Video_004.mp4",
        None,
    ]

    assert clip_title("a/Cov-Butterfly-COVID Lung 1.mp4") == clip_title("Cov-COVID lung 1_mp4") == "covidlung1"
    assert shared_clips(corpus, test) == [["Cov-COVID lung 1_mp4", test[0]], ["Reg-Normal A lines_mp4", test[1]]]


def test_the_audit_is_a_plain_record_of_everything() -> None:
    corpus, test = random_hashes(5), random_hashes(5, seed=1)
    test[4] = corpus[0]
    parts = {
        "corpus": part(corpus, [None] * 5, prefix="c"),
        "test": part(test, [0, 1, 0, 1, 0], folds=[0, 0, 1, 1, 2], prefix="t"),
    }

    record = audit(parts, tests=["test"])

    assert json.loads(json.dumps(record)) == record
    assert set(record["between"]) == {"corpus|test"}
    assert record["between"]["corpus|test"]["images"] == 1
    assert record["parts"]["corpus"]["across_folds"] is None
    assert record["parts"]["test"]["across_folds"]["pairs"] == 0
    assert audit({})["parts"] == {}
    assert audit({"empty": part(random_hashes(0), [])}, tests=["empty"])["parts"]["empty"]["images"] == 0


def test_ten_thousand_equal_images_do_not_become_all_their_pairs() -> None:
    hashes = np.repeat(random_hashes(3), 10_000, axis=0)

    assert near_duplicate_groups(hashes, 40) == [0] * 10_000 + [1] * 10_000 + [2] * 10_000


@pytest.mark.slow
def test_sixty_thousand_images_are_compared() -> None:
    hashes = random_hashes(60_000)
    hashes[59_999] = flipped(hashes[3], 9)

    first, second = close_pairs(hashes, 40)

    assert (first.tolist(), second.tolist()) == ([3], [59_999])


@pytest.mark.data
def test_the_audit_of_the_whole_of_busi_gives_the_published_duplicates(data_root: Callable[[str], Path]) -> None:
    from anaus_bench.datasets.folds import make_folds
    from anaus_plugins.datasets.busi import BUSI

    dataset = BUSI(Settings())
    index = dataset.scan(data_root("busi_256"))
    hashes, groups = image_hashes(dataset, index), dataset.groups(index)
    folds = make_folds(groups, [sample.label for sample in index.samples], 5, seed=0)
    naive = [number % 5 for number in range(len(groups))]

    grouped = audit({"busi": part_of(index, hashes, groups, folds)})["parts"]["busi"]
    ungrouped = near_across(part_of(index, hashes), naive)
    exact = near_across(part_of(index, hashes), [sample.label for sample in index.samples], 0)

    assert (grouped["near_duplicate_groups"], grouped["near_duplicate_images"]) == (142, 316)
    assert grouped["across_folds"]["pairs"] == grouped["across_groups"]["pairs"] == 0
    assert grouped["across_classes"]["pairs"] >= 8
    assert ungrouped["pairs"] > 100
    assert exact["examples"] == [["benign/benign (433).png", "malignant/malignant (145).png", 0, 1, 0]]
