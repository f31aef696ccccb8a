"""What a report is about: the files of runs and of evaluations, read and checked."""

import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metajax.errors import InputError
from metajax.reading import is_number
from metajax.reporting.plots import Series
from metajax.runs.eval_set import Row
from metajax.runs.metrics import are_measures, read_metrics
from metajax.runs.paths import address, to_path
from metajax.runs.record import read_record
from metajax.runs.workdir import read_json, read_results

_BOUNDS = {
    **dict.fromkeys(("accuracy", "accuracies", "curve"), (0, 1)),
    "behind": (-1, 1),
    **dict.fromkeys(("ci95", "behind_ci95", "curve_ci95", "seconds"), (0, np.inf)),
}
_ROUNDING = 1e-6  # A mean of ones may come out a little above one.


class Run(NamedTuple):
    """What a workdir holds.

    Attributes:
        name: short, and no other run's.
        path: as given.
        record: what the run is.
        metrics: a row a step, the first of which may be what was measured before any.
        results: None of a run that has not ended.
    """

    name: str
    path: str
    record: dict[str, Any]
    metrics: list[dict[str, Any]]
    results: dict[str, Any] | None

    def series(self, name: str) -> Series:
        """A number of each step that has it."""
        rows = [row for row in self.metrics if row["step"] and name in row]
        return Series(
            np.array([row["step"] for row in rows], float),
            np.array([row[name] for row in rows], float),
        )

    def most(self, name: str) -> float:
        """The largest of a number over all steps; 0 where none has it."""
        return max((row.get(name, 0) for row in self.metrics), default=0)


class Comparison(NamedTuple):
    """Methods that were run on the same episodes."""

    caption: str
    rows: list[Row]


def read_runs(paths: Sequence[str]) -> list[Run]:
    """The runs in some workdirs, each once.

    Raises:
        InputError: one holds no run, or what it holds is damaged.
    """
    paths = list(dict.fromkeys(paths))
    names = [Path(address(to_path(path))).name for path in paths]
    if len(set(names)) < len(names):
        names = paths
    return [_read_run(name, path) for name, path in zip(names, paths)]


def _read_run(name: str, path: str) -> Run:
    workdir = to_path(path)
    record = read_record(workdir)
    if record is None:
        raise InputError(f"{path}: is not the workdir of a run: name one")
    found = read_results(workdir)
    if found is not None and not _are_results(found):
        raise InputError(
            f"{workdir / 'results.json'}: is not a run's results: restore it from a backup"
        )
    return Run(name, path, record, read_metrics(workdir / "metrics.jsonl"), found)


def _are_results(found: dict[str, Any]) -> bool:
    """Whether it has measures, and a confusion matrix a row and a column a label, or neither."""
    if not are_measures(found.get("after", {})):
        return False
    if "dev" not in found:
        return True
    try:
        names, counts = found["labels"], found["dev"]["confusion"]
        return (
            is_number(found["dev"]["accuracy"])
            and all(isinstance(name, str) for name in names)
            and all(isinstance(count, int) for row in counts for count in row)
            and np.array(counts, int).shape == (len(names), len(names))
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        return False


def read_evaluation(path: Path) -> list[Comparison]:
    """An evaluation's rows, those of the same episodes together.

    Raises:
        InputError: the file is not there or holds something else.
    """
    if not path.is_file():
        problem = "is a directory" if path.is_dir() else "no such file"
        raise InputError(f"{path}: {problem}: name what evaluate --output wrote")
    found = read_json(path)
    try:
        rows = [Row(**row) for row in found]
        if not rows or not all(map(_is_sound, rows)):
            raise TypeError
    except TypeError:
        raise InputError(f"{path}: is not what evaluate --output writes: name that") from None
    for number, row in enumerate(rows, start=1):
        fault = _fault(row)
        if fault:
            raise InputError(f"{path}: row {number}: {fault}: restore it, or evaluate again")
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(f"{path}: {row.tasks}: {row.protocol}", []).append(row)
    return [Comparison(caption, rows) for caption, rows in groups.items()]


def _is_sound(row: Row) -> bool:
    """Whether each value is of its kind."""
    for name, kind in typing.get_type_hints(Row).items():
        value = getattr(row, name)
        many = typing.get_origin(kind) is tuple
        if many and not isinstance(value, list | tuple):
            return False
        for item in value if many else [value]:
            if kind in (str, int) and not isinstance(item, kind):
                return False
            if kind is not str and not is_number(item, finite=False):
                return False
    return len(row.curve) == len(row.curve_ci95)


def _fault(row: Row) -> str | None:
    """What of a row no evaluation can have found, if anything."""
    for name, (low, high) in _BOUNDS.items():
        for value in np.ravel(getattr(row, name)):
            if not low - _ROUNDING <= value <= high + _ROUNDING:  # NaN is neither.
                return f"{name}: {value:g} is not from {low} to {high}"
    if not row.episodes == len(row.accuracies) > 0:
        return f"has {row.episodes} episodes and {len(row.accuracies)} accuracies of theirs"
    return None
