"""Hold out tasks, so that a run can be measured on tasks that it does not train on."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from metajax.data.episodes import EpisodeSpec
from metajax.data.seeding import generator
from metajax.data.tasks import TaskData

_FEWEST_SOURCES = 3  # Of fewer, holding one out would leave too little to train on.


class HeldOut(NamedTuple):
    """Data sets to train on, and data sets for validation.

    Attributes:
        training: to train on.
        validation: for validation; empty if nothing can be held out.
        kind: what is held out: "data sets", "classes" or "examples".

    Examples:
        >>> import numpy as np
        >>> from metajax.data import EpisodeSpec, TaskData, hold_out_tasks
        >>> films = TaskData("films", ["dull", "fine"], None, np.array([0, 1]), ("bad", "good"))
        >>> hold_out_tasks([films] * 4, EpisodeSpec(2, 1, 0), seed=0, fraction=0.25).kind
        'data sets'
    """

    training: list[TaskData]
    validation: list[TaskData]
    kind: str


def hold_out_tasks(
    tasks: Sequence[TaskData], spec: EpisodeSpec, seed: int, fraction: float
) -> HeldOut:
    """Hold out a fraction of the data sets, or of the classes or examples of each.

    New data sets are the best measure, then new classes, then new examples. So whole data sets are
    held out if there are at least three; those of hidden words count only if there are no others.
    Otherwise classes are held out of those with enough of them for an episode of both parts, and
    the others are trained on completely. If none has enough, or episodes have all classes of a data
    set, then examples of each class are held out.

    Args:
        tasks: the data sets. `check_episodes` accepts them.
        spec: the size of an episode.
        seed: the run's seed.
        fraction: in 0..0.5. At least as much is held out as an episode needs.

    Examples:
        >>> import numpy as np
        >>> from metajax.data import EpisodeSpec, TaskData, hold_out_tasks
        >>> texts, labels = ["a", "b", "c", "d"], np.arange(4, dtype=np.int32)
        >>> task = TaskData("letters", texts, None, labels, ("A", "B", "C", "D"))
        >>> held_out = hold_out_tasks([task], EpisodeSpec(2, 1, 0), seed=0, fraction=0.25)
        >>> held_out.kind, [len(task.label_names) for task in held_out.validation]
        ('classes', [2])
    """
    labelled = [number for number, task in enumerate(tasks) if not task.hides_words]
    sources = labelled or list(range(len(tasks)))
    if len(sources) >= _FEWEST_SOURCES:
        count = max(1, int(fraction * len(sources)))
        chosen = set(generator(seed, "validation").permutation(sources)[:count].tolist())
        training = [task for number, task in enumerate(tasks) if number not in chosen]
        held_out = [task for number, task in enumerate(tasks) if number in chosen]
        return HeldOut(training, held_out, "data sets")
    for kind, split in (("classes", _split_classes), ("examples", _split_examples)):
        rngs = [generator(seed, "validation", number) for number in range(len(tasks))]
        splits = [split(task, spec, fraction, rng) for task, rng in zip(tasks, rngs)]
        held_out = [each[1] for each in splits if each is not None]
        if held_out:
            kept = [task if each is None else each[0] for task, each in zip(tasks, splits)]
            return HeldOut(kept, held_out, kind)
    return HeldOut(list(tasks), [], "examples")


_Split = tuple[TaskData, TaskData] | None  # To train on, for validation; None if there are too few.


def _split_classes(
    task: TaskData, spec: EpisodeSpec, fraction: float, rng: np.random.Generator
) -> _Split:
    if spec.ways is None:
        return None
    total = len(task.label_names)
    count = max(spec.ways, round(fraction * total))
    if total - count < spec.ways:
        return None
    if not task.keep_duplicates:
        # If the labels of a text come into different parts, neither part can tell that it has both.
        task = task.take(np.flatnonzero(~task.duplicates.conflicting))
    order = rng.permutation(total)
    return (
        task.take_classes(np.sort(order[count:])),
        task.take_classes(np.sort(order[:count])),
    )


def _split_examples(
    task: TaskData, spec: EpisodeSpec, fraction: float, rng: np.random.Generator
) -> _Split:
    """Split the rows that episodes are sampled from.

    No text is in both parts, unless the data set keeps duplicates.
    """
    need = spec.shots + spec.queries
    parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for rows in task.drawn_rows():
        count = max(need, round(fraction * len(rows)))
        if len(rows) - count < need:
            return None
        order = rng.permutation(rows)
        parts[0].append(order[count:])
        parts[1].append(order[:count])
    training, held_out = (task.take(np.sort(np.concatenate(rows))) for rows in parts)
    return training, held_out
