"""`--tasks`, loaded and tokenised for a stage."""

import logging
from collections.abc import Sequence

import numpy as np

from metajax import data
from metajax.config.groups import DrawSettings, TaskSettings
from metajax.errors import InputError, printable
from metajax.models import Transformer

_log = logging.getLogger("metajax")


def load(
    settings: TaskSettings, *, split: str, specs: Sequence[str] | None = None
) -> list[data.TaskData]:
    """The data sets that the settings name, or those of `specs` read the same way.

    What is wrong with equal texts in them is logged.
    """
    drawn = isinstance(settings, DrawSettings) and not getattr(settings, "splits", None)
    tasks = data.load_tasks(
        settings.tasks if specs is None else specs,
        glue_dir=settings.glue_dir,
        split=split,
        text_column=settings.text_column,
        pair_column=settings.pair_column,
        label_column=settings.label_column,
        classes=settings.classes,
        keep_duplicates=isinstance(settings, DrawSettings) and settings.keep_duplicates,
    )
    for task in tasks:
        _report_duplicates(task, drawn=drawn)
    return tasks


def _report_duplicates(task: data.TaskData, *, drawn: bool) -> None:
    """Logs how many texts have several labels and, where episodes are drawn, come again."""
    if not task.label_names:
        return
    found = data.find_duplicates(task.texts, task.pairs, task.labels)
    left_out = drawn and not task.keep_duplicates
    if found.conflicting.any():
        row = int(np.argmax(found.conflicting))
        labels = sorted(set(task.labels[found.first == row]))
        _log.warning(
            "%s: %d texts have several labels, such as %r (%s): %s",
            task.name,
            len(set(found.first[found.conflicting])),
            printable(task.texts[row][:60]),
            printable(" and ".join(repr(task.label_names[label]) for label in labels)),
            "no episode has them" if left_out else "correct all but one of them",
        )
    if drawn and found.repeated:
        _log.warning(
            "%s: %d of %d examples have the text of another: %s",
            task.name,
            found.repeated,
            len(task.labels),
            "an episode has a text once (--keep-duplicates: as often as it is drawn)"
            if left_out
            else "episodes may have it in support and query, which makes accuracies too high",
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


def tokenized(
    tasks: Sequence[data.TaskData], model: Transformer, length: int
) -> list[data.TokenizedTask]:
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

    Says how many of its texts the training file has too.

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
    _warn_of_shared(task, training)
    if task.label_names == names:
        return task
    order = np.array([names.index(name) for name in task.label_names], np.int32)
    return task._replace(labels=order[task.labels], label_names=names)


def _warn_of_shared(task: data.TaskData, training: data.TaskData) -> None:
    both = [*training.texts, *task.texts], [*(training.pairs or ()), *(task.pairs or ())]
    size = len(training.texts)
    first = data.find_duplicates(both[0], both[1] or None, np.zeros(len(both[0]))).first
    shared = int(np.sum(first[size:] < size))
    if shared:
        _log.warning(
            "%s: %d of %d examples are in the training file too: what is measured on them is too "
            "good",
            *(task.name, shared, len(task.texts)),
        )
