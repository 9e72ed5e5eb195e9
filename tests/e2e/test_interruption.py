"""Kills and restarts: the resumed run ends bit for bit as an undisturbed one."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import Command

CELL = (
    "run", "--preset", "tiny", "--device", "cpu", "--method", "byol", "--task", "busi-cls",
    "--set", "pretrain.steps=40", "--set", "protocol.epochs=8",
)  # fmt: skip
Start = Callable[..., "subprocess.Popen[str]"]


def wait_for(pattern: str, store: Path, process: subprocess.Popen[str]) -> None:
    """Waits until a running stage has begun."""
    for _ in range(2400):
        if list(store.glob(pattern)):
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    raise AssertionError(f"{pattern} did not appear")


def files(store: Path, kind: str) -> dict[str, bytes]:
    """Contents of a kind's artifacts, records left out."""
    paths = sorted(path for path in store.glob(f"{kind}/[!.]*/*") if path.is_file() and path.name != "record.json")
    return {str(path.relative_to(store)): path.read_bytes() for path in paths}


@pytest.mark.parametrize(
    ("kind", "stop"),
    [
        ("pretrain", signal.SIGINT),
        ("finetune", signal.SIGKILL),
        pytest.param("pretrain", signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param("finetune", signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_goes_on_to_the_same_bits(
    command: Command, start: Start, tmp_path: Path, kind: str, stop: signal.Signals
) -> None:
    assert command(*CELL, "--store", "whole").code == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    for later in ("pretrain", "finetune", "predict", "score", "panel"):
        shutil.rmtree(tmp_path / "stopped" / later)
    process = start(*CELL, "--store", "stopped", "--set", "executor.checkpoint_seconds=0")
    wait_for(f"{kind}/.*/resume/*.pt", tmp_path / "stopped", process)
    process.send_signal(stop)
    _, errors = process.communicate(timeout=120)

    if stop == signal.SIGINT:
        assert process.returncode == 130
        assert "Run the same command again to go on" in errors
    assert not list((tmp_path / "stopped" / kind).glob("[!.]*/record.json"))
    again = command(*CELL, "--store", "stopped")

    assert again.code == 0, again.err
    assert "resumed at step" in again.err
    for finished in ("pretrain", "finetune", "predict", "score"):
        assert files(tmp_path / "stopped", finished) == files(tmp_path / "whole", finished)


def test_sigterm_stops_a_background_job_of_a_shell_outside_training_too(command: Command, tmp_path: Path) -> None:
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        "from anaus_bench.cli.app import main; main(sys.argv[1:])"
    )
    words = ("data", "prepare", "phantom", "--preset", "tiny", "--set", "phantom.train=600", "--store", "stopped")
    line = [sys.executable, "-c", code, *words]
    process = subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for("phantoms/.*", tmp_path / "stopped", process)

    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)

    assert process.returncode == 130
    assert "interrupted: 0 stages finished, 2 to go" in errors
    assert not list(tmp_path.glob("stopped/*/[!.]*/record.json"))


def test_two_processes_share_a_store(command: Command, start: Start, tmp_path: Path) -> None:
    processes = [start(*CELL, "--store", "shared", "--json") for _ in range(2)]

    results = [process.communicate(timeout=120) for process in processes]

    assert [process.returncode for process in processes] == [0, 0], results
    outcomes = command(*CELL, "--store", "shared", "--json").data
    assert outcomes["stages_run"] == 0
    assert len(list((tmp_path / "shared" / "pretrain").glob("[!.]*/record.json"))) == 1
