"""The texts that a `FewShotClassifier` is fitted to, and their labels: one each, or any number."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from metajax import data
from metajax.errors import InputError
from metajax.runs.label_names import check_names, warn_of_unused

Kind = Literal["single", "indicator", "lists"]
_SEVERAL = (list, tuple, set, frozenset)


class Labels(NamedTuple):
    """Labels of N texts.

    Attributes:
        kind: how they were given: one label for each text, an indicator matrix, or a list for each.
        classes: [C], the labels in sorted order; 0..C-1 for an indicator matrix.
        numbers: int32 [N], the number of each text's label, or [N, C], 1 for each label of a text.
    """

    kind: Kind
    classes: np.ndarray
    numbers: np.ndarray


def check_sizes(**sizes: int) -> None:
    """Check parameters of an estimator that are at least 1.

    Raises:
        InputError: one is not.
    """
    for name, value in sizes.items():
        if value < 1:
            raise InputError(f"{name} is {value}; give at least 1")


def read_texts(given: Any) -> tuple[list[str], list[str] | None]:
    """Return texts, and second texts if they are pairs.

    Raises:
        InputError: something else is given.
    """
    if hasattr(given, "columns"):
        how = 'one column, such as frame["text"]'
        if len(given.columns) == 2:
            how += ", or list(zip(first, second)) of two columns for pairs"
        raise InputError(f"texts: are a table; give {how}")
    if isinstance(given, str | bytes | Mapping):
        what = f"a single {type(given).__name__}"
        raise InputError(f"texts: are {what}; give a list of texts, or one column")
    try:
        rows = [row if isinstance(row, tuple | list | np.ndarray) else (row,) for row in given]
    except TypeError:
        raise InputError(f"texts: are {given!r}; give a list of texts") from None
    for number, row in enumerate(rows):
        if not all(isinstance(part, str) and part.strip() for part in row):
            shown = row[0] if len(row) == 1 else row
            raise InputError(f"texts: number {number} is {shown!r}, not a text; remove it")
        if len(row) != len(rows[0]) or not 1 <= len(row) <= 2:
            raise InputError(
                f"texts: number {number} has {len(row)} texts, unlike the first; give single "
                "texts or pairs"
            )
    columns = [[str(part) for part in column] for column in zip(*rows)] or [[]]
    return columns[0], columns[1] if len(columns) == 2 else None


def read_examples(
    texts: Any, labels: Any, names: Mapping[Any, str]
) -> tuple[data.TaskData, Kind, np.ndarray]:
    """Read what a `FewShotClassifier` is fitted to.

    Args:
        texts: see `read_texts`. None: none.
        labels: see `read_labels`. None: none.
        names: the name of each label, which is one more example.

    Returns:
        The examples; how labels were given, and the classes [C], as in `Labels`.

    Raises:
        InputError: they are not labelled texts, or there is only one class.
    """
    check_names("label_names", names)
    own, pairs = read_texts([] if texts is None else texts)
    kind, classes, numbers = read_labels([] if labels is None else labels, names)
    if names and pairs is not None:
        raise InputError("label_names: are single texts, but the examples are pairs; omit them")
    own += names.values()
    if not own:
        raise InputError("fit: there are no examples; give texts, or label_names")
    if len(numbers) != len(own):
        counts = f"{len(own) - len(names)} texts have {len(numbers) - len(names)} labels"
        raise InputError(f"fit: {counts}; give one each")
    if len(classes) < 2:
        raise InputError(f"fit: only {len(classes)} class is given; give at least two")
    given = numbers[: len(numbers) - len(names)]
    used = classes[np.unique(given) if given.ndim == 1 else given.any(0)]
    warn_of_unused("label_names", map(plain, names), used.tolist())
    shown = tuple(map(str, classes))
    return data.TaskData("the examples", own, pairs, numbers, shown), kind, classes


def read_labels(given: Any, names: Iterable[Any] = ()) -> Labels:
    """Read labels in one of three forms.

    Args:
        given: a sequence of labels, an indicator matrix [N, C] of 0 and 1, or a sequence of lists
            of labels.
        names: labels of further texts, which have one each.

    Raises:
        InputError: they have none of these forms.
    """
    if hasattr(given, "__array__"):  # A column or a table too.
        given = np.asarray(given)
    if isinstance(given, np.ndarray) and given.ndim == 2:
        return _of_matrix(given, list(names))
    if isinstance(given, str | Mapping) or not isinstance(given, Sequence | np.ndarray):
        raise InputError("labels: are not a list; give one label for each text")
    if isinstance(given, np.ndarray) and given.ndim != 1:
        raise InputError("labels: are not a list; give one label for each text, or a matrix [N, C]")
    for number, own in enumerate(given):
        if isinstance(own, np.ndarray):
            raise InputError(
                f"labels: number {number} is {own!r}; give a matrix, or lists of labels"
            )
    several = [isinstance(own, _SEVERAL) for own in given]
    if any(several):
        return _of_lists(given, several, list(names))
    labels = list(map(plain, [*given, *names]))
    classes, numbers = _sorted_classes(list(enumerate(labels)))
    return Labels("single", classes, numbers.astype(np.int32))


def _of_matrix(given: np.ndarray, names: list[Any]) -> Labels:
    if given.shape[1] == 1:
        raise InputError(
            'labels: are a table or matrix with one column; give frame["label"] or labels[:, 0]'
        )
    wrong = [value for value in given.flat if value not in (0, 1)]
    if wrong:
        raise InputError(
            f"labels: are a matrix with the value {plain(wrong[0])!r}; give 0 and 1, or a list of "
            "labels for each text"
        )
    classes = np.arange(given.shape[1])
    unknown = [name for name in names if name not in range(len(classes))]
    if unknown:
        raise InputError(
            f"label_names: names the label {unknown[0]!r}, but the matrix has the labels "
            f"0..{len(classes) - 1}; use these"
        )
    rows = [given.astype(np.int32), np.eye(len(classes), dtype=np.int32)[list(map(int, names))]]
    return Labels("indicator", classes, np.concatenate(rows))


def _of_lists(given: Sequence[Any] | np.ndarray, several: list[bool], names: list[Any]) -> Labels:
    if not all(several):
        number = several.index(False)
        raise InputError(
            f"labels: number {number} is {plain(given[number])!r}, but others are lists; give a "
            "list for every text"
        )
    lists = [list(map(plain, own)) for own in [*given, *([name] for name in names)]]
    classes, numbers = _sorted_classes([(n, label) for n, own in enumerate(lists) for label in own])
    rows = np.repeat(np.arange(len(lists)), [len(own) for own in lists])
    indicator = np.zeros((len(lists), len(classes)), np.int32)
    np.add.at(indicator, (rows, numbers), 1)
    if (indicator > 1).any():
        row, column = np.argwhere(indicator > 1)[0]
        raise InputError(
            f"labels: number {row} has {plain(classes[column])!r} twice; give each label once (an "
            "indicator matrix has to be a NumPy array)"
        )
    return Labels("lists", classes, indicator)


def _sorted_classes(labels: Sequence[tuple[int, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels [C] in sorted order, and the number of each.

    Args:
        labels: (number of the text, label).

    Raises:
        InputError: labels are missing, or are not strings, whole numbers or booleans.
    """
    for number, label in labels:
        if isinstance(label, float) and label.is_integer():
            continue
        if not isinstance(label, str | int):
            finite = isinstance(label, float) and np.isfinite(label)
            other = "; to predict numbers, use FewShotRegressor" if finite else ""
            raise InputError(
                f"labels: number {number} is {label!r}; give strings, whole numbers or "
                f"booleans{other}"
            )
    if len({isinstance(label, str) for _, label in labels}) > 1:
        raise InputError(
            "labels: some are strings and some are not; give labels, and keys of label_names, of "
            "one type"
        )
    return np.unique(np.array([label for _, label in labels]), return_inverse=True)


def plain(label: Any) -> Any:
    """Return a label as JSON can write it."""
    return label.item() if isinstance(label, np.generic) else label
