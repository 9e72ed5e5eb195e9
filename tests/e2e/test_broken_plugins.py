"""Plugins that break a rule while the command runs: one line, exit code 2, nothing published, nothing spoilt."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.conftest import Command
from tests.e2e.test_bad_input import refused
from tests.interfaces.test_guard import DATASET, HEAD, OBJECTIVE, SOURCE

CELL = ("run", "--preset", "tiny", "--device", "cpu", "--task", "busi-cls", "--plugin", "mine.py")
EXECUTOR = """
class Mine(Executor[Settings]):
    "Mine."

    name = "mine"

    def run(self, stages, runner):
        runner.run(stages[0])

@hookimpl
def anaus_executors():
    return [Mine]
"""
EXTENSION = """
@hookimpl
def anaus_stage_finished(stage, record):
    print("told of", stage.kind)
    sys.exit(0)
"""


def test_a_method_that_prints_leaves_json_alone(command: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(HEAD + OBJECTIVE.replace("vectors = ", "print('hello'); vectors = "))

    outcome = command(*CELL, "--method", "mine", "--json")

    assert outcome.code == 0, outcome.err
    assert outcome.data["cell"]["method"] == "mine"
    assert "hello" in outcome.err


@pytest.mark.parametrize(
    ("source", "words", "expected"),
    [
        (
            OBJECTIVE.replace("vectors = ", "sys.exit(0); vectors = "),
            ("--method", "mine"),
            "error: objective 'mine': loss raised SystemExit: 0 (mine.py, line 26); it must not",
        ),
        (
            OBJECTIVE.replace("vectors.square().mean()", "vectors.square()"),
            ("--method", "mine", "--json"),
            "objective 'mine': loss returned a loss that is Tensor",
        ),
        (
            SOURCE.replace(".to(torch.uint8)", ""),
            ("--method", "detcon", "--masks", "mine"),
            "mask source 'mine': segment returned Tensor of torch.bool",
        ),
        (
            DATASET.replace("label=n % 2", "label=5"),
            ("--method", "byol", "--corpus", "mine", "--data-root", "mine=."),
            "data set 'mine': scan returned labels [5]; expected labels below 2",
        ),
        (
            DATASET.replace("np.ones((40, 50), np.uint8)", "np.ones((4, 5), np.uint8)"),
            ("--method", "byol", "--corpus", "mine", "--data-root", "mine=."),
            "data set 'mine': read returned a mask of '0.png': ndarray of uint8 and shape (4, 5); expected the size of",
        ),
        (EXECUTOR, ("--method", "random", "--executor", "mine"), "executor 'mine' left"),
    ],
)
def test_a_plugin_that_breaks_a_rule_ends_the_run_in_one_line(
    command: Command, tmp_path: Path, source: str, words: tuple[str, ...], expected: str
) -> None:
    (tmp_path / "mine.py").write_text(HEAD + source)

    outcome = command(*CELL, *words)

    refused(outcome, expected)
    assert not list(Path().glob("anaus-store/pretrain/[!.]*/record.json"))


def test_an_extension_that_fails_is_named_and_the_run_goes_on(command: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(HEAD + OBJECTIVE + EXTENSION)

    outcome = command("data", "prepare", "phantom", "--preset", "tiny", "--plugin", "mine.py")

    assert outcome.code == 0, outcome.err
    assert "told of" not in outcome.out
    assert "told of corpus" in outcome.err
    assert "an extension raised SystemExit: 0" in outcome.err


def test_an_author_of_a_plugin_may_see_the_whole_way(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(HEAD + DATASET.replace("samples = [", "samples = 1 / 0; [").replace("]\n", "]\n"))
    monkeypatch.setenv("ANAUS_TRACEBACK", "1")

    outcome = command("data", "info", "mine", "--data-root", "mine=.", "--plugin", "mine.py")

    assert outcome.code == 2
    assert "samples = 1 / 0" in outcome.err
    assert "error: data set 'mine': scan raised ZeroDivisionError: division by zero (mine.py" in outcome.err
