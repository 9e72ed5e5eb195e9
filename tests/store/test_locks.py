from __future__ import annotations

import errno
import fcntl
import os
import platform
from pathlib import Path

import pytest

from anaus_bench.store.locks import Lock


def test_one_holds_a_lock_and_says_who_it_is(tmp_path: Path) -> None:
    first, second = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")

    assert first.acquire()

    assert not second.acquire()
    holder = second.holder()
    assert holder is not None
    assert holder.startswith(f"process {os.getpid()} on {platform.node()} since 20")


def test_a_lock_that_was_let_go_leaves_no_file_and_can_be_taken(tmp_path: Path) -> None:
    first, second = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")
    first.acquire()

    first.release()

    assert not list(tmp_path.iterdir())
    assert second.holder() is None
    assert second.acquire()


def test_the_file_of_a_killed_holder_holds_nobody(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text('{"host": "gone", "process": 1, "since": "yesterday"}')

    assert Lock(tmp_path / "lock").holder() is None
    assert Lock(tmp_path / "lock").acquire()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_there_are_no_locks_nobody_holds_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    first, second = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")

    assert first.acquire() and second.acquire()
    assert not first.works
    assert second.holder() is None
    assert not list(tmp_path.iterdir())
