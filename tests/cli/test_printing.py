"""What is printed is text: control codes of anybody's names are written out."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

import anaus_bench
from anaus_bench.cli.printing import print_grid, print_json, print_table, say, warn
from anaus_bench.errors import LONGEST, escape, shown
from anaus_bench.execution.progress import ConsoleProgress
from anaus_bench.results.tables import Table

HOSTILE = "a\x1b]0;title\x07b\x9b31m\rc\u202ed\ue000\udcff[/red]\n[bold]e"
WRITTEN = r"a\x1b]0;title\x07b\x9b31m\rc\u202ed" + "\ue000" + r"\udcff[/red]\n[bold]e"


def progress(text: str) -> None:
    talk = ConsoleProgress(Console(stderr=True))
    talk.note(text)
    with talk.track(text, 1) as tracker:
        tracker.advance(1, images=1, waited=0.0)


@pytest.mark.parametrize(
    "show",
    [
        say,
        warn,
        progress,
        lambda text: print_table(Table(text, (text, text), ((text, text),), (text,))),
        lambda text: print_grid(text, (text,), [(text,)]),
        lambda text: print_grid(None, ("", ""), [(text, text)], unwrapped=1),
    ],
    ids=["say", "warn", "progress", "table", "grid", "facts"],
)
def test_control_codes_and_markup_are_written_out(
    show: Callable[[str], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")

    show(HOSTILE)

    printed = "".join(capsys.readouterr())
    assert WRITTEN in printed
    assert not {*printed} & {*"\x1b\x07\x9b\r\u202e\udcff"}


def test_json_holds_the_same_text_without_control_codes(capsys: pytest.CaptureFixture[str]) -> None:
    value = {HOSTILE: [HOSTILE, {"deep": HOSTILE}]}

    print_json(value)

    printed = capsys.readouterr().out
    assert json.loads(printed) == value
    assert not {*printed} & {*"\x1b\x07\x9b\r\u202e\udcff"}


def test_escape_leaves_the_text_of_all_languages_alone() -> None:
    assert escape("Größe 10 µm: 超音波, μαστός, ثدي") == "Größe 10 µm: 超音波, μαστός, ثدي"


def test_a_long_value_is_cut_and_its_length_is_said() -> None:
    text = shown("x" * 100_000)

    assert len(text) < LONGEST + 40
    assert text.endswith("(100002 characters)")
    assert shown("short") == "'short'"


def test_nothing_but_the_printing_module_prints() -> None:
    root = Path(anaus_bench.__file__).parent
    allowed = {root / "cli" / "printing.py", root / "execution" / "progress.py"}
    offenders = [
        f"{path.relative_to(root)}:{node.lineno}"
        for path in sorted({*root.rglob("*.py")} - allowed)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and (
            (isinstance(node.func, ast.Name) and node.func.id == "print")
            or (isinstance(node.func, ast.Attribute) and node.func.attr in ("print", "echo", "secho"))
        )
    ]

    assert not offenders
