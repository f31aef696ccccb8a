"""Read and check the files of runs and evaluations for a report."""

import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metajax.errors import InputError
from metajax.reading import is_number
from metajax.reporting.plots import Series
from metajax.runs.document_eval import DocumentRow
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
_DOCUMENT_BOUNDS = {
    **dict.fromkeys(("loss", "ci95", "bits_per_byte", "losses", "chunks"), (0, np.inf)),
    **dict.fromkeys(("behind_ci95", "seconds"), (0, np.inf)),
    "behind": (-np.inf, np.inf),
}
_ROUNDING = 1e-6  # A mean of ones may be a little above one.


class Run(NamedTuple):
    """The content of a working directory.

    Attributes:
        name: a short name that no other run has.
        path: the path as given.
        record: the content of run.json.
        metrics: one row per step. The first row may be the measurement before training.
        results: the content of results.json; None if the run has not finished.
    """

    name: str
    path: str
    record: dict[str, Any]
    metrics: list[dict[str, Any]]
    results: dict[str, Any] | None

    def series(self, name: str) -> Series:
        """Return a metric for all steps that have it."""
        rows = [row for row in self.metrics if row["step"] and name in row]
        return Series(
            np.array([row["step"] for row in rows], float),
            np.array([row[name] for row in rows], float),
        )

    @property
    def validations(self) -> dict[int, dict[str, float]]:
        """The `accuracy` and `ci95` of each validation, by step; 0 is before the first."""
        found = [row for row in self.metrics if "valid_accuracies" in row]
        return {row["step"]: row["valid" if row["step"] else "before"] for row in found}

    def most(self, name: str) -> float:
        """Return the largest value of a metric; 0 if no step has it."""
        return max((row.get(name, 0) for row in self.metrics), default=0)


class Comparison(NamedTuple):
    """Methods that were evaluated on the same episodes, or on the same documents.

    Attributes:
        caption: the file, the tasks and the protocol.
        episodes: the rows of methods on episodes.
        documents: the rows of methods on documents; either of the two is empty.
    """

    caption: str
    episodes: list[Row]
    documents: list[DocumentRow]


def read_runs(paths: Sequence[str]) -> list[Run]:
    """Read the runs in some working directories, each only once.

    Raises:
        InputError: a directory has no run, or its files are damaged.
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
        raise InputError(f"{path}: is not the working directory of a run; give one")
    results = read_results(workdir)
    if results is not None and not _are_results(results):
        raise InputError(
            f"{workdir / 'results.json'}: has no results of a run; restore it from a backup"
        )
    return Run(name, path, record, read_metrics(workdir / "metrics.jsonl"), results)


def _are_results(results: dict[str, Any]) -> bool:
    """Return whether the measurements are numbers and a confusion matrix fits its labels.

    With several labels per text there is no such matrix, but a micro-F1. With numbers there are
    correlations.
    """
    if not are_measures(results.get("after", {})):
        return False
    if "dev" not in results:
        return True
    try:
        names, dev = results["labels"], results["dev"]
        if "pearson" in dev:
            return are_measures(dev)
        if "confusion" not in dev:
            return is_number(dev["accuracy"]) and is_number(dev["micro_f1"])
        counts = dev["confusion"]
        return (
            is_number(dev["accuracy"])
            and all(isinstance(name, str) for name in names)
            and all(isinstance(count, int) for row in counts for count in row)
            and np.array(counts, int).shape == (len(names), len(names))
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        return False


def read_evaluation(path: Path) -> list[Comparison]:
    """Read the rows of an evaluation, grouped by episodes.

    Raises:
        InputError: the file does not exist or is not the result of an evaluation.
    """
    if not path.is_file():
        problem = "is a directory" if path.is_dir() else "no such file"
        raise InputError(f"{path}: {problem}; give a file that evaluate --output wrote")
    values = read_json(path)
    try:
        rows = [(DocumentRow if "bits_per_byte" in row else Row)(**row) for row in values]
        if not rows or not all(map(_is_sound, rows)):
            raise TypeError
    except TypeError:
        raise InputError(
            f"{path}: is not an evaluation; give a file that evaluate --output wrote"
        ) from None
    for number, row in enumerate(rows, start=1):
        fault = _fault(row)
        if fault:
            raise InputError(f"{path}: row {number}: {fault}; restore it, or evaluate again")
    groups: dict[str, Comparison] = {}
    for row in rows:
        caption = f"{path}: {row.tasks}: {row.protocol}"
        group = groups.setdefault(caption, Comparison(caption, [], []))
        if isinstance(row, DocumentRow):
            group.documents.append(row)
        else:
            group.episodes.append(row)
    return list(groups.values())


def _is_sound(row: Row | DocumentRow) -> bool:
    """Return whether each value has its type."""
    for name, kind in typing.get_type_hints(type(row)).items():
        value = getattr(row, name)
        many = typing.get_origin(kind) is tuple
        if many and not isinstance(value, list | tuple):
            return False
        for item in value if many else [value]:
            if kind in (str, int) and not isinstance(item, kind):
                return False
            if kind is not str and not is_number(item, finite=False):
                return False
    return isinstance(row, DocumentRow) or len(row.curve) == len(row.curve_ci95)


def _fault(row: Row | DocumentRow) -> str | None:
    """Return a value that is impossible for an evaluation, or None."""
    on_documents = isinstance(row, DocumentRow)
    for name, (low, high) in (_DOCUMENT_BOUNDS if on_documents else _BOUNDS).items():
        for value in np.ravel(getattr(row, name)):
            if not low - _ROUNDING <= value <= high + _ROUNDING:  # This also refuses NaN.
                return f"{name}: {value:g} is not from {low} to {high}"
    if isinstance(row, DocumentRow):
        if not row.documents == len(row.losses) > 0:
            return f"has {row.documents} documents but {len(row.losses)} losses"
    elif not row.episodes == len(row.accuracies) > 0:
        return f"has {row.episodes} episodes but {len(row.accuracies)} accuracies"
    return None
