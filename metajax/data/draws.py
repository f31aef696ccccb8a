"""Episodes with given support sets, as papers publish them."""

import collections
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from metajax.data.duplicates import Example, examples
from metajax.data.episodes import Episodes
from metajax.data.tasks import TaskData
from metajax.errors import InputError

_MOST_QUERIES = 1024  # Classified at once; larger query sets become several episodes.


class Draws(NamedTuple):
    """D draws of a task's support set.

    Attributes:
        task: the task's examples, followed by the examples of the draws.
        support: rows of the examples of each draw, int64 [S_d].
        query: rows of the task's examples that are not in the draw, int64 [Q_d] per draw.

    Examples:
        >>> import numpy as np
        >>> from metajax.data import Draws, TaskData
        >>> texts = ["dull", "fine", "great", "dull", "great"]
        >>> task = TaskData("films", texts, None, np.array([0, 1, 1, 0, 1]), ("bad", "good"))
        >>> draws = Draws(task, support=(np.array([3, 4]),), query=(np.array([1]),))
        >>> [draws.task.texts[row] for row in draws.support[0]]
        ['dull', 'great']
    """

    task: TaskData
    support: tuple[np.ndarray, ...]
    query: tuple[np.ndarray, ...]


def join_draws(task: TaskData, draws: Sequence[TaskData]) -> Draws:
    """Join a task and draws of its support set to one data set.

    Args:
        task: the examples to classify. Those that a draw contains are not its queries.
        draws: the support sets. They have the task's classes, in any order.

    Returns:
        The N examples of the task followed by those of the draws, and the rows of each draw.

    Raises:
        InputError: a draw has other classes than the task, another number of texts per example,
            another label for a text, two labels for a text, the examples of another draw, or all
            examples of the task.

    Examples:
        >>> import numpy as np
        >>> from metajax.data import TaskData, join_draws
        >>> classes = ("bad", "good")
        >>> task = TaskData("films", ["dull", "fine", "great"], None, np.array([0, 1, 1]), classes)
        >>> draw = TaskData("draw", ["dull", "great"], None, np.array([0, 1]), classes)
        >>> draws = join_draws(task, [draw])
        >>> draws.support[0].tolist(), draws.query[0].tolist(), len(draws.task.texts)
        ([3, 4], [1], 5)
    """
    texts, labels = list(task.texts), [task.labels]
    pairs = None if task.pairs is None else list(task.pairs)
    own, support, query = _examples(task), [], []
    known = _labels_of(task)
    seen: dict[tuple[tuple[Example, str], ...], str] = {}
    for draw in draws:
        _check_draw(task, draw, known)
        rows = tuple(sorted(_labelled(draw)))
        if rows in seen:
            raise InputError(
                f"{draw.name}: has the same examples as {seen[rows]}; remove one of them"
            )
        seen[rows] = draw.name
        order = np.array([task.label_names.index(name) for name in draw.label_names], np.int32)
        begin = len(texts)
        texts += draw.texts
        if pairs is not None and draw.pairs is not None:
            pairs += draw.pairs
        labels.append(order[draw.labels])
        support.append(np.arange(begin, len(texts)))
        drawn = set(_examples(draw))
        query.append(np.flatnonzero([each not in drawn for each in own]))
        if not len(query[-1]):
            raise InputError(
                f"{draw.name}: has all examples of {task.name}, which leaves none to classify; "
                "remove some"
            )
    joined = task._replace(texts=texts, pairs=pairs, labels=np.concatenate(labels))
    return Draws(joined, tuple(support), tuple(query))


def fixed_episodes(draws: Draws) -> tuple[list[Episodes], np.ndarray]:
    """Split draws into episodes of the same size, with T = 1 each.

    Args:
        draws: D >= 1 draws from `join_draws`.

    Returns:
        The E episodes, and the index of each episode's draw, int64 [E]. S is the size of the
        largest support set. Q is the size of the largest query set, at most 1024: a draw with more
        queries becomes several episodes. Padding examples have mask 0.

    Examples:
        >>> import numpy as np
        >>> from metajax.data import Draws, TaskData, fixed_episodes
        >>> task = TaskData("films", ["dull", "ok", "good"], None, np.array([0, 1, 1]), ("-", "+"))
        >>> support, query = (np.array([0, 1]), np.array([0])), (np.array([2]), np.array([1, 2]))
        >>> episodes, draw = fixed_episodes(Draws(task, support, query))
        >>> [each.query_mask.tolist() for each in episodes], draw.tolist()
        ([[[1.0, 0.0]], [[1.0, 1.0]]], [0, 1])
    """
    C = len(draws.task.label_names)
    S = max(map(len, draws.support))
    Q = min(_MOST_QUERIES, max(map(len, draws.query)))

    def filled(rows: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        mask = np.arange(size) < len(rows)
        index = np.full(size, rows[0])
        index[mask] = rows
        labels = np.where(mask, draws.task.labels[index], 0).astype(np.int32)
        return index[None], labels[None], mask[None].astype(np.float32)

    episodes, of = [], []
    for number, (support, query) in enumerate(zip(draws.support, draws.query)):
        for begin in range(0, len(query), Q):
            s, s_labels, s_mask = filled(support, S)
            q, q_labels, q_mask = filled(query[begin : begin + Q], Q)
            episodes.append(
                Episodes(
                    task=np.zeros(1, np.int64),
                    support=s,
                    query=q,
                    support_labels=s_labels,
                    query_labels=q_labels,
                    support_mask=s_mask,
                    query_mask=q_mask,
                    class_mask=np.ones((1, C), np.float32),
                    classes=np.arange(C)[None],
                )
            )
            of.append(number)
    return episodes, np.array(of)


def _check_draw(task: TaskData, draw: TaskData, known: Mapping[Example, set[str]]) -> None:
    """Check that a draw fits the task; `known` has the task's labels of each example."""
    if (draw.pairs is None) != (task.pairs is None):
        raise InputError(
            f"{draw.name}: has {_texts(draw)} per example but {task.name} has {_texts(task)}; "
            "give both the same columns"
        )
    other = set(task.label_names) ^ set(draw.label_names)
    if other:
        raise InputError(
            f"{draw.name}: has other classes than {task.name}: only one of them has "
            f"{min(other)!r}; give draws with examples of every class, or use --classes"
        )
    for example, labels in _labels_of(draw).items():
        where = f"{draw.name}: {_shortened(example)} has the label"
        if len(labels) > 1:
            raise InputError(f"{where}s {_listed(labels)}; remove one")
        if not labels <= known.get(example, labels):
            raise InputError(
                f"{where} {_listed(labels)}, but in {task.name} {_listed(known[example])}; "
                "fix one of them"
            )


def _examples(task: TaskData) -> list[Example]:
    return examples(task.texts, task.pairs)


def _labelled(task: TaskData) -> list[tuple[Example, str]]:
    return [(each, task.label_names[n]) for each, n in zip(_examples(task), task.labels)]


def _labels_of(task: TaskData) -> dict[Example, set[str]]:
    """Return the labels of each example; a repeated text may have several."""
    labels = collections.defaultdict[Example, set[str]](set)
    for example, label in _labelled(task):
        labels[example].add(label)
    return labels


def _shortened(example: Example) -> str:
    return " with ".join(repr(text[:40]) for text in example if text)


def _listed(labels: set[str]) -> str:
    return " and ".join(map(repr, sorted(labels)))


def _texts(task: TaskData) -> str:
    return "one text" if task.pairs is None else "two texts"
