"""Tables of text: what separates the columns, and what quotation marks mean."""

import contextlib
import csv
import io
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from metajax.errors import InputError, printable

_log = logging.getLogger("metajax")
_DELIMITERS = (",", ";", "\t", "|")
_DECLARED = re.compile(r"sep=([^\w\s\"]|\t)\r?\n", re.IGNORECASE)  # The first line of Excel's.
_QUOTED = re.compile(r'"(?:[^"]|"")*"')


class _Records(NamedTuple):
    """Rows of fields, the header's first, each with the line that it begins on."""

    rows: list[list[str]]
    lines: list[int]

    def trimmed(self) -> "_Records":
        """Without blank lines and without the empty columns that Excel leaves at the right."""
        kept = [(row, line) for row, line in zip(*self) if row]
        width = len(kept[0][0]) if kept else 0
        while width and not kept[0][0][width - 1].strip():
            width -= 1
        rows = [row if any(map(str.strip, row[width:])) else row[:width] for row, _ in kept]
        return _Records(rows, [line for _, line in kept])

    def uneven(self) -> int | None:
        """The first row with more or fewer fields than the header, if there is one."""
        widths = [len(row) for row in self.rows]
        return next((row for row, width in enumerate(widths) if width != widths[0]), None)


def read_rows(
    path: str | Path, text: str, usual: str
) -> tuple[list[str], list[list[str]], list[int]]:
    """Reads a table of text: a header, and rows with as many fields.

    Args:
        path: The file, for messages.
        text: Its content.
        usual: The expected delimiter; if it is not in the header, another one is guessed.

    Returns:
        The columns' names, the rows, and the line that each row begins on.

    Raises:
        InputError: If a row has more or fewer fields than the header, or quotes are left open.
    """
    first = 1
    declared = _DECLARED.match(text)
    if declared:
        text, first = text[declared.end() :], 2
    delimiter = declared[1] if declared else _delimiter(text, usual)
    with _fields_of_any_length(text):
        read = _read_tab_separated if delimiter == "\t" else _read_quoted
        records = read(path, text, delimiter, first)
    if not records.rows or not records.rows[0]:
        raise InputError(f"{path}: has no header; name the columns in the first line")
    header = _names(records.rows[0])
    wrong = records.uneven()
    if wrong is not None:
        count = len(records.rows[wrong])
        raise InputError(
            f"{path}:{records.lines[wrong]}: has {count} fields where the header has "
            f"{len(header)}; quote fields that contain the delimiter {delimiter!r}"
        )
    rows, lines = records.rows[1:], records.lines[1:]
    for row, line in zip(rows, lines):
        if len(header) > 1 and _names(row) == header:
            raise InputError(f"{path}:{line}: repeats the header; remove the line")
    _warn_of_joined_rows(path, rows, lines, delimiter)
    return header, rows, lines


def _names(row: list[str]) -> list[str]:
    """A header's names, without the byte-order marks that joined files leave."""
    return [name.strip().removeprefix("\ufeff") for name in row]


def _delimiter(text: str, usual: str) -> str:
    """The delimiter of the header: the usual one, unless the header then has only one column."""
    header = next(line for line in text.split("\n") if line.strip())
    header = _QUOTED.sub("", header)
    others = max(_DELIMITERS, key=header.count)
    return others if usual not in header and others in header else usual


@contextlib.contextmanager
def _fields_of_any_length(text: str) -> Iterator[None]:
    limit = csv.field_size_limit(len(text))  # The default limit refuses long documents.
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _read_quoted(path: str | Path, text: str, delimiter: str, first: int) -> _Records:
    """Reads rows whose fields may stand in double quotes (RFC 4180)."""
    records = _Records([], [])
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    begin = first  # Quoted fields may hold line breaks, so a record begins where the last ended.
    try:
        for row in reader:
            records.rows.append(row)
            records.lines.append(begin)
            begin = first + reader.line_num
    except csv.Error as error:
        raise InputError(
            f"{path}:{begin}: {error}; enclose fields in double quotes, and double those inside"
        ) from None
    return records.trimmed()


def _read_tab_separated(path: str | Path, text: str, delimiter: str, first: int) -> _Records:
    """Reads one row per line and keeps quotation marks, unless the file is clearly quoted.

    It is read as quoted if every field that begins with a quotation mark is a complete quoted
    field, or if only then every row has as many fields as the header. Quoted texts may hold tabs
    and line breaks.
    """
    split = [line.split(delimiter) if line else [] for line in re.split("\r?\n", text)]
    plain = _Records(split, list(range(first, first + len(split)))).trimmed()
    if plain.uneven() is not None:
        with contextlib.suppress(InputError):
            quoted = _read_quoted(path, text, delimiter, first)
            return plain if quoted.uneven() is not None else quoted
        return plain
    begun = [
        (bool(_QUOTED.fullmatch(field)), line)
        for row, line in zip(*plain)
        for field in row
        if field.startswith('"')
    ]
    broken = [line for whole, line in begun if not whole]
    if not broken:
        return _read_quoted(path, text, delimiter, first) if begun else plain
    if 2 * len(broken) < len(begun):
        _log.warning(
            "%s:%d: a field begins with a quotation mark and does not end with one: those of the "
            "whole file are read as part of the text (%d fields stand between two)",
            *(path, broken[0], len(begun) - len(broken)),
        )
    return plain


def _warn_of_joined_rows(
    path: str | Path, rows: list[list[str]], lines: list[int], delimiter: str
) -> None:
    """Warns of quoted fields that hold lines which look like rows.

    Such a line has as many fields as a row, and a value that another row has in the same column.
    """
    broken = [number for number, row in enumerate(rows) if any("\n" in field for field in row)]
    if not broken:
        return
    known = [{field for field in column if field and "\n" not in field} for column in zip(*rows)]

    def is_row(text: str) -> bool:
        fields = text.removesuffix("\r").split(delimiter)
        return len(fields) == len(known) and any(map(set.__contains__, known, fields))

    suspects = []
    for number in broken:
        parts = delimiter.join(rows[number]).split("\n")[:-1]  # The last has the row's own end.
        suspects += [(lines[number], part) for part in parts if is_row(part)]
    if suspects:
        line, part = suspects[0]
        _log.warning(
            "%s:%d: a quoted field holds %s, which looks like a row of its own (%d lines do): a "
            "quotation mark may be missing or be one too many; check it",
            *(path, line, printable(repr(part[:60])), len(suspects)),
        )
