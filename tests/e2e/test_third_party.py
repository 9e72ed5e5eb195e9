"""A method of somebody else's: the one of docs/plugins.md, as a file and as an installed package."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from anaus_bench.kit.check import check_objective
from anaus_bench.registry import Registry
from tests.e2e.conftest import Command

DOCS = Path(__file__).resolve().parents[2] / "docs" / "plugins.md"
CELL = ("run", "--preset", "tiny", "--device", "cpu", "--method", "rotation", "--task", "busi-cls", "--json")


@pytest.fixture
def source() -> str:
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), flags=re.DOTALL)
    return next(block for block in blocks if "class Rotation(" in block)


@pytest.fixture
def installed(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two packages beside ours: one with the method, one that fails to import."""
    for package, entry, code in (
        ("rotation_package", "rotation", source),
        ("broken_package", "broken", "import absent_"),
    ):
        folder = tmp_path / package
        info = folder / f"{package}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[anaus_bench.objectives]\n{entry} = {package}_module\n")
        (folder / f"{package}_module.py").write_text(code)
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.delitem(sys.modules, f"{package}_module", raising=False)


def test_a_single_file_runs_as_a_method(command: Command, source: str, tmp_path: Path) -> None:
    (tmp_path / "rotation.py").write_text(source)

    outcome = command(*CELL, "--plugin", "rotation.py", "--set", "objective.hidden_dim=8")

    assert outcome.code == 0, outcome.err
    assert outcome.data["cell"]["method"] == "rotation"


@pytest.mark.usefixtures("installed")
def test_an_installed_method_is_listed_runs_and_keeps_the_contract_beside_a_broken_one(command: Command) -> None:
    listed = {row["name"]: row for row in command("list", "methods", "--json").data["methods"]}
    outcome = command(*CELL)
    broken = command("run", "--preset", "tiny", "--method", "broken", "--task", "busi-cls")

    assert listed["rotation"]["what"] == "Predicts by which quarter turn a view was rotated."
    assert "objective 'broken' of broken_package fails to import: ModuleNotFoundError" in listed["broken"]["error"]
    assert outcome.code == 0, outcome.err
    assert broken.code == 2
    assert "objective 'broken' of broken_package fails to import" in broken.err
    check_objective(Registry().create("objectives", "rotation", "tiny"))
