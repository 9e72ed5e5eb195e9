"""Perceptual hashes and the groups they form."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from anaus_bench.datasets.near_duplicates import close_pairs, near_duplicate_groups, perceptual_hash
from anaus_bench.simulator.phantoms import breast_clip


def picture(patient: int) -> NDArray[np.uint8]:
    return breast_clip("hash", patient, "benign", frames=1, size=128, seed=0).images[0]


def differing(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> int:
    return int(np.unpackbits(first ^ second).sum())


def with_bits(bits: list[int]) -> NDArray[np.uint8]:
    values = np.zeros(256, dtype=np.uint8)
    values[bits] = 1
    return np.packbits(values)


def test_hash_is_the_sign_of_the_lowest_cosine_frequencies() -> None:
    from scipy.fft import dctn

    image = picture(0)
    reduced = np.asarray(Image.fromarray(image).resize((64, 64), Image.Resampling.LANCZOS), dtype=np.float64)
    lowest = dctn(reduced, norm="ortho")[:16, :16]

    bits = np.unpackbits(perceptual_hash(image)).reshape(16, 16)

    np.testing.assert_array_equal(bits, lowest > np.median(lowest))


def test_a_changed_copy_is_near_and_another_patient_is_far() -> None:
    image = picture(0)
    darker = (image * 0.8).astype(np.uint8)
    smaller = np.asarray(Image.fromarray(image).resize((90, 90)))

    assert differing(perceptual_hash(image), perceptual_hash(darker)) <= 10
    assert differing(perceptual_hash(image), perceptual_hash(smaller)) <= 40
    assert differing(perceptual_hash(image), perceptual_hash(picture(1))) > 60


def test_pairs_are_those_of_a_slow_loop_at_any_block_size() -> None:
    generator = np.random.default_rng(0)
    base = generator.integers(0, 256, (12, 32), dtype=np.uint8)
    hashes = np.concatenate([base, base ^ (generator.random((12, 32)) < 0.1).astype(np.uint8)])
    expected = {(i, j) for i in range(24) for j in range(i + 1, 24) if differing(hashes[i], hashes[j]) <= 3}

    for block in (1, 5, 1024):
        assert set(zip(*map(np.ndarray.tolist, close_pairs(hashes, 3, block)), strict=True)) == expected
    assert expected


def test_a_chain_of_near_pairs_is_one_group_and_numbers_follow_first_appearance() -> None:
    chain = [with_bits([]), with_bits(list(range(100, 256))), with_bits([0, 1]), with_bits([0, 1, 2, 3])]

    assert near_duplicate_groups(np.stack(chain), distance=2) == [0, 1, 0, 0]
    assert near_duplicate_groups(np.stack(chain), distance=1) == [0, 1, 2, 3]


@pytest.mark.parametrize("count", [0, 1])
def test_few_images_are_their_own_groups(count: int) -> None:
    assert near_duplicate_groups(np.zeros((count, 32), dtype=np.uint8), 40) == list(range(count))
