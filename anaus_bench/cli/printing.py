"""How the command prints: every line, table and JSON value goes through here, so that no control code gets out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from anaus_bench.errors import UNPRINTABLE, escape

if TYPE_CHECKING:
    from anaus_bench.results.tables import Table


def say(text: str = "", *, dim: bool = False) -> None:
    """Prints one line of the result on standard output."""
    Console().print(Text(escape(text), style="dim" if dim else ""), soft_wrap=True)


def warn(text: str) -> None:
    """Prints one line beside the result, on standard error."""
    Console(stderr=True).print(Text(escape(text)), soft_wrap=True)


def first_line(cls: type) -> str:
    """First line of a class's docstring."""
    return (cls.__doc__ or "").strip().partition("\n")[0]


def print_grid(
    title: str | None, columns: Sequence[str], rows: Iterable[Sequence[object]], *, unwrapped: int = 0
) -> None:
    """Prints rows without lines between them, whose cells wrap, but for those of the first `unwrapped` columns."""
    grid = RichTable(title=_cell(title or "") if title else None, title_justify="left", box=None, pad_edge=False)
    grid.show_header = any(columns)
    for number, column in enumerate(columns):
        grid.add_column(_cell(column, "bold"), overflow="fold", no_wrap=number < unwrapped)
    for row in rows:
        grid.add_row(*map(_cell, row))
    Console().print(grid)


def print_table(table: Table) -> None:
    """Prints a table of results with its notes below."""
    grid = RichTable(title=_cell(table.title), title_justify="left")
    for number, column in enumerate(table.columns):
        grid.add_column(_cell(column, "bold"), justify="left" if number == 0 else "right")
    for row in table.rows:
        grid.add_row(*map(_cell, row))
    Console().print(grid)
    for note in table.notes:
        say(note, dim=True)


def print_json(value: Any) -> None:
    """Prints one JSON value on standard output."""
    text = json.dumps(value, indent=1, default=str, ensure_ascii=False)
    # The line feeds between values are JSON's own; those inside of strings are escaped already.
    print("\n".join(UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", line) for line in text.split("\n")))


def _cell(value: object, style: str = "") -> Text:
    return Text(escape(str(value)), style=style)
