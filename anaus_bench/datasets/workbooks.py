"""Tables of Excel workbooks (.xlsx)."""

from __future__ import annotations

import struct
import zipfile
import zlib
from itertools import islice
from pathlib import Path
from typing import Any

from anaus_bench.datasets.opening import check_cost, damaged, opened
from anaus_bench.errors import UnreadableFile

MAX_ROWS = 2**16
MAX_COLUMNS = 2**8
# What openpyxl raises on damaged files depends on the part.
DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    LookupError,
    ValueError,
    OSError,
    EOFError,
    TypeError,
    AttributeError,
    SyntaxError,
    RuntimeError,
    NotImplementedError,
    ArithmeticError,
)


def read_workbook(path: Path, *, root: Path | None = None) -> list[tuple[Any, ...]]:
    """The values of the first sheet, row by row.

    Raises:
        UnreadableFile: No workbook, damaged, too large once it is unpacked, or of too many rows.
        DataError: As `opened`.
    """
    import openpyxl
    from openpyxl.utils.exceptions import InvalidFileException

    with opened(path, root=root) as file:
        try:
            with zipfile.ZipFile(file) as parts:
                cost = sum(part.file_size for part in parts.infolist())
            check_cost(path, 8 * cost, f"{cost} bytes of XML")
            book = openpyxl.load_workbook(file, read_only=True, data_only=True)
            sheet = book.worksheets[0]
            sheet.reset_dimensions()  # what the file claims of them
            rows = list(islice(sheet.iter_rows(values_only=True, max_col=MAX_COLUMNS), MAX_ROWS + 1))
        except (*DAMAGED, InvalidFileException) as error:
            raise damaged(path, error, "read as a table (.xlsx)") from error
    if len(rows) > MAX_ROWS:
        raise UnreadableFile(f"{str(path)!r} has more than {MAX_ROWS} rows; expected the published table")
    return [_without_end(row) for row in rows]


def _without_end(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """The row without the empty cells at its end."""
    filled = [number for number, cell in enumerate(row, start=1) if cell is not None]
    return row[: filled[-1]] if filled else ()
