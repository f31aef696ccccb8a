"""Names of labels as examples: `adapt --label-names`."""

import logging
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from metajax import data
from metajax.errors import InputError, printable, some
from metajax.reading import parse_json, read_bytes

_log = logging.getLogger("metajax")
_NAMED = 5  # How many labels a message names.


def read_label_names(path: str) -> dict[str, str]:
    """Read a JSON object with the name or description of each label.

    Raises:
        InputError: the file is not such an object, or a name is not a text.
    """
    content = read_bytes(path)
    try:
        names = parse_json(content.decode("utf-8-sig"), unique=True)
    except ValueError as error:
        raise InputError(f"{path}: is not JSON ({error}); correct it") from None
    if not isinstance(names, dict) or not names:
        raise InputError(f'{path}: is not a JSON object; write {{"label": "its name"}}')
    if not all(map(str.strip, names)):
        raise InputError(f"{path}: has an empty label; write one")
    check_names(path, names)
    return names


def check_names(source: str, names: Mapping[Any, Any]) -> None:
    """Check the names of labels.

    Raises:
        InputError: one is not a text.
    """
    for label, name in names.items():
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"{source}: the name of {label!r} is {name!r}, not a text; write one")


def warn_of_unused(source: str, names: Iterable[Any], labels: Collection[Any]) -> None:
    """Say which labels have a name but none of the examples, if there are any: a typing error?"""
    unused = [label for label in names if label not in labels]
    if unused and labels:
        count = "1 label has" if len(unused) == 1 else f"{len(unused)} labels have"
        named = printable(some([*map(repr, unused)], _NAMED))
        _log.warning("%s: %s a name but no example: %s", source, count, named)


def with_label_names(task: data.TaskData, path: str) -> data.TaskData:
    """Add each name in a file as an example of its label. Labels without examples become classes.

    Raises:
        InputError: the file cannot be used, the examples are pairs, or there is only one class.
    """
    names = read_label_names(path)
    if task.pairs is not None:
        raise InputError(
            "--label-names: are single texts, but the examples are pairs; omit --label-names"
        )
    warn_of_unused(path, names, task.label_names)
    classes = sorted({*task.label_names, *names})
    if len(classes) < 2:
        raise InputError("--label-names: only 1 class is given; give at least two")
    number = {label: i for i, label in enumerate(classes)}
    old = np.array([number[label] for label in task.label_names], np.int32)
    new = np.array([number[label] for label in names], np.int32)
    if task.labels.ndim == 1:
        labels = np.concatenate([old[task.labels], new])
    else:  # Of each name, a text with one label.
        labels = np.zeros((len(task.texts) + len(names), len(classes)), np.int32)
        labels[: len(task.texts), old] = task.labels
        labels[len(task.texts) + np.arange(len(names)), new] = 1
    return task._replace(
        texts=[*task.texts, *names.values()], labels=labels, label_names=tuple(classes)
    )
