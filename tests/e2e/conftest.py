"""Runs the command, in this process or in one of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from anaus_bench.cli.app import main


@dataclass(frozen=True)
class Outcome:
    """Exit code and both streams."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)


Command = Callable[..., Outcome]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Runs `anaus-bench WORDS` in this process, in an empty folder and without the user's environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("ANAUS_DATA", "ANAUS_STORE", "ANAUS_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)

    def call(*words: object) -> Outcome:
        capsys.readouterr()
        code = 0
        try:
            main([str(word) for word in words])
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return Outcome(code, out, err)

    return call


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts `anaus-bench WORDS` as a process of its own, in an empty folder."""

    def begin(*words: object) -> subprocess.Popen[str]:
        call = "import sys; from anaus_bench.cli.app import main; main(sys.argv[1:])"
        line = [sys.executable, "-c", call, *map(str, words)]
        return subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return begin
