"""Sample episodes: choose the examples of a data set that make up a task."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from metajax.data.seeding import generator
from metajax.data.smlmt import FEWEST
from metajax.data.tasks import TaskData
from metajax.data.text import TokenizedTask
from metajax.errors import InputError


class EpisodeSpec(NamedTuple):
    """The size of an episode.

    Attributes:
        ways: classes per episode, or all of a data set that has fewer. None means all classes of
            the data set (Bansal et al. 2020, https://arxiv.org/abs/1911.03863).
        shots: support examples per class.
        queries: query examples per class.

    Examples:
        >>> import metajax.data as data
        >>> spec = data.EpisodeSpec(ways=3, shots=5, queries=10)
        >>> spec.ways * spec.shots, spec.ways * spec.queries  # Support, query.
        (15, 30)
    """

    ways: int | None
    shots: int
    queries: int


class Episodes(NamedTuple):
    """T episodes as indices. S = C * shots, Q = C * queries, C is the largest number of classes.

    Examples are grouped by class, with padding at the end. The index of padding is that of the
    episode's first example.

    Attributes:
        task: int64 [T]; index of the data set.
        support: int64 [T, S]; rows of this data set.
        query: int64 [T, Q]; rows of this data set. None of them is in the support set, and none has
            a text of the support set unless the data set keeps duplicates.
        support_labels: int32 [T, S]; class within the episode, 0 at padding.
        query_labels: int32 [T, Q].
        support_mask: float32 [T, S]; 0 at padding.
        query_mask: float32 [T, Q].
        class_mask: float32 [T, C]; 0 for classes that the episode does not have.
        classes: int64 [T, C]; the data set's class for each class of the episode, -1 for none.

    Examples:
        >>> import metajax.data as data, numpy as np
        >>> task, one, labels = np.zeros(1, int), np.ones((1, 2), np.float32), np.array([[0, 1]])
        >>> support, query, classes = np.array([[7, 9]]), np.array([[8, 3]]), np.array([[4, 2]])
        >>> episode = data.Episodes(task, support, query, labels, labels, one, one, one, classes)
        >>> episode.classes[0, episode.support_labels[0]].tolist()  # Of rows 7 and 9.
        [4, 2]
    """

    task: np.ndarray
    support: np.ndarray
    query: np.ndarray
    support_labels: np.ndarray
    query_labels: np.ndarray
    support_mask: np.ndarray
    query_mask: np.ndarray
    class_mask: np.ndarray
    classes: np.ndarray


def check_episodes(
    tasks: Sequence[TaskData | TokenizedTask], spec: EpisodeSpec, *, mixed: bool = False
) -> None:
    """Check that each class of the tasks has enough examples for an episode.

    Args:
        tasks: the data sets.
        spec: the size of an episode.
        mixed: accept data sets with fewer classes than ways, if another has enough. All classes of
            such a data set are in each of its episodes.

    Raises:
        InputError: a task is a regression, has fewer classes than ways (with `mixed`, each has),
            or has a class with fewer examples than shots plus queries.

    Examples:
        >>> import metajax.data as data, numpy as np
        >>> task = data.TaskData("films", ["dull", "fine"], None, np.array([0, 1]), ("bad", "good"))
        >>> data.check_episodes([task], data.EpisodeSpec(ways=2, shots=1, queries=0))
        >>> data.check_episodes([task], data.EpisodeSpec(3, 1, 0))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        metajax.errors.InputError: films: has 2 classes, fewer than 3 ways; ask for fewer ways ...
    """
    need = spec.shots + spec.queries
    fewer_allowed = mixed and any(len(task.label_names) >= (spec.ways or 0) for task in tasks)
    for task in tasks:
        if not task.label_names:
            raise InputError(f"{task.name}: is a regression, but episodes need classes; remove it")
        classes = len(task.label_names)
        if spec.ways is not None and classes < spec.ways and not fewer_allowed:
            raise InputError(
                f"{task.name}: has {classes} classes, fewer than {spec.ways} ways; "
                "ask for fewer ways or give more classes"
            )
        drawn = task.drawn_rows() if isinstance(task, TaskData) else task.rows_by_class
        counts = [len(rows) for rows in drawn]
        least = int(np.argmin(counts))
        if counts[least] < need:
            every = int(np.sum(task.labels == least))
            own = "" if every == counts[least] else f"{counts[least]} usable texts in "
            raise InputError(
                f"{task.name}: class {task.label_names[least]!r} has {own}{every} examples, "
                f"fewer than {spec.shots} shots and {spec.queries} queries; "
                + (
                    f"ask for fewer (a word is a class if it is hidden in {FEWEST} passages)"
                    if task.hides_words
                    else "add examples, remove the class, or ask for fewer"
                )
            )


def _bounds(tasks: Sequence[TokenizedTask]) -> np.ndarray:
    """Return the probability that one of the first 1, 2, ... tasks is drawn."""
    weights = [
        math.sqrt(task.num_examples) if task.weight is None else task.weight for task in tasks
    ]
    bounds = np.cumsum(weights, dtype=float)
    return bounds / bounds[-1]


def _draw_source(bounds: np.ndarray, rng: np.random.Generator) -> int:
    return int(np.searchsorted(bounds, rng.random(), side="right"))


def draw_sources(tasks: Sequence[TokenizedTask], seed: int, step: int, count: int) -> np.ndarray:
    """Return the data set of each episode that `sample_episodes` samples, int64 [T].

    Each is drawn on its own, with a probability proportional to the weight of the data set, or to
    the square root of its number of examples as in LEOPARD.

    Args:
        tasks: the data sets.
        seed: the run's seed.
        step: number of the step.
        count: T, number of episodes.

    Examples:
        >>> import metajax.data as data, numpy as np
        >>> ids, rows = np.ones((6, 8), np.int32), (np.arange(3), np.arange(3, 6))
        >>> tokens = data.Tokens(ids, np.zeros((6, 8), np.int8), ids.sum(1), truncated=0)
        >>> task = data.TokenizedTask("films", tokens, np.repeat([0, 1], 3), ("bad", "good"), rows)
        >>> data.draw_sources([task, task], seed=0, step=0, count=5).shape
        (5,)
    """
    bounds = _bounds(tasks)
    rngs = (generator(seed, "episode", step, number) for number in range(count))
    return np.array([_draw_source(bounds, rng) for rng in rngs], np.int64)


def sample_episodes(
    tasks: Sequence[TokenizedTask],
    spec: EpisodeSpec,
    seed: int,
    step: int,
    count: int,
    *,
    first: int = 0,
) -> Episodes:
    """Sample the episodes `first` to `first + count - 1` of a step.

    Each episode is a function of (seed, step, its number), so that several hosts can share a step.
    Its data set is that of `draw_sources`. Classes are sampled uniformly without replacement, in
    random order even if all are used. Therefore the meaning of a label can only be learned from the
    support set, not memorized (Yin et al. 2020, https://arxiv.org/abs/1912.03820). With `similar`,
    a class of the data set is drawn first, and the classes of the episode are sampled from those
    similar to it; it need not be one of them.

    Args:
        tasks: the data sets. `check_episodes` accepts them.
        spec: the size of an episode.
        seed: the run's seed.
        step: number of the step.
        count: T, number of episodes.
        first: number of the first episode within the step.

    Raises:
        ValueError: a sampled class has fewer examples than shots plus queries.

    Examples:
        >>> import metajax.data as data, numpy as np
        >>> ids, rows = np.ones((6, 8), np.int32), (np.arange(3), np.arange(3, 6))
        >>> tokens = data.Tokens(ids, np.zeros((6, 8), np.int8), ids.sum(1), truncated=0)
        >>> task = data.TokenizedTask("films", tokens, np.repeat([0, 1], 3), ("bad", "good"), rows)
        >>> episodes = data.sample_episodes([task], data.EpisodeSpec(2, 1, 2), 0, 0, count=5)
        >>> episodes.support.shape, episodes.query.shape
        ((5, 2), (5, 4))
    """
    C = max(len(task.label_names) for task in tasks) if spec.ways is None else spec.ways
    bounds, which = _bounds(tasks), np.empty(count, np.int64)
    classes = np.full((count, C), -1)
    rows = np.empty((count, C, spec.shots + spec.queries), np.int64)
    for t in range(count):
        rng = generator(seed, "episode", step, first + t)
        which[t] = _draw_source(bounds, rng)
        by_class = tasks[which[t]].rows_by_class
        similar = tasks[which[t]].similar
        pool = np.arange(len(by_class)) if similar is None else similar[rng.integers(len(by_class))]
        drawn = rng.permutation(pool)[:C]
        classes[t, : len(drawn)] = drawn
        for way, label in enumerate(drawn):
            rows[t, way] = rng.choice(by_class[label], rows.shape[2], replace=False)
        rows[t, len(drawn) :] = rows[t, 0, 0]

    present = classes >= 0
    labels = np.where(present, np.arange(C), 0).astype(np.int32)

    def spread(per_class: np.ndarray, examples: int) -> np.ndarray:
        return np.repeat(per_class, examples, axis=1)

    return Episodes(
        task=which,
        support=rows[:, :, : spec.shots].reshape(count, -1),
        query=rows[:, :, spec.shots :].reshape(count, -1),
        support_labels=spread(labels, spec.shots),
        query_labels=spread(labels, spec.queries),
        support_mask=spread(present, spec.shots).astype(np.float32),
        query_mask=spread(present, spec.queries).astype(np.float32),
        class_mask=present.astype(np.float32),
        classes=classes,
    )
