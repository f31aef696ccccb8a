"""`--tasks`, loaded and tokenised for a stage."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from metajax import data
from metajax.errors import InputError
from metajax.models import Bert
from metajax.stages.groups import TaskSettings

_log = logging.getLogger("metajax")


def load(
    settings: TaskSettings, *, split: str, specs: Sequence[str] | None = None
) -> list[data.TaskData]:
    """The data sets that the settings name, or those of `specs` read the same way."""
    return data.load_tasks(
        settings.tasks if specs is None else specs,
        glue_dir=settings.glue_dir,
        split=split,
        text_column=settings.text_column,
        pair_column=settings.pair_column,
        label_column=settings.label_column,
        classes=settings.classes,
    )


def fingerprints(settings: TaskSettings) -> dict[str, str]:
    """For each data set and the file of classes, its sha256."""
    found = {
        f"--tasks {spec}": data.fingerprint(spec, glue_dir=settings.glue_dir)
        for spec in settings.tasks
    }
    if settings.classes is not None:
        found[f"--classes {settings.classes}"] = data.fingerprint(settings.classes)
    return found


def tokenized(tasks: Sequence[data.TaskData], model: Bert, length: int) -> list[data.TokenizedTask]:
    """The data sets as arrays; says once how many texts were too long."""
    tokenizer = model.tokenizer
    found = [data.tokenize_task(task, tokenizer, length) for task in tasks]
    truncated = sum(task.tokens.truncated for task in found)
    if truncated:
        total = sum(len(task.labels) for task in found)
        _log.warning("%d of %d texts were cut to %d tokens", truncated, total, length)
    return found


def relabel(task: data.TaskData, training: data.TaskData) -> data.TaskData:
    """The task with its classes numbered as in the training file.

    Raises:
        InputError: it has one that is not there, or one of the two has scores and no classes, or
            pairs of texts.
    """
    names = training.label_names
    if (task.pairs is None) != (training.pairs is None):
        one, other = ("pairs", "single texts") if task.pairs else ("single texts", "pairs")
        raise InputError(
            f"{task.name}: has {one} and the training file {other}: give a file like the training "
            "file"
        )
    if bool(task.label_names) != bool(names):
        scores = "classes and the training file scores" if names == () else "scores and no classes"
        raise InputError(f"{task.name}: has {scores}: give a file like the training file")
    unknown = [name for name in task.label_names if name not in names]
    if unknown:
        raise InputError(
            f"{task.name}: has the label {unknown[0]!r}, which the training file has not: "
            "use the same labels in both"
        )
    if task.label_names == names:
        return task
    order = np.array([names.index(name) for name in task.label_names], np.int32)
    return task._replace(labels=order[task.labels], label_names=names)


def batch_of(task: data.TokenizedTask) -> dict[str, Any]:
    """All examples of a data set as one batch."""
    return next(iter(data.supervised_eval_batches(task, len(task.labels))))
