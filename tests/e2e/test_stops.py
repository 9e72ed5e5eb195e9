"""A few points of the campaigns in `tests/campaigns`, which run for longer by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_runs_that_are_killed_or_refused_by_the_system_end_as_undisturbed_ones() -> None:
    line = [sys.executable, "-m", "tests.campaigns.stops", "--cell", "masks", "--runs", "5", "--by", "kills", "errors"]

    ended = subprocess.run(line, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count("5 end as an undisturbed one") == 2
