"""Hold out tasks, so that a run can be measured on tasks that it does not train on."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from metajax.data.episodes import EpisodeSpec
from metajax.data.seeding import generator
from metajax.data.text import TokenizedTask

_FEWEST_SOURCES = 3  # Of fewer, holding one out would leave too little to train on.


class HeldOut(NamedTuple):
    """Data sets to train on, and data sets for validation.

    Attributes:
        training: to train on.
        validation: for validation; empty if nothing can be held out.
        kind: what is held out: "data sets", "classes" or "examples".

    Examples:
        >>> import metajax.data as data, numpy as np
        >>> ids = np.ones((2, 3), np.int32)
        >>> tokens = data.Tokens(ids, np.zeros((2, 3), np.int8), ids.sum(1), truncated=0)
        >>> rows = (np.array([0]), np.array([1]))
        >>> films = data.TokenizedTask("films", tokens, np.array([0, 1]), ("bad", "good"), rows)
        >>> data.hold_out_tasks([films] * 4, data.EpisodeSpec(2, 1, 0), seed=0, fraction=0.25).kind
        'data sets'
    """

    training: list[TokenizedTask]
    validation: list[TokenizedTask]
    kind: str


def hold_out_tasks(
    tasks: Sequence[TokenizedTask], spec: EpisodeSpec, seed: int, fraction: float
) -> HeldOut:
    """Hold out a fraction of the data sets, or of the classes or examples of each.

    New data sets are the best measure, then new classes, then new examples. So whole data sets are
    held out if there are at least three with enough classes for an episode; those of hidden words
    count only if there are no others. Otherwise classes are held out of those with enough of them
    for an episode of both parts, and the others are trained on completely. If none has enough, or
    episodes have all classes of a data set, then examples of each class are held out.

    Only examples that episodes are sampled from count. So no text of a data set is in both parts,
    unless the data set keeps duplicates.

    Args:
        tasks: the data sets. `check_episodes` accepts them.
        spec: the size of an episode.
        seed: the run's seed.
        fraction: in 0..0.5. At least as much is held out as an episode needs.

    Examples:
        >>> import metajax.data as data, numpy as np
        >>> ids, labels = np.ones((4, 3), np.int32), np.arange(4)
        >>> tokens = data.Tokens(ids, np.zeros((4, 3), np.int8), ids.sum(1), truncated=0)
        >>> rows = tuple(labels[:, None])  # One of each class.
        >>> task = data.TokenizedTask("letters", tokens, labels, ("A", "B", "C", "D"), rows)
        >>> held_out = data.hold_out_tasks([task], data.EpisodeSpec(2, 1, 0), 0, fraction=0.25)
        >>> held_out.kind, [len(task.label_names) for task in held_out.validation]
        ('classes', [2])
    """
    large = [n for n, task in enumerate(tasks) if len(task.label_names) >= (spec.ways or 0)]
    sources = [number for number in large if not tasks[number].hides_words] or large
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


# To train on, for validation; None if there are too few.
_Split = tuple[TokenizedTask, TokenizedTask] | None


def _split_classes(
    task: TokenizedTask, spec: EpisodeSpec, fraction: float, rng: np.random.Generator
) -> _Split:
    if spec.ways is None:
        return None
    total = len(task.label_names)
    count = max(spec.ways, round(fraction * total))
    if total - count < spec.ways:
        return None
    order = rng.permutation(total)

    def part(classes: np.ndarray) -> TokenizedTask:
        rows, names = task.rows_by_class, task.label_names
        return _part(task, [rows[n] for n in classes], [names[n] for n in classes])

    return part(np.sort(order[count:])), part(np.sort(order[:count]))


def _split_examples(
    task: TokenizedTask, spec: EpisodeSpec, fraction: float, rng: np.random.Generator
) -> _Split:
    need = spec.shots + spec.queries
    parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for rows in task.rows_by_class:
        count = max(need, round(fraction * len(rows)))
        if len(rows) - count < need:
            return None
        order = rng.permutation(rows)
        parts[0].append(np.sort(order[count:]))
        parts[1].append(np.sort(order[:count]))
    names = task.label_names
    return _part(task, parts[0], names), _part(task, parts[1], names)


def _part(
    task: TokenizedTask, rows: Sequence[np.ndarray], label_names: Sequence[str]
) -> TokenizedTask:
    """Return a part of a task, with the same tokens: its episodes use the rows of each class."""
    labels = np.full(len(task.labels), -1, np.int32)
    for label, own in enumerate(rows):
        labels[own] = label
    return task._replace(labels=labels, label_names=tuple(label_names), rows_by_class=tuple(rows))
