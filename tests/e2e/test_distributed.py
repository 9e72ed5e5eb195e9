"""The command on several processes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.e2e.conftest import Command
from tests.e2e.test_interruption import wait_for

CELL = (
    "run", "--preset", "tiny", "--device", "cpu", "--method", "byol", "--task", "busi-cls",
    "--set", "pretrain.steps=15", "--set", "executor.checkpoint_seconds=0", "--store", "shared",
)  # fmt: skip


def start(folder: Path) -> subprocess.Popen[str]:
    """Two processes of the command, as `torchrun` starts them."""
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "anaus_bench"]
    return subprocess.Popen([*line, *CELL], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.skipif(not dist.is_available(), reason="this build of torch has no torch.distributed")
def test_two_processes_fill_a_cell_go_on_after_a_stop_and_leave_nothing_to_do(command: Command, tmp_path: Path) -> None:
    stopped = start(tmp_path)
    wait_for("pretrain/.*/resume/*.pt", tmp_path / "shared", stopped)
    stopped.send_signal(signal.SIGTERM)
    _, first_errors = stopped.communicate(timeout=120)

    again = start(tmp_path)
    out, errors = again.communicate(timeout=300)

    assert stopped.returncode != 0
    assert first_errors.count("Run the same command again to go on") == 1
    assert again.returncode == 0, errors
    assert errors.count("resumed at step") == 1
    assert out.count("byol on busi-cls") == 1
    (record,) = (tmp_path / "shared" / "pretrain").glob("[!.]*/record.json")
    assert json.loads(record.read_text())["result"]["processes"] == 2
    assert command(*CELL, "--json").data["stages_run"] == 0
