from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from anaus_bench.errors import StoreError
from anaus_bench.store import FORMAT, MARKER, Store, is_marked
from anaus_bench.store.records import RECORD
from tests.campaigns.starters import start_together

KEY = "0123456789abcdef"


def publish(store: Store, key: str = "k", text: str = "content") -> Path:
    with store.claim("masks", key) as place:
        (place.out / "a.txt").write_text(text)
        store.publish("masks", key, place, {"kind": "masks", "key": key})
    return store.folder("masks", key)


def test_an_artifact_appears_whole_with_its_record(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")

    with store.claim("masks", "k") as place:
        (place.out / "a.txt").write_text("content")
        assert store.record("masks", "k") is None
        store.publish("masks", "k", place, {"kind": "masks", "key": "k"})

    assert (store.open("masks", "k") / "a.txt").read_text() == "content"
    assert [record["key"] for record in store.records("masks")] == ["k"]


def test_a_failed_stage_leaves_no_artifact_but_its_resume_state(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")

    with pytest.raises(RuntimeError), store.claim("masks", "k") as place:
        (place.out / "half.txt").write_text("half")
        (place.resume / "step.pt").write_text("state")
        raise RuntimeError("killed")

    assert store.record("masks", "k") is None
    assert store.state("masks", "k") == "resumable"
    with store.claim("masks", "k") as place:
        assert not list(place.out.iterdir())
        assert (place.resume / "step.pt").read_text() == "state"


def test_publishing_drops_the_resume_state(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")

    publish(store)

    assert store.state("masks", "k") == "done"


@pytest.mark.parametrize("damage", ["contant", "short", None])
def test_a_damaged_artifact_is_found_and_named(tmp_path: Path, damage: str | None) -> None:
    store = Store(tmp_path / "store")
    file = publish(store) / "a.txt"
    if damage is None:
        file.unlink()
    else:
        file.write_text(damage)

    with pytest.raises(StoreError, match=r"a\.txt .*delete .* and run again"):
        store.open("masks", "k")


@pytest.mark.parametrize("kind", ["lost", "emptied", "no JSON", "no object"])
def test_a_damaged_record_is_told_from_a_lost_one(tmp_path: Path, kind: str) -> None:
    store = Store(tmp_path / "store")
    path = publish(store) / RECORD
    if kind == "lost":
        path.unlink()
    else:
        path.write_text({"emptied": "", "no JSON": "{", "no object": "[]"}[kind])

    assert store.state("masks", "k") == ("absent" if kind == "lost" else "damaged")
    assert list(store.damaged("masks")) == ["k"]
    assert store.records("masks") == []
    with pytest.raises(StoreError, match=r"delete .* and run again"):
        store.open("masks", "k")


def test_every_flipped_bit_of_a_record_is_noticed(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    path = publish(store) / RECORD
    content = path.read_bytes()

    for place in range(len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)

            assert store.state("masks", "k") == "damaged", (place, bit, bytes(damaged))


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    (publish(store) / "record.json").write_text("{")

    with pytest.raises(StoreError, match=r"record\.json is damaged"):
        store.record("masks", "k")


def test_a_store_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "store.json").write_text(json.dumps({"format": FORMAT + 1}))

    with pytest.raises(StoreError, match=f"has format {FORMAT + 1}, this version reads up to {FORMAT}"):
        Store(tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["store.json"]


@pytest.mark.parametrize("found", [0, -1, True, None, "2", 1.5])
def test_a_format_that_is_none_is_damage_whose_advice_keeps_the_artifacts(tmp_path: Path, found: object) -> None:
    publish(Store(tmp_path), KEY)
    (tmp_path / MARKER).write_text(json.dumps({"format": found}))

    with pytest.raises(StoreError, match=r"store\.json is damaged .*; delete .*store\.json: the artifacts .* are kept"):
        Store(tmp_path)

    (tmp_path / MARKER).unlink()
    assert Store(tmp_path).state("masks", KEY) == "done"


def test_a_store_of_an_older_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / MARKER).write_text(json.dumps({"format": FORMAT - 1}))

    with pytest.raises(StoreError, match=f"reads none before {FORMAT}; pass another --store"):
        Store(tmp_path)


def test_a_folder_with_other_things_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")

    with pytest.raises(StoreError, match=r"is no store and not an empty folder \(it holds 'thesis.tex'\)"):
        Store(tmp_path)


def test_a_store_that_lost_its_marker_is_adopted(tmp_path: Path) -> None:
    publish(Store(tmp_path), KEY)
    (tmp_path / MARKER).unlink()
    (tmp_path / f".{MARKER}.12345678.partial").touch()  # of a process killed while it marked the store

    store = Store(tmp_path)
    publish(store, KEY[::-1])

    assert is_marked(store.root)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["masks", MARKER]
    assert {record["key"] for record in store.records("masks")} == {KEY, KEY[::-1]}


def test_a_store_is_marked_before_anything_else_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "store"

    def full(path: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(Path, "replace", full)
        publish(Store(root), KEY)

    assert not list(root.iterdir())
    publish(Store(root), KEY)


def test_home_is_where_the_user_says_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))

    publish(Store(Path("~/store")))

    assert (tmp_path / "store" / MARKER).exists()


def test_an_incomplete_folder_in_the_place_of_an_artifact_is_replaced(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    (publish(store, text="old") / RECORD).unlink()

    folder = publish(store, text="new")

    assert (store.open("masks", "k") / "a.txt").read_text() == "new"
    assert [path.name for path in folder.parent.iterdir()] == ["k"]


def test_of_two_attempts_the_first_to_end_is_kept_and_both_succeed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)  # a lock that holds nobody
    store = Store(tmp_path / "store")

    with store.claim("masks", "k") as first, store.claim("masks", "k") as second:
        (first.out / "a.txt").write_text("first")
        (second.out / "a.txt").write_text("second")
        records = [store.publish("masks", "k", place, {"key": "k"}) for place in (first, second)]

    assert records[0] == records[1] == store.record("masks", "k")
    assert (store.open("masks", "k") / "a.txt").read_text() == "first"
    assert [path.name for path in (store.root / "masks").iterdir()] == ["k"]


def work(root: Path, begun: Path, go_on: Path) -> None:
    fcntl.flock = lambda *_: None  # type: ignore[assignment]
    with Store(root).claim("masks", "k") as place:
        (place.resume / "step.pt").write_text("state")
        begun.touch()
        while not go_on.exists():
            pass
        (place.out / "a.txt").write_text("content")
        Store(root).publish("masks", "k", place, {"key": "k"})


def test_a_lock_that_holds_nobody_lets_a_second_run_harm_no_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = tmp_path / "begun", tmp_path / "go_on"
    first = multiprocessing.get_context("spawn").Process(target=work, args=(tmp_path / "store", begun, go_on))
    first.start()
    while not begun.exists():
        assert first.is_alive()
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    store = Store(tmp_path / "store")

    with store.claim("masks", "k") as place:
        assert (place.resume / "step.pt").read_text() == "state"
        go_on.touch()
        first.join()
        (place.out / "a.txt").write_text("content")
        store.publish("masks", "k", place, {"key": "k"})

    assert first.exitcode == 0
    assert store.state("masks", "k") == "done"


def test_without_locks_an_attempt_begins_with_what_an_earlier_one_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    store = Store(tmp_path / "store")
    with pytest.raises(RuntimeError), interrupted(store):
        raise RuntimeError("killed")

    with store.claim("masks", "k") as place:
        assert not place.locked
        assert (place.resume / "step.pt").read_text() == "state"


@contextmanager
def interrupted(store: Store) -> Iterator[None]:
    with store.claim("masks", "k") as place:
        (place.resume / "step.pt").write_text("state")
        (place.resume / "array.npy.rows").write_text("rows")
        (place.out / "array.npy").write_text("array")
        (place.out / "half.txt").write_text("half")
        yield


def test_an_attempt_takes_over_the_arrays_that_the_resume_state_speaks_of(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with pytest.raises(RuntimeError), interrupted(store):
        raise RuntimeError("killed")

    with store.claim("masks", "k") as place:
        assert [path.name for path in place.out.iterdir()] == ["array.npy"]
        assert (place.out / "array.npy").read_text() == "array"


def test_states_tell_running_from_interrupted(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")

    assert store.state("masks", "k") == "absent"
    with pytest.raises(RuntimeError), interrupted(store):
        assert store.state("masks", "k") == "running"
        assert f"process {os.getpid()} on " in str(store.holder("masks", "k"))
        raise RuntimeError("killed")
    assert store.state("masks", "k") == "resumable"
    publish(store)
    assert store.state("masks", "k") == "done"


def test_what_a_kill_left_of_a_finished_stage_is_removed_and_what_runs_is_not(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    left = publish(store).parent / ".k.12345678" / "resume"
    left.mkdir(parents=True)
    (left / "step.pt").write_text("state")

    assert store.unfinished() == [("masks", "k")]
    (left.parent.parent / ".k.lock").touch()  # of a killed process
    assert store.tidy("masks", "k") == len("state")
    assert [path.name for path in (store.root / "masks").iterdir()] == ["k"]
    with store.claim("masks", "other"):
        assert store.tidy("masks", "other", interrupted=True) == 0


def test_artifacts_follow_the_umask(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    before = os.umask(0o007)
    try:
        with store.claim("masks", "k") as place:
            (place.out / "private").touch(mode=0o600)
            store.publish("masks", "k", place, {"key": "k"})
    finally:
        os.umask(before)

    assert {stat.S_IMODE(path.stat().st_mode) for path in store.folder("masks", "k").iterdir()} == {0o660}


def test_files_and_folders_are_synced_before_they_are_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, synced = Store(tmp_path / "store"), set()
    fsync = os.fsync

    def watch(number: int) -> None:
        synced.add((os.fstat(number).st_ino, store.folder("masks", "k").exists()))
        fsync(number)

    monkeypatch.setattr(os, "fsync", watch)
    folder = publish(store)

    assert {(path.stat().st_ino, False) for path in (folder, folder / "a.txt", folder / RECORD)} <= synced
    assert (folder.parent.stat().st_ino, True) in synced


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become somebody else")
def test_what_cannot_be_read_is_said_with_owner_and_mode_and_the_rest_is_looked_at(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    (publish(store, "a") / "a.txt").chmod(0o600)
    (publish(store, "b") / RECORD).chmod(0o600)
    publish(store, "c")
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(folder.stat().st_mode | 0o055)

    os.seteuid(65534)
    try:
        faults = {key: list(store.faults("masks", key)) for key in "abc"}
    finally:
        os.seteuid(0)

    assert "a.txt' belongs to root and has mode -rw-------" in faults["a"][0]
    assert "record.json' belongs to root and has mode -rw-------" in faults["b"][0]
    assert "delete" not in faults["a"][0] + faults["b"][0]
    assert faults["c"] == []


def test_a_waiting_process_is_told_whom_it_waits_for(tmp_path: Path) -> None:
    begun, go_on, said = tmp_path / "begun", tmp_path / "go_on", []
    process = multiprocessing.get_context("spawn").Process(target=hold, args=(tmp_path / "store", begun, go_on))
    process.start()
    while not begun.exists():
        assert process.is_alive()

    def waiting(holder: str) -> None:
        said.append(holder)
        go_on.touch()

    with Store(tmp_path / "store").claim("masks", "k", waiting):
        pass

    process.join()
    assert len(said) == 1
    assert f"process {process.pid} on " in said[0]


def hold(root: Path, begun: Path, go_on: Path) -> None:
    with Store(root).claim("masks", "k"):
        begun.touch()
        while not go_on.exists():
            pass


def test_processes_that_start_at_one_instant_on_a_new_store_do_everything_once(tmp_path: Path) -> None:
    assert start_together(tmp_path, processes=4, times=3) == []


@pytest.mark.slow
def test_eight_processes_start_at_one_instant_on_a_hundred_new_stores(tmp_path: Path) -> None:
    assert start_together(tmp_path, processes=8, times=100) == []


def _count(root: Path) -> None:
    store = Store(root)
    for _ in range(20):
        with store.claim("masks", "shared"):
            counter = root / "counter"
            counter.write_text(str(int(counter.read_text()) + 1))


def test_two_processes_never_hold_one_key_together(tmp_path: Path) -> None:
    root = tmp_path / "store"
    root.mkdir()
    (root / "store.json").write_text(json.dumps({"format": FORMAT}))
    (root / "counter").write_text("0")
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_count, args=(root,)) for _ in range(2)]

    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    assert (root / "counter").read_text() == "40"
