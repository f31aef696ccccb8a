"""A run's metrics: a JSON object a step, in `metrics.jsonl` of its workdir."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from metajax.errors import InputError, StoppedError
from metajax.reading import is_number, parse_json
from metajax.runs.paths import in_bucket
from metajax.runs.workdir import Run, write_atomically

# What is reckoned with, where a row has it.
_NUMBERS = ("loss", "seconds", "data_wait", "peak_memory_bytes", "peak_device_memory_bytes")


class MetricsLog:
    """The metrics of a run, a JSON object a line.

    To an object in a bucket nothing can be appended: there the rows are written with `flush`.

    Args:
        run: whose.
        step: the step resumed from; rows of later steps, from before a kill, are dropped.
        writes: whether this process is the one that writes them.
        also: told of each row that is written.

    Attributes:
        rows: all so far.
    """

    def __init__(
        self,
        run: Run,
        step: int,
        *,
        writes: bool = True,
        also: Callable[[dict[str, Any]], None] = lambda row: None,
    ) -> None:
        self._path, self._writes, self._also = run.path / "metrics.jsonl", writes, also
        self.rows = [row for row in read_metrics(self._path) if row["step"] <= step]
        self._file = None
        if writes and not in_bucket(self._path):
            self._write_all()
            self._file = self._path.open("a", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.flush()
        if self._file is not None:
            with contextlib.suppress(OSError):  # What could not be written before, again.
                self._file.close()

    def flush(self) -> None:
        """Writes what is not yet written; to be called before the step is saved."""
        if self._writes and in_bucket(self._path):
            self._write_all()

    def _write_all(self) -> None:
        write_atomically(self._path, "".join(json.dumps(row) + "\n" for row in self.rows))

    def write(self, row: dict[str, Any]) -> None:
        """Appends a row; to a file at once."""
        self.rows.append(row)
        try:
            if self._file is not None:
                self._file.write(json.dumps(row) + "\n")
                self._file.flush()
        except OSError as error:
            raise StoppedError(
                f"{self._path}: cannot be written ({error.strerror}): the checkpoints are "
                "safe; make room and run the same command again"
            ) from error
        self._also(row)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file; one that a kill cut short, or that is being written, is left out.

    Raises:
        InputError: a line is no step's metrics.
    """
    if not path.is_file():
        return []
    rows = []
    lines = path.read_bytes().decode("utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            row = parse_json(line)
        except ValueError:
            row = None
        if not _is_metrics(row):
            raise InputError(f"{path}:{number}: is not a step's metrics; fix it or remove the line")
        rows.append(row)
    return rows


def _is_metrics(row: Any) -> bool:
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        return False
    numbers = [row["step"], *(row[name] for name in _NUMBERS if name in row)]
    if row.get("loss", 0) is None:  # It was not finite, and JSON has no NaN.
        numbers.remove(None)
    return are_measures(row.get("before", {})) and all(map(is_number, numbers))


def are_measures(found: Any) -> bool:
    """Whether these are what a stage measures: numbers by name, or by task and name."""
    if not isinstance(found, dict) or isinstance(found.get("ci95"), dict):
        return False
    return all(
        are_measures(value) if isinstance(value, dict) else is_number(value, finite=False)
        for value in found.values()
    )
