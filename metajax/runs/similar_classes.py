"""Find the classes that the original weights find similar, for episodes that are not too easy."""

import logging
from collections.abc import Sequence

import numpy as np

from metajax import data
from metajax.errors import InputError
from metajax.models import Transformer
from metajax.runs.features import features_of
from metajax.training import distributed
from metajax.types import Params

_log = logging.getLogger("metajax")
_TEXTS = 15  # Of each class.


def with_similar_classes(
    model: Transformer, params: Params, tasks: Sequence[data.TokenizedTask], number: int
) -> list[data.TokenizedTask]:
    """Return the tasks with the classes that are the most similar to each class.

    The similarity is the cosine of the mean features of two classes, from the first texts of each.
    Random classes are mostly easy to tell apart. Training on them can cost accuracy on classes that
    are not (experiments/drift.py).

    Args:
        model: the network.
        params: its parameters.
        tasks: the data sets. Those that hide words, or have no more classes than `number`, are
            returned as they are.
        number: M, of classes; a class is the most similar to itself. 0 changes nothing.

    Raises:
        InputError: no data set has more classes than `number`.
    """
    if not number:
        return list(tasks)
    large = [not task.hides_words and len(task.label_names) > number for task in tasks]
    if not any(large):
        raise InputError(
            f"--similar-classes {number}: no data set has more classes to train on (hidden words "
            "do not count); give fewer, or 0 for all"
        )
    unchanged = ", ".join(task.name for task, chosen in zip(tasks, large) if not chosen)
    if unchanged:
        _log.warning(
            "--similar-classes %d: does not apply to %s, with as many classes to train on or fewer",
            number,
            unchanged,
        )
    _log.info("computing features of the data sets, to find the similar classes of each class")
    return [
        task._replace(similar=_similar(model, params, task)[:, :number]) if chosen else task
        for task, chosen in zip(tasks, large)
    ]


def _similar(model: Transformer, params: Params, task: data.TokenizedTask) -> np.ndarray:
    """Return the classes by falling similarity to each class, int64 [C, C]."""
    by_class = [rows[:_TEXTS] for rows in task.rows_by_class]
    texts = data.take_examples(task, np.concatenate(by_class))
    features = features_of(model, params, texts)
    bounds = np.cumsum([len(rows) for rows in by_class])[:-1]
    means = np.stack([part.mean(0) for part in np.split(features, bounds)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    cosines = means @ means.T
    np.fill_diagonal(cosines, np.inf)  # A class is the first, also if another has the same texts.
    # All processes need the same episodes, also where rounding differs.
    return distributed.from_first(np.argsort(-cosines, axis=1, kind="stable"))
