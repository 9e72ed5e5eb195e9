"""Text files of a data set, one bounded reader per format: JSON, tables (CSV), XML and `key: value` lines.

All take UTF-8 and UTF-16 with their byte-order marks; what is neither is read as Windows-1252, in which spreadsheets
save where they are not asked for UTF-8.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from anaus_bench.datasets.opening import damaged, read_bytes, short
from anaus_bench.errors import LayoutError, UnreadableFile

MAX_TEXT = 2**26  # bytes
MAX_XML = 2**22  # bytes
DELIMITERS = ",;\t"
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: Path, *, root: Path | None = None, most: int = MAX_TEXT) -> str:
    """The text of a file.

    Raises:
        UnreadableFile: Not text, or in no encoding that is known here.
        DataError: As `opened`.
    """
    content = read_bytes(path, root=root, most=most)
    marked = next((name for mark, name in MARKS if content.startswith(mark)), None)
    for encoding in [marked] if marked else ["utf-8", "cp1252"]:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text
    raise UnreadableFile(f"{str(path)!r} is no text in UTF-8 or UTF-16; save it as UTF-8, or copy it again")


def read_json(path: Path, *, root: Path | None = None) -> Any:
    """The value of a JSON file.

    Raises:
        UnreadableFile: No JSON, nested too deeply, or with numbers that JSON does not know (NaN).
        DataError: As `read_text`.
    """
    return parse_json(read_text(path, root=root), path)


def parse_json(text: str, path: Path) -> Any:
    """The value of a JSON text that stands in the file `path`.

    Raises:
        UnreadableFile: As `read_json`.
    """
    try:
        return json.loads(text, parse_constant=_refuse_number)
    except RecursionError as error:
        raise UnreadableFile(f"{str(path)!r} is JSON that is nested too deeply; copy it again") from error
    except ValueError as error:
        raise UnreadableFile(f"{str(path)!r} is no valid JSON: {short(error)}; copy or download it again") from error


def read_rows(path: Path, *, root: Path | None = None) -> list[list[str]]:
    """The rows of a table without empty ones, cells without the blanks around them.

    Commas, semicolons or tabs part the cells: whichever parts the first row into most.

    Raises:
        UnreadableFile: A quote that does not end, or a cell of more than 131,072 characters.
        DataError: As `read_text`.
    """
    text = read_text(path, root=root)
    first, _, rest = text.partition("\n")
    delimiter = max(DELIMITERS, key=first.count)
    if first.lower().startswith("sep=") and first[4:5].strip("\r"):  # a line for spreadsheets
        text, delimiter = rest, first[4]
    try:
        rows = list(csv.reader(StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise UnreadableFile(f"{str(path)!r} is no table: {error}; save it as CSV again") from error
    return [[cell.strip() for cell in row] for row in rows if any(cell.strip() for cell in row)]


def read_table(path: Path, columns: Sequence[str], *, root: Path | None = None) -> list[dict[str, str]]:
    """The rows under the heading of a table, each by column; a missing cell is empty.

    Raises:
        LayoutError: One of `columns` is missing, or stands there twice.
        DataError: As `read_rows`.
    """
    rows = read_rows(path, root=root)
    heading = rows[0] if rows else []
    if any(heading.count(column) != 1 for column in columns):
        raise LayoutError(
            f"{str(path)!r} has no columns {' and '.join(map(repr, columns))}, each once, but "
            f"{', '.join(map(short, heading)) or 'no row'}; use the official file"
        )
    return [dict(zip(heading, [*row, *[""] * len(heading)], strict=False)) for row in rows[1:]]


def read_xml(path: Path, *, root: Path | None = None) -> ElementTree.Element:
    """The outermost element of an XML file.

    Raises:
        UnreadableFile: No XML, or it declares a document type or entities, which may grow without bound.
        DataError: As `read_text`.
    """
    # The parser is given the very characters that were searched, whatever encoding the file names.
    text = read_text(path, root=root, most=MAX_XML)
    if "<!ENTITY" in text or "<!DOCTYPE" in text:
        raise UnreadableFile(f"{str(path)!r} declares a document type or entities; such XML is not read")
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        raise damaged(path, error, "read as XML") from error


def read_fields(path: Path, *, root: Path | None = None) -> dict[str, str]:
    """The values of `key: value` lines.

    Raises:
        DataError: As `read_text`.
    """
    pairs = (line.partition(":") for line in read_text(path, root=root).splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _refuse_number(name: str) -> float:
    raise ValueError(f"it holds {name}, which is no number")
