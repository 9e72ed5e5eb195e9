from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from anaus_bench.machine.failures import as_os_error, explain, is_want_of_memory

NUMBERS = sorted(errno.errorcode)


@pytest.mark.parametrize("number", NUMBERS, ids=[errno.errorcode[number] for number in NUMBERS])
def test_every_error_of_the_operating_system_is_one_line_with_a_next_step(tmp_path: Path, number: int) -> None:
    for error in (OSError(number, os.strerror(number)), OSError(number, os.strerror(number), str(tmp_path / "a"))):
        text = explain(error, tmp_path)

        assert "\n" not in text
        assert text[0].islower() or text[0] == "'"
        assert ";" in text


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, ("no space left in store", "MiB free", "pass another --store")),
        (errno.EDQUOT, ("no space left in store", "by your quota")),
        (errno.EROFS, ("Read-only file system", "pass another --store")),
        (errno.EMFILE, ("ulimit -n",)),
        (errno.EFBIG, ("ulimit -f",)),
        (errno.EIO, ("Input/output error", "the disk or its connection fails")),
        (errno.EOPNOTSUPP, ("not supported", "pass another --store")),
        (errno.EACCES, ("Permission denied", "belongs to ", "has mode -rw-------", "ask for access")),
    ],
)
def test_an_error_names_what_helps(tmp_path: Path, number: int, words: tuple[str, ...]) -> None:
    path = tmp_path / "a"
    path.touch(mode=0o600)

    text = explain(OSError(number, os.strerror(number), str(path)), tmp_path)

    for word in words:
        assert word in text


def test_an_error_without_a_number_says_what_the_library_said() -> None:
    assert "encoder error -2" in explain(OSError("encoder error -2 when writing image file"))


def test_the_error_behind_a_failed_write_of_a_library_is_found(tmp_path: Path) -> None:
    content = {"a": torch.zeros(10_000)}
    with pytest.raises(RuntimeError) as of_torch:
        torch.save(content, "/dev/full")
    with pytest.raises(safetensors.SafetensorError) as of_safetensors:
        safetensors.torch.save_file(content, tmp_path / "absent" / "file")

    assert as_os_error(of_torch.value).errno == errno.ENOSPC  # type: ignore[union-attr]
    assert as_os_error(of_safetensors.value).errno == errno.ENOENT  # type: ignore[union-attr]
    assert as_os_error(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None


def test_want_of_memory_is_told_from_other_errors() -> None:
    with pytest.raises((RuntimeError, MemoryError)) as of_torch:
        torch.empty(2**60)
    with pytest.raises(MemoryError) as of_numpy:
        np.empty(2**60, dtype=np.uint8)

    assert is_want_of_memory(of_torch.value)
    assert is_want_of_memory(of_numpy.value)
    assert is_want_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"))
    assert not is_want_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
