"""The metrics of a run: one JSON object per step, in `metrics.jsonl`."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from metajax.errors import InputError, StoppedError
from metajax.reading import is_number, parse_json
from metajax.runs.paths import in_bucket
from metajax.runs.workdir import Run, write_atomically

# Metrics that are used in computations, if a row has them.
_NUMBERS = (
    *("loss", "seconds", "valid_seconds", "data_wait"),
    *("peak_memory_bytes", "peak_device_memory_bytes"),
)


class MetricsLog:
    """The metrics of a run, one JSON object per line.

    An object in a bucket cannot be appended to. There `flush` writes all rows.

    Args:
        run: the run.
        step: the step from which the run resumes. Rows of later steps are dropped.
        writes: whether this process writes the file.
        also: a function that gets each written row.

    Attributes:
        rows: all rows so far.
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
            with contextlib.suppress(OSError):  # The same error as before.
                self._file.close()

    def flush(self) -> None:
        """Write the remaining rows. Call this before a checkpoint is saved."""
        if self._writes and in_bucket(self._path):
            self._write_all()

    def _write_all(self) -> None:
        write_atomically(self._path, "".join(json.dumps(row) + "\n" for row in self.rows))

    def write(self, row: dict[str, Any]) -> None:
        """Append a row, and write it to the file at once."""
        self.rows.append(row)
        try:
            if self._file is not None:
                self._file.write(json.dumps(row) + "\n")
                self._file.flush()
        except OSError as error:
            raise StoppedError(
                f"{self._path}: cannot be written ({error.strerror}); existing checkpoints "
                "are intact; free some space and run the same command again"
            ) from error
        self._also(row)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a metrics file, without an incomplete last row.

    Raises:
        InputError: a line has no metrics of a step.
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
            raise InputError(f"{path}:{number}: has no metrics of a step; fix or remove the line")
        rows.append(row)
    return rows


def _is_metrics(row: Any) -> bool:
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        return False
    numbers = [row["step"], *(row[name] for name in _NUMBERS if name in row)]
    if row.get("loss", 0) is None:  # It was not finite. JSON has no NaN.
        numbers.remove(None)
    if not are_measures(row.get("before", {})) or not all(map(is_number, numbers)):
        return False
    valid = row.get("valid_sources", {})
    if not _are_by_source(row.get("sources", {}), "loss") or not _are_by_source(valid, "accuracy"):
        return False
    if any(means["accuracy"] is None for means in valid.values()):
        return False
    return "valid_accuracies" not in row or _is_validation(row)


def _are_by_source(sources: Any, needed: str) -> bool:
    """Return whether a value has by source a number of tasks, and numbers or None by name.

    Args:
        sources: the value.
        needed: one of the names.
    """
    return isinstance(sources, dict) and all(
        isinstance(means, dict)
        and isinstance(means.get("tasks"), int)
        and means["tasks"] > 0
        and needed in means
        and all(value is None or is_number(value) for value in means.values())
        for means in sources.values()
    )


def _is_validation(row: dict[str, Any]) -> bool:
    """Return whether a row has the accuracy of each episode and their summary."""
    accuracies, measured = row["valid_accuracies"], row.get("valid" if row["step"] else "before")
    return (
        isinstance(accuracies, list)
        and all(map(is_number, accuracies))
        and isinstance(measured, dict)
        and are_measures(measured)
        and measured.keys() == {"accuracy", "ci95"}
    )


def are_measures(values: Any) -> bool:
    """Return whether a value has measurements: numbers by name, or by task and name."""
    if not isinstance(values, dict) or isinstance(values.get("ci95"), dict):
        return False
    return all(
        are_measures(value) if isinstance(value, dict) else is_number(value, finite=False)
        for value in values.values()
    )
