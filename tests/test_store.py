from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from anaus_bench.errors import StoreError
from anaus_bench.store import FORMAT, Store


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


def test_a_folder_with_other_things_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")

    with pytest.raises(StoreError, match="is no store and not an empty folder"):
        Store(tmp_path)


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
