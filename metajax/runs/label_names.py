"""Names of labels as examples: `adapt --label-names`."""

from collections.abc import Mapping

import numpy as np

from metajax import data
from metajax.errors import InputError
from metajax.reading import parse_json, read_bytes


def read_label_names(path: str) -> dict[str, str]:
    """Read a JSON object with the name or description of each label.

    Raises:
        InputError: the file is not such an object, or a name is not a text.
    """
    try:
        names = parse_json(read_bytes(path).decode("utf-8-sig"), unique=True)
    except ValueError as error:
        raise InputError(f"{path}: is not JSON ({error}); correct it") from None
    if not isinstance(names, dict) or not names:
        raise InputError(f'{path}: is not a JSON object; write {{"label": "its name"}}')
    for label, name in names.items():
        if not label.strip():
            raise InputError(f"{path}: has an empty label; write one")
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"{path}: the name of {label!r} is {name!r}, not a text; write one")
    return names


def with_label_names(task: data.TaskData, names: Mapping[str, str]) -> data.TaskData:
    """Add each name as an example of its label. Labels without examples become classes.

    Raises:
        InputError: the examples are pairs, or there is only one class.
    """
    if task.pairs is not None:
        raise InputError(
            "--label-names: are single texts, but the examples are pairs; omit --label-names"
        )
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
