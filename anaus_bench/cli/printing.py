"""How tables and JSON are printed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

if TYPE_CHECKING:
    from anaus_bench.results.tables import Table


def first_line(cls: type) -> str:
    """First line of a class's docstring."""
    return (cls.__doc__ or "").strip().splitlines()[0] if cls.__doc__ else ""


def plain_grid(title: str | None, columns: Sequence[str]) -> RichTable:
    """An empty grid without lines, whose cells wrap."""
    grid = RichTable(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for column in columns:
        grid.add_column(column, overflow="fold")
    return grid


def print_table(table: Table) -> None:
    """Prints a table of results with its notes below."""
    grid = RichTable(title=Text(table.title), title_justify="left", header_style="bold")
    for number, column in enumerate(table.columns):
        grid.add_column(column, justify="left" if number == 0 else "right")
    for row in table.rows:
        grid.add_row(*row)
    out = Console()
    out.print(grid)
    for note in table.notes:
        out.print(note, highlight=False, markup=False, style="dim")


def print_json(value: Any) -> None:
    """Prints one JSON value on standard output."""
    print(json.dumps(value, indent=1, default=str, ensure_ascii=False))
