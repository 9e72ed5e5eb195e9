"""Pickled arrays are read; anything that would run is not."""

from __future__ import annotations

import contextlib
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anaus_bench.datasets.pickles import SKIPPED_FROM, read_arrays
from anaus_bench.errors import UnreadableFile, WrongVersion


def saved(path: Path, value: object, protocol: int = 3) -> Path:
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_come_back_as_they_were(protocol: int, order: Any, tmp_path: Path) -> None:
    images = np.asarray(np.random.default_rng(0).integers(0, 256, (5, 3, 8, 7), dtype=np.uint8), order=order)
    labels = np.arange(5)

    first, second = read_arrays(saved(tmp_path / "a.pkl", (images, labels), protocol))

    np.testing.assert_array_equal(first, images)
    np.testing.assert_array_equal(second, labels)
    assert first.dtype == np.uint8


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_without_content_large_arrays_have_their_shape_and_small_ones_their_values(
    protocol: int, tmp_path: Path
) -> None:
    images = np.ones((2, SKIPPED_FROM), dtype=np.uint8)
    path = saved(tmp_path / "a.pkl", (images, np.arange(7), images, np.arange(2)), protocol)

    arrays = read_arrays(path, content=False)

    assert [array.shape for array in arrays] == [images.shape, (7,), images.shape, (2,)]
    assert not arrays[0].any()
    assert arrays[1].tolist() == list(range(7))


class Harm:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_pickle_that_would_run_something_is_refused_before_it_does(protocol: int, tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    path = saved(tmp_path / "bad.pkl", (np.arange(3), Harm(touched)), protocol)

    for content in (True, False):
        with pytest.raises(WrongVersion, match=r"bad\.pkl' asks for '"):
            read_arrays(path, content=content)

    assert not touched.exists()


@pytest.mark.parametrize(
    "code",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n(S'a'\ntR.",
        b"cnumpy.core.multiarray\nfromfile\n(S'a'\ntR.",
        b"cnumpy\nndarray.tofile\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
        b"Pelsewhere\n.",
    ],
)
def test_other_names_even_of_numpy_are_refused(code: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(code)

    with pytest.raises(WrongVersion, match="only numpy arrays"):
        read_arrays(tmp_path / "a.pkl")


@pytest.mark.parametrize(
    "value", [(), {"a": 1}, 3, (np.arange(2), "text"), (np.array(["a"]),), (np.array([None, 1]),), np.arange(3)]
)
def test_anything_but_a_tuple_of_numbers_is_refused(value: object, tmp_path: Path) -> None:
    with pytest.raises((UnreadableFile, WrongVersion)):
        read_arrays(saved(tmp_path / "a.pkl", value))


def test_every_truncation_is_an_error_of_ours(tmp_path: Path) -> None:
    whole = pickle.dumps((np.arange(40), np.zeros((2, SKIPPED_FROM), dtype=np.uint8)), protocol=4)
    path = tmp_path / "cut.pkl"

    for length in [*range(0, 400, 7), SKIPPED_FROM, len(whole) - 40, len(whole) - 1]:
        path.write_bytes(whole[:length])
        for content in (True, False):
            with pytest.raises(UnreadableFile, match=r"cut\.pkl"):
                read_arrays(path, content=content)


def test_random_damage_is_an_error_of_ours_or_harmless(tmp_path: Path) -> None:
    whole = bytearray(pickle.dumps((np.arange(40), np.arange(6) % 3), protocol=3))
    path, rng = tmp_path / "a.pkl", np.random.default_rng(0)

    for _ in range(600):
        damaged = bytearray(whole)
        for position in rng.integers(0, len(whole), 3):
            damaged[position] = rng.integers(0, 256)
        path.write_bytes(damaged)
        with contextlib.suppress(UnreadableFile, WrongVersion):
            read_arrays(path)
