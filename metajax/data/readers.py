"""Read CSV, TSV, JSON and Parquet files as tables that know the place of each row."""

import collections
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from metajax.data.delimited import read_rows
from metajax.errors import InputError, reason_of
from metajax.reading import parse_json, read_bytes

# Limits for Parquet: a file of a few kilobytes can decode to gigabytes.
_ALWAYS_FINE = 1 << 28  # Bytes.
_MOST_TIMES = 100  # Times the size of the file.
_BYTES_OF_A_ROW = 64  # Python needs this for a short text.
_BATCH = 4096  # Rows decoded at once.


class Table(NamedTuple):
    """Named columns of one source.

    Attributes:
        source: the name of the file or hub data set, for messages.
        names: the columns' names, in the source's order.
        column: returns the values of a column; None where a row has no value.
        place: returns the place of a row ("data.csv:7"), for messages.
    """

    source: str
    names: tuple[str, ...]
    column: Callable[[str], list[Any]]
    place: Callable[[int], str]


def read_text(path: str | Path) -> str:
    """Return a text file's content without byte-order mark; carriage returns may end lines.

    Raises:
        InputError: the file cannot be read, is not UTF-8, contains a NUL byte, or has only white
            space.
    """
    content = read_bytes(path).removeprefix(b"\xef\xbb\xbf")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = content[error.start]
        raise InputError(
            f"{path}:{line}: byte 0x{byte:02x} is not UTF-8; save the file as UTF-8"
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(f"{path}:{line}: has a NUL byte; save the file as plain UTF-8 text")
    if not text.strip():
        raise InputError(f"{path}: the file is empty; add text or give another file")
    return text if "\n" in text else text.replace("\r", "\n")


def numbered_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yield (number, stripped line) for the lines of a text file that are not blank.

    Only line feeds end a line. str.splitlines would also split at characters inside sentences, such
    as U+2028, and all later line numbers would be wrong.
    """
    yield from _numbered(read_text(path))


def _numbered(text: str) -> Iterator[tuple[int, str]]:
    # One line at a time: a list of all would take as much memory as the text.
    begin = 0
    for number in range(1, text.count("\n") + 2):
        end = text.find("\n", begin)
        if line := text[begin : end if end >= 0 else None].strip():
            yield number, line
        begin = end + 1


def read_lines(paths: str | Path | Sequence[str | Path]) -> list[str]:
    r"""Return the lines of plain text files that are not blank, stripped.

    Args:
        paths: one or more files, in this order.

    Raises:
        InputError: a file is missing, empty, or not UTF-8 text.

    Examples:
        >>> import metajax.data as data, pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     path = pathlib.Path(directory, "text.txt")
        ...     _ = path.write_text("A good film.\n\n  A bad one.\n")
        ...     data.read_lines(path)
        ['A good film.', 'A bad one.']
    """
    files = [paths] if isinstance(paths, str | Path) else paths
    return [line for path in files for _, line in numbered_lines(path)]


def read_table(path: str | Path) -> Table:
    """Read a CSV, TSV, JSON-lines or Parquet file; the extension decides.

    A `.json` file may also be one array of objects.

    Raises:
        InputError: the file does not have the format that its extension says.
    """
    extension = Path(path).suffix.lower()
    if extension not in TABLES:
        read_bytes(path)  # For the better message if the file is missing.
        raise InputError(
            f"{path}: unknown extension {extension!r}; give one of {', '.join(TABLES)}"
        )
    return TABLES[extension](path)


def rows_table(
    path: str | Path, names: list[str], rows: list[list[str]], lines: list[int]
) -> Table:
    """Make a table from rows of text fields and the lines on which they start.

    Raises:
        InputError: two columns share a name or there are no rows.
    """
    _check_names(str(path), names)
    if not rows:
        raise InputError(f"{path}: has a header but no rows; add examples")
    index = {name: i for i, name in enumerate(names)}
    return Table(
        str(path),
        tuple(names),
        lambda name: [row[index[name]] for row in rows],
        lambda row: f"{path}:{lines[row]}",
    )


def _check_names(source: str, names: list[str]) -> None:
    twice = [name for name, count in collections.Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"{source}: two columns are named {twice[0]!r}; rename one")


def _read_json_lines(path: str | Path) -> Table:
    return _json_lines_table(path, read_text(path))


def _json_lines_table(path: str | Path, text: str) -> Table:
    lines = array("q")

    def rows() -> Iterator[dict[str, Any]]:
        for number, line in _numbered(text):
            try:
                row = parse_json(line, unique=True)
            except ValueError as error:
                raise InputError(
                    f"{path}:{number}: is not JSON ({error}); write one object per line"
                ) from None
            if not isinstance(row, dict):
                raise InputError(
                    f"{path}:{number}: is not a JSON object; write one per line, "
                    'such as {"text": "...", "label": "..."}'
                )
            lines.append(number)
            yield row

    return _objects_table(path, rows(), lambda row: f"{path}:{lines[row]}")


def _read_json(path: str | Path) -> Table:
    """Read an array of objects, or JSON lines."""
    text = read_text(path)
    if not text.lstrip().startswith("["):
        return _json_lines_table(path, text)
    try:
        rows = parse_json(text, unique=True)
    except ValueError as error:
        raise InputError(f"{path}: is not JSON ({error}); write one array of objects") from None
    if not rows:
        raise InputError(f"{path}: has no rows; add examples")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise InputError(
                f"{path} row {number}: is not a JSON object; write an array of objects, "
                'such as [{"text": "...", "label": "..."}]'
            )
    return _objects_table(path, rows, lambda row: f"{path} row {row + 1}")


def _objects_table(
    path: str | Path, rows: Iterable[dict[str, Any]], place: Callable[[int], str]
) -> Table:
    """Make a table of objects; a row may lack columns that others have."""
    # By column: a million objects would take half a gigabyte.
    values: dict[str, list[Any]] = collections.defaultdict(list)
    numbers: dict[str, array[int]] = collections.defaultdict(lambda: array("q"))
    count = 0
    for row in rows:
        for name, value in row.items():
            values[name].append(value)
            numbers[name].append(count)
        count += 1

    def column(name: str) -> list[Any]:
        if len(values[name]) == count:
            return values[name]
        known = dict(zip(numbers[name], values[name]))
        return [known.get(row) for row in range(count)]

    return Table(str(path), tuple(values), column, place)


def _read_parquet(path: str | Path) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    damage = (pa.ArrowException, OSError, ValueError, ArithmeticError)

    def corrupt(error: Exception) -> NoReturn:
        if isinstance(error, InputError):
            raise error
        raise InputError(f"{path}: is a damaged Parquet file ({reason_of(error)}); write it again")

    content = pa.BufferReader(read_bytes(path))
    try:
        file = pq.ParquetFile(content)
        names = file.schema_arrow.names
        _check_names(str(path), names)
        # Repeated texts are read once: decoded they could fill any memory.
        strings = [name for name in names if _is_string(file.schema_arrow.field(name).type)]
        file = pq.ParquetFile(content, read_dictionary=strings)
    except damage as error:
        corrupt(error)
    if not file.metadata.num_rows:
        raise InputError(f"{path}: has no rows; add examples")

    def column(name: str) -> list[Any]:
        try:
            return _bounded_column(file, name, max(_ALWAYS_FINE, _MOST_TIMES * content.size()))
        except damage as error:
            corrupt(error)

    return Table(str(path), tuple(names), column, lambda row: f"{path} row {row + 1}")


def _is_string(kind: Any) -> bool:
    import pyarrow.types as types

    return types.is_string(kind) or types.is_large_string(kind)


def _bounded_column(file: Any, name: str, most: int) -> list[Any]:
    """Return a column's values if they need at most `most` bytes.

    Raises:
        ValueError: they need more, or their number is not the one in the file's metadata.
    """
    metadata, values, size = file.metadata, [], 0
    # Not of the column alone: with damaged statistics, pyarrow would end the process.
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    claimed = sum(group.total_byte_size for group in groups)
    if claimed + metadata.num_rows * _BYTES_OF_A_ROW > most:
        raise ValueError(f"it claims {claimed} bytes in {metadata.num_rows} rows")
    for batch in file.iter_batches(_BATCH, columns=[name]):
        column = batch.column(name)
        size += len(column) * _BYTES_OF_A_ROW + _decoded_size(column)
        if size > most:
            raise ValueError(f"the column {name!r} has more than {most} bytes")
        values += column.to_pylist()
    if len(values) != metadata.num_rows:
        raise ValueError(f"{len(values)} rows instead of {metadata.num_rows}")
    return values


def _decoded_size(column: Any) -> int:
    """Return the bytes of a column's values without dictionary encoding."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_dictionary(column.type):
        return column.nbytes
    if not _is_string(column.dictionary.type):
        return len(column) * column.dictionary.nbytes
    lengths = pc.binary_length(column.dictionary).cast(pa.int64())
    return pc.sum(lengths.take(column.indices)).as_py() or 0


# The readers of tables, by extension.
TABLES: dict[str, Callable[[str | Path], Table]] = {
    ".csv": lambda path: rows_table(path, *read_rows(path, read_text(path), ",")),
    ".tsv": lambda path: rows_table(path, *read_rows(path, read_text(path), "\t")),
    ".jsonl": _read_json_lines,
    ".json": _read_json,
    ".ndjson": _read_json_lines,
    ".parquet": _read_parquet,
}
