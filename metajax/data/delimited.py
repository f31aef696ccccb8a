"""Read CSV and TSV text: find the delimiter, and decide what quotation marks mean."""

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
_DECLARED = re.compile(r"sep=([^\w\s\"]|\t)\r?\n", re.IGNORECASE)  # Excel writes this first line.
_QUOTED = re.compile(r'"(?:[^"]|"")*"')


class _Records(NamedTuple):
    """Rows of fields, the header first, and the line on which each row starts."""

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
        """Return the first row whose number of fields differs from the header's."""
        widths = [len(row) for row in self.rows]
        return next((row for row, width in enumerate(widths) if width != widths[0]), None)


def read_rows(
    path: str | Path, text: str, usual: str
) -> tuple[list[str], list[list[str]], list[int]]:
    """Read a table of text: a header, and rows with the same number of fields.

    Args:
        path: the file's path, for messages.
        text: the content of the file.
        usual: the delimiter to use if the header contains it. If not, the most frequent delimiter
            of the header is used.

    Returns:
        The columns' names, the rows, and the line on which each row starts.

    Raises:
        InputError: a row has more or fewer fields than the header, or a quotation is not closed.
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
    """Return a header's names without the byte-order marks that joined files contain."""
    return [name.strip().removeprefix("\ufeff") for name in row]


def _delimiter(text: str, usual: str) -> str:
    """Return the header's delimiter: the usual one, unless only another one occurs."""
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
    """Read rows whose fields may be in double quotes (RFC 4180)."""
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
    """Read one row per line, without quoting unless the whole file is quoted.

    The file counts as quoted if every field that starts with a quotation mark also ends with one,
    or if the rows have as many fields as the header only with quoting. A quoted text may contain
    tabs and line breaks.
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
            "%s:%d: a field starts with a quotation mark but does not end with one; all quotation "
            "marks of the file are read as text (%d fields start and end with one)",
            *(path, broken[0], len(begun) - len(broken)),
        )
    return plain


def _warn_of_joined_rows(
    path: str | Path, rows: list[list[str]], lines: list[int], delimiter: str
) -> None:
    """Say where a quoted field holds lines that look like rows: by their fields, and a value.

    Such as a label: a value that another row has in the same column.
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
            "%s:%d: a quoted field contains %s, which looks like a row (%d lines like this); "
            "check whether a quotation mark is missing",
            *(path, line, printable(repr(part[:60])), len(suspects)),
        )
