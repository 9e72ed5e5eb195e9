from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from anaus_bench.errors import MachineError
from anaus_bench.machine.parallel import in_processes

PROGRAM = """
import functools, os, sys, time
from pathlib import Path
from anaus_bench.machine.parallel import in_processes

def work(folder, part):
    (folder / str(os.getpid())).touch()
    time.sleep(600)

if __name__ == "__main__":
    list(in_processes(functools.partial(work, Path(sys.argv[1])), range(2)))
"""


def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    program, folder = tmp_path / "program.py", tmp_path / "workers"
    program.write_text(PROGRAM)
    folder.mkdir()
    parent = subprocess.Popen([sys.executable, str(program), str(folder)])
    while not list(folder.iterdir()):
        assert parent.poll() is None
        time.sleep(0.05)

    parent.send_signal(signal.SIGKILL)
    parent.wait()

    workers = [int(path.name) for path in folder.iterdir()]
    for _ in range(600):
        if not any(map(is_running, workers)):
            return
        time.sleep(0.05)
    raise AssertionError(f"workers {workers} go on without their parent")


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{process}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


def die(part: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_ends_in_one_line() -> None:
    with pytest.raises(MachineError, match="a worker process was killed, perhaps for want of memory"):
        list(in_processes(die, range(2)))
