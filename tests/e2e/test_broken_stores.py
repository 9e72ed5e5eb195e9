"""Stores that something has happened to: it is named, the advice mends it, nothing sound is lost."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from anaus_bench.store import MARKER, Store
from anaus_bench.store.records import RECORD
from tests.e2e.conftest import Command, Outcome
from tests.e2e.test_bad_input import refused

RUN = ("run", "--preset", "tiny", "--method", "random", "--task", "busi-cls", "--device", "cpu")
MASKS = ("masks", "build", "--preset", "tiny", "--masks", "grid", "--corpus", "udiat", "--device", "cpu")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a finished cell."""
    from anaus_bench.cli.app import main

    folder = tmp_path_factory.mktemp("finished") / "anaus-store"
    with pytest.raises(SystemExit) as ended:
        main([*RUN, "--store", str(folder)])
    assert not ended.value.code
    return folder


@pytest.fixture
def store(finished: Path, command: Command, tmp_path: Path) -> Path:
    """A copy of that store, where the command looks for it."""
    shutil.copytree(finished, tmp_path / "anaus-store")
    return tmp_path / "anaus-store"


def artifacts(store: Path) -> Iterator[Path]:
    """The first file of each finished stage that is not its record."""
    for folder in sorted(store.glob("*/[!.]*")):
        yield next(path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != RECORD)


def contents(store: Path) -> dict[str, bytes]:
    paths = sorted(path for path in store.rglob("*") if path.is_file() and path.name != RECORD)
    return {str(path.relative_to(store)): path.read_bytes() for path in paths}


def bad_rows(outcome: Outcome) -> dict[str, str]:
    return {row["what"]: row["found"] for row in json.loads(outcome.out) if row["state"] == "bad"}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_doctor_names_each_artifact_of_a_sound_store(command: Command, store: Path) -> None:
    rows = json.loads(command("doctor", "--json").out)

    assert not [row for row in rows if row["state"] == "bad"]
    named = {row["what"] for row in rows if row["state"] == "ok"}
    assert {f"{path.parent.name} {path.name}" for path in store.glob("*/[!.]*")} <= named


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": flip,
    "emptied": lambda path: path.write_bytes(b""),
    "deleted": Path.unlink,
}


def damage(store: Path, what: str, how: str) -> list[Path]:
    """Damages each finished stage; their folders."""
    for path in list(artifacts(store)) if what == "artifacts" else sorted(store.glob(f"*/[!.]*/{RECORD}")):
        DAMAGES[how](path)
    return sorted(store.glob("*/[!.]*"))


@pytest.mark.parametrize("how", list(DAMAGES))
@pytest.mark.parametrize("what", ["artifacts", "records"])
def test_damage_is_named(command: Command, store: Path, how: str, what: str) -> None:
    folders = damage(store, what, how)

    rows = bad_rows(command("doctor", "--json"))

    assert set(rows) == {f"{folder.parent.name} {folder.name}" for folder in folders}


@pytest.mark.parametrize(("what", "how"), [("artifacts", "flipped"), ("records", "deleted")])
def test_the_advice_mends_damage(command: Command, store: Path, how: str, what: str) -> None:
    before = contents(store)
    damage(store, what, how)

    for found in bad_rows(command("doctor", "--json")).values():
        (advice,) = re.findall(r"delete (\S+) and run again", found)
        shutil.rmtree(advice)
    assert command(*RUN).code == 0

    assert contents(store) == before
    assert not bad_rows(command("doctor", "--json"))


def test_a_stage_whose_record_is_lost_is_run_again_and_published(command: Command, store: Path) -> None:
    before = contents(store)
    for kind in ("score", "panel"):
        next(store.glob(f"{kind}/[!.]*/{RECORD}")).unlink()

    outcome = command(*RUN, "--json")

    assert outcome.code == 0, outcome.err
    assert outcome.data["stages_run"] == 2
    assert contents(store) == before


def test_a_damaged_record_is_said_before_any_stage_runs(command: Command, store: Path) -> None:
    flip(next(store.glob(f"score/[!.]*/{RECORD}")))
    shutil.rmtree(store / "panel")

    refused(command(*RUN), "record.json is damaged", "delete", "and run again")

    assert not (store / "panel").exists()
    states = {stage["kind"]: stage["state"] for stage in command("plan", *RUN[1:-2], "--json").data["stages"]}
    assert states["score"] == "damaged"
    assert states["panel"] == "to run"


def test_tables_name_a_damaged_record_and_go_on(command: Command, store: Path) -> None:
    assert command(*RUN, "--seed", "1").code == 0
    sound, damaged = sorted(store.glob("score/[!.]*"))
    flip(damaged / RECORD)

    table = command("table", "--format", "markdown")

    assert table.code == 0
    assert f"damaged: {damaged.name}" in table.out
    assert sound.name[:8] in table.out
    listed = command("table", "--json")
    assert [record["key"] for record in listed.data] == [sound.name]
    assert f"damaged: {damaged.name}" in listed.err


def test_tables_say_which_lost_record_takes_a_column_away(command: Command, store: Path) -> None:
    (lost,) = store.glob("pretrain/[!.]*")
    (lost / RECORD).unlink()

    table = command("table", "--format", "markdown")

    assert table.code == 0
    assert f"not in the store: pretrain {lost.name}; the mask IoU" in table.out


def test_a_store_without_its_marker_is_named_and_marked_again(command: Command, store: Path) -> None:
    (store / MARKER).unlink()

    rows = bad_rows(command("doctor", "--json"))
    assert rows == {"store": "its store.json is missing; `anaus-bench store gc` writes it again"}
    assert command("store", "gc").code == 0

    assert not bad_rows(command("doctor", "--json"))
    assert command(*RUN, "--json").data["stages_run"] == 0


def test_a_damaged_marker_costs_no_result(command: Command, store: Path) -> None:
    (store / MARKER).write_text('{"format": 0}')

    outcome = command("doctor")
    refused(outcome, "store.json is damaged (format 0)", "delete anaus-store/store.json", "are kept and used again")
    (store / MARKER).unlink()

    assert command(*RUN, "--json").data["stages_run"] == 0


def test_what_a_kill_left_of_a_finished_stage_goes_at_the_next_run(command: Command, store: Path) -> None:
    (finished,) = store.glob("score/[!.]*")
    left = finished.with_name(f".{finished.name}.12345678") / "resume"
    left.mkdir(parents=True)
    (left / "step.pt").write_bytes(bytes(1000))

    rows = {row["what"]: row["found"] for row in json.loads(command("doctor", "--json").out)}
    assert command(*RUN).code == 0

    assert rows[f"score {finished.name}"].startswith("left over from a finished stage")
    assert [path.name for path in finished.parent.iterdir()] == [finished.name]


def test_plan_and_doctor_tell_running_from_interrupted(command: Command, store: Path) -> None:
    (finished,) = store.glob("score/[!.]*")
    shutil.rmtree(finished)

    def seen() -> tuple[str, str]:
        states = {stage["kind"]: stage["state"] for stage in command("plan", *RUN[1:-2], "--json").data["stages"]}
        rows = {row["what"]: row["found"] for row in json.loads(command("doctor", "--json").out)}
        return states["score"], rows[f"score {finished.name}"]

    with pytest.raises(RuntimeError), Store(store).claim("score", finished.name) as place:
        (place.resume / "step.pt").write_text("state")
        running = seen()
        raise RuntimeError("killed")
    interrupted = seen()

    assert running[0] == "running"
    assert running[1].startswith(f"running: process {os.getpid()} on ")
    assert interrupted == ("to resume", "interrupted; run its cell again to go on")


@pytest.fixture
def read_only(store: Path) -> Iterator[Path]:
    """The store on a file system that is mounted read-only."""
    line = ["mount", "--bind", "-o", "ro", str(store), str(store)]
    if shutil.which("mount") is None or subprocess.run(line, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount")
    yield store
    subprocess.run(["umount", str(store)], check=True)


@pytest.mark.usefixtures("read_only")
def test_a_read_only_store_is_read_and_a_new_stage_ends_in_one_line(command: Command) -> None:
    assert command(*RUN, "--json").data["stages_run"] == 0
    assert command("table").code == 0
    assert command("doctor").code == 0

    refused(command(*RUN, "--seed", "1"), "(Read-only file system)", "pass another --store", "finished stages are kept")


def test_gc_removes_what_interrupted_stages_left_only_when_asked(command: Command, store: Path) -> None:
    left = store / "score" / ".0123456789abcdef.12345678" / "resume"
    left.mkdir(parents=True)
    (left / "step.pt").write_bytes(bytes(1000))

    kept = command("store", "gc", "--json").data
    assert left.exists()
    removed = command("store", "gc", "--interrupted", "--json").data

    assert (kept, removed) == ({"score 0123456789abcdef": 0}, {"score 0123456789abcdef": 1000})
    assert not left.exists()
    refused(command("store", "gc", "--store", "absent"), "does not exist")


def test_the_home_folder_can_be_named_after_an_equals_sign(
    command: Command, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(store.parent))

    assert command(*RUN, "--store=~/anaus-store", "--json").data["stages_run"] == 0


@pytest.mark.parametrize("name", ["x" * 300, "long/" * 1000, "circle", "nowhere"])
def test_a_path_that_cannot_be_ends_in_one_line(command: Command, tmp_path: Path, name: str) -> None:
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "nowhere").symlink_to("absent/folder")

    outcome = command(*RUN, "--store", name)

    refused(outcome, "cannot be read or written")


def test_a_file_system_without_locks_is_said_once(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)

    outcome = command(*MASKS)

    assert outcome.code == 0, outcome.err
    assert outcome.err.count("has no locks: results are right") == 1


@pytest.mark.parametrize("words", [("list",), ("list", "--json")])
def test_full_standard_output_ends_in_one_line(words: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        line = [sys.executable, "-m", "anaus_bench", *words]
        ended = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True, check=False)

    assert ended.returncode == 2
    assert ended.stderr == "error: no space left for the output; free some, or pass another --store\n"


HUNGRY = """
from anaus_bench.hookspecs import hookimpl
from anaus_bench.lazy import torch
from anaus_plugins.objectives.byol import BYOL


class Hungry(BYOL):
    name = "hungry"

    def loss(self, nets, batch):
        raise {error}


@hookimpl
def anaus_objectives():
    return [Hungry]
"""


def test_a_full_disk_that_a_library_hides_is_said(command: Command, tmp_path: Path) -> None:
    error = "RuntimeError('[enforce fail at inline_container.cc:862] . PytorchStreamWriter failed writing file data/1')"
    (tmp_path / "hungry.py").write_text(HUNGRY.format(error=error))

    outcome = command("run", "--preset", "tiny", "--method", "hungry", "--task", "busi-cls", "--plugin", "hungry.py")

    refused(outcome, "no space left in store", "MiB free", "finished stages are kept")


@pytest.mark.parametrize(
    "error",
    [
        "torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB')",
        "RuntimeError('[enforce fail at alloc_cpu.cpp:119] . DefaultCPUAllocator: can\\'t allocate memory')",
        "MemoryError",
    ],
)
def test_want_of_memory_names_batch_device_and_setting(command: Command, tmp_path: Path, error: str) -> None:
    (tmp_path / "hungry.py").write_text(HUNGRY.format(error=error))
    cell = ("run", "--preset", "tiny", "--method", "hungry", "--task", "busi-cls", "--plugin", "hungry.py")

    outcome = command(*cell, "--device", "cpu", "--set", "pretrain.batch=6")

    refused(outcome, "out of memory on device 'cpu' with pretrain.batch=6", "--set pretrain.batch=", "kept")
