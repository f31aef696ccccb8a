"""Read the columns of a table as texts, labels or scores, and check each value."""

import collections
import logging
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from metajax.data.normalization import lookalike_key, normalize
from metajax.data.readers import Table
from metajax.errors import InputError, printable, some

_log = logging.getLogger("metajax")
_MISSING = {"nan", "<na>", "#n/a"}  # What pandas and Excel write for a missing value.
_PERHAPS_MISSING = {"na", "n/a", "none", "null"}
_NAMED = 5  # How many examples a message names.


def text_column(table: Table, column: str) -> list[str]:
    """Return a column's texts.

    Raises:
        InputError: a text is missing or empty, or a value is not text.
    """
    values = table.column(column)
    for row, value in enumerate(values):
        _check_string(value, table, row, column)
    _warn_of_missing(table, column, values, _MISSING | _PERHAPS_MISSING)
    return values


def label_column(table: Table, column: str) -> list[str]:
    """Return a column's labels, each in one spelling (see `normalize`).

    Log which labels had several spellings, and which different labels look alike.

    Raises:
        InputError: a label is missing or empty, or neither text nor a whole number.
    """
    names: dict[str, str] = {}
    labels = []
    for row, value in enumerate(table.column(column)):
        label = str(value) if isinstance(value, int) else value
        if not isinstance(label, str) or label not in names:
            _check_string(label, table, row, column, otherwise=_other_labels(value))
            names[label] = normalize(label)
        labels.append(names[label])
    missing = [name for name in names.values() if name.casefold() in _MISSING]
    if missing:
        row = min(map(labels.index, missing))
        raise _missing_value(table, row, column, labels[row])
    _warn_of_missing(table, column, labels, _PERHAPS_MISSING)
    _warn_of_labels(table.source, {label.strip(): name for label, name in names.items()})
    return labels


def _other_labels(value: Any) -> str:
    """Return what else to do about a value that is not a label."""
    if isinstance(value, float) and value == value:
        return ", or give adapt --regression to predict numbers"
    return ", or give adapt --label-separator if texts have several labels or none"


def several_labels_column(table: Table, column: str, separator: str) -> list[list[str]]:
    """Return any number of labels for each text, each in one spelling (see `normalize`).

    A value is text, in which the separator stands between labels, a list of labels, or a whole
    number. Empty text has no labels.

    Raises:
        InputError: a value is not one of these, a label is missing or empty, or a text has a label
            twice.
    """
    names: dict[str, str] = {}
    labels: list[list[str]] = []
    values = table.column(column)
    _warn_of_separator(table.source, values, separator)
    for row, value in enumerate(values):
        listed = _listed(value, separator)
        own = [str(label) if isinstance(label, int) else label for label in listed]
        for label in own:
            if isinstance(label, str) and not normalize(label):
                how = "remove a separator" if isinstance(value, str) else "remove it"
                raise InputError(f"{table.place(row)}: has an empty label; {how}")
            _check_string(label, table, row, column)
            names[label] = normalize(label)
            if names[label].casefold() in _MISSING:
                raise _missing_value(table, row, column, names[label])
        labels.append([names[label] for label in own])
        if len(set(labels[-1])) < len(own):
            twice = next(name for name in labels[-1] if labels[-1].count(name) > 1)
            raise InputError(f"{table.place(row)}: has the label {twice!r} twice; give it once")
    alone = [own[0] if len(own) == 1 else "" for own in labels]
    _warn_of_missing(table, column, alone, _PERHAPS_MISSING)
    _warn_of_labels(table.source, {label.strip(): name for label, name in names.items()})
    return labels


def _warn_of_separator(source: str, values: Sequence[Any], separator: str) -> None:
    """Say that no text has the separator, if some have another one that is usual."""
    given = [value for value in values if isinstance(value, str)]
    others = [other for other in ";|," if any(other in value for value in given)]
    if others and not any(separator in value for value in given):
        found = f"the --label-separator {separator!r} is in no label, but {others[0]!r} is"
        _log.warning("%s: %s; check it", source, found)


def _listed(value: Any, separator: str) -> list[Any]:
    """Return the labels of a value, not yet checked."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    if isinstance(value, str):
        return value.split(separator)
    return value if isinstance(value, list) else [value]


def _missing_value(table: Table, row: int, column: str, label: str) -> InputError:
    return InputError(
        f"{table.place(row)}: {column!r} is {label!r}, which means a missing value; "
        "fill it in or remove the row"
    )


def score_column(table: Table, column: str) -> np.ndarray:
    """Return a column's numbers, float32 [N].

    Raises:
        InputError: a value is missing, not a finite number, or too large.
    """
    scores = []
    for row, value in enumerate(table.column(column)):
        try:
            score = float(value)
        except (TypeError, ValueError):
            score = float("nan")
        if not np.isfinite(score):
            raise InputError(f"{table.place(row)}: {column!r} is {value!r}, not a number; fix it")
        if abs(score) > float(np.finfo(np.float32).max):
            raise InputError(
                f"{table.place(row)}: {column!r} is {value!r}; give numbers up to 3.4e38"
            )
        scores.append(score)
    return np.array(scores, np.float32)


def sorted_names(names: set[str]) -> tuple[str, ...]:
    """Return the names of classes in order; by value if all look like numbers."""
    if all(re.fullmatch(r"[+-]?\d+(\.\d*)?", name, re.ASCII) for name in names):
        return tuple(sorted(names, key=lambda name: (float(name), name)))
    return tuple(sorted(names))


def _check_string(value: Any, table: Table, row: int, column: str, *, otherwise: str = "") -> None:
    if isinstance(value, str) and value.isascii() and value.strip():
        return  # Most texts, decided without normalizing them.
    empty = value is None or value != value  # JSON's NaN.
    if empty or (isinstance(value, str) and not normalize(value)):
        raise InputError(
            f"{table.place(row)}: no {column!r}; fill it in or remove the row{otherwise}"
        )
    if not isinstance(value, str):
        raise InputError(
            f"{table.place(row)}: {column!r} is {type(value).__name__}, not text; write a string"
            f"{otherwise}"
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"{table.place(row)}: {column!r} holds half a character (a lone surrogate); fix it"
        ) from None


def _warn_of_missing(
    table: Table, column: str, values: Sequence[str], names: Iterable[str]
) -> None:
    """Say how many values look like a missing value."""
    longest = max(map(len, names))
    rows = [
        row
        for row, value in enumerate(values)
        if len(value) <= longest and value.casefold() in names
    ]
    if rows:
        _log.warning(
            "%s: %r is %r (%d rows like this), which often means a missing value; remove the "
            "rows if it does",
            *(table.place(rows[0]), column, values[rows[0]], len(rows)),
        )


def _warn_of_labels(source: str, names: dict[str, str]) -> None:
    """Say which spellings are one label, and which different labels look alike."""
    merged, similar = collections.defaultdict(list), collections.defaultdict(list)
    for label, name in sorted(names.items()):
        merged[name].append(label)
    for name in sorted(merged):
        similar[lookalike_key(name)].append(name)
    for groups, what in (
        (merged, "count as one: they differ only in white space, invisible characters or Unicode"),
        (similar, "look alike but are different classes; give them one name if they are the same"),
    ):
        several = [group for group in groups.values() if len(group) > 1]
        if several:
            named = some([" and ".join(map(repr, group)) for group in several], _NAMED)
            _log.warning("%s: the labels %s %s", source, printable(named), what)
