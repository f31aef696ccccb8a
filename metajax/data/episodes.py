"""Episodes: which examples of which data set make up a task, and their batches."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from metajax.data.batches import longest_text, token_batch
from metajax.data.counting import generator
from metajax.data.packing import Shape, Shapes, fit_shapes, pack, plan_shapes
from metajax.data.smlmt import FEWEST
from metajax.data.tasks import TaskData
from metajax.data.text import TokenizedTask
from metajax.errors import InputError

if TYPE_CHECKING:
    from metajax.types import Task

_PLANNED_EPISODES = 128


class EpisodeSpec(NamedTuple):
    """The size of an episode.

    Attributes:
      ways: Classes in an episode; None takes all classes of the data set drawn, be they
        2 or 3 (data-set-as-a-task; Bansal et al. 2020, https://arxiv.org/abs/1911.03863).
      shots: Support examples of each class.
      queries: Query examples of each class.
    """

    ways: int | None
    shots: int
    queries: int


class Episodes(NamedTuple):
    """T episodes as indices; S = C * shots, Q = C * queries, C the most classes of any.

    Examples stand class by class, padding at the end. Where there is padding the index is
    that of the episode's first example.

    Attributes:
      task: int64 [T]; which data set.
      support: int64 [T, S]; rows of that data set.
      query: int64 [T, Q]; rows of that data set, none of them in support.
      support_labels: int32 [T, S]; class within the episode, 0 at padding.
      query_labels: int32 [T, Q].
      support_mask: float32 [T, S]; 0 at padding.
      query_mask: float32 [T, Q].
      class_mask: float32 [T, C]; 0 for classes the episode does not have.
      classes: int64 [T, C]; the data set's class behind each of the episode's, -1 for none.
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


def check_episodes(tasks: Sequence[TaskData | TokenizedTask], spec: EpisodeSpec) -> None:
    """Checks that every episode that can be drawn from the tasks has its examples.

    Raises:
      InputError: For a regression, a task with fewer classes than ways, or a class with
        fewer examples than shots and queries together.
    """
    need = spec.shots + spec.queries
    for task in tasks:
        if not task.label_names:
            raise InputError(f"{task.name}: is a regression; episodes need classes, leave it out")
        classes = len(task.label_names)
        if spec.ways is not None and classes < spec.ways:
            raise InputError(
                f"{task.name}: has {classes} classes, fewer than {spec.ways} ways; "
                "ask for fewer ways or give more classes"
            )
        counts = np.bincount(task.labels, minlength=classes)
        least = int(np.argmin(counts))
        if counts[least] < need:
            raise InputError(
                f"{task.name}: class {task.label_names[least]!r} has {counts[least]} examples, "
                f"fewer than {spec.shots} shots and {spec.queries} queries; "
                + (
                    f"ask for fewer (a word is a class if {FEWEST} passages are its own)"
                    if isinstance(task, TaskData) and task.hides_words
                    else "add examples, leave the class out, or ask for fewer"
                )
            )


def sample_episodes(
    tasks: Sequence[TokenizedTask],
    spec: EpisodeSpec,
    seed: int,
    step: int,
    count: int,
    *,
    first: int = 0,
) -> Episodes:
    """Draws episodes number first to first + count - 1 of a step.

    Each is a function of (seed, step, its number) alone, so that hosts can share a step
    out. Data sets are drawn in proportion to the square root of their number of examples,
    as LEOPARD does; classes uniformly without replacement, in random order also where all
    are taken: what a label means can only be learned from the support set, not by heart
    (Yin et al. 2020, https://arxiv.org/abs/1912.03820).

    Args:
      tasks: The data sets, which `check_episodes` has passed.
      spec: The size of an episode.
      seed: The run's seed.
      step: Which step.
      count: T, how many.
      first: The number of the first one within the step.
    """
    C = max(len(task.label_names) for task in tasks) if spec.ways is None else spec.ways
    bounds = np.cumsum(np.sqrt([len(task.labels) for task in tasks]))
    bounds /= bounds[-1]
    which = np.empty(count, np.int64)
    classes = np.full((count, C), -1)
    rows = np.empty((count, C, spec.shots + spec.queries), np.int64)
    for t in range(count):
        rng = generator(seed, "episode", step, first + t)
        which[t] = np.searchsorted(bounds, rng.random(), side="right")
        by_class = tasks[which[t]].rows_by_class
        drawn = rng.permutation(len(by_class))[:C]
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


def plan_episodes(
    tasks: Sequence[TokenizedTask], spec: EpisodeSpec, seed: int, count: int
) -> tuple[Shapes, ...]:
    """Chooses the shapes of support and query that steps of some episodes are packed to.

    Args:
      tasks: The data sets.
      spec: The size of an episode.
      seed: The run's seed.
      count: T, episodes a step.
    """
    steps = range(max(8, _PLANNED_EPISODES // count))
    return plan_drawn(tasks, [sample_episodes(tasks, spec, seed, step, count) for step in steps])


def plan_drawn(tasks: Sequence[TokenizedTask], drawn: Sequence[Episodes]) -> tuple[Shapes, ...]:
    """Chooses the shapes of support and query that episodes like some are packed to."""
    return plan_shapes([_lengths(tasks, episodes) for episodes in drawn], longest_text(tasks))


def gather(tasks: Sequence[TokenizedTask], episodes: Episodes, plan: Sequence[Shapes]) -> "Task":
    """Assembles the batches of T episodes, packed.

    Args:
      tasks: The data sets the episodes were drawn from.
      episodes: What to assemble.
      plan: From `plan_episodes`; the first shapes that fit are taken. A host that assembles
        its share of a step gives those that `fit_episodes` takes for the whole step, for all
        hosts must run the same shapes.

    Returns:
      Task(support, query), each a dict of input_ids, token_type_ids, position_ids, example_ids
      int32 [T, R, L] and first_token int32 [T, B] (see `metajax.data.packing.pack`), labels
      int32 [T, B], example_mask float32 [T, B] and class_mask float32 [T, C]; B is S or Q.
    """
    from metajax.types import Task  # which imports jax

    support, query = fit_episodes(tasks, episodes, plan)
    e = episodes
    return Task(
        _batch(tasks, e, e.support, e.support_labels, e.support_mask, support),
        _batch(tasks, e, e.query, e.query_labels, e.query_mask, query),
    )


def fit_episodes(
    tasks: Sequence[TokenizedTask], episodes: Episodes, plan: Sequence[Shapes]
) -> Shapes:
    """Returns the shapes of a plan that some episodes are packed to."""
    return fit_shapes(_lengths(tasks, episodes), plan)


def _lengths(tasks: Sequence[TokenizedTask], episodes: Episodes) -> tuple[np.ndarray, np.ndarray]:
    """The lengths [T, S] and [T, Q] of the texts; 0 at padding."""

    def of(rows: np.ndarray, mask: np.ndarray) -> np.ndarray:
        found = [tasks[task].tokens.lengths[row] for task, row in zip(episodes.task, rows)]
        return np.stack(found) * (mask > 0)

    return of(episodes.support, episodes.support_mask), of(episodes.query, episodes.query_mask)


def _batch(
    tasks: Sequence[TokenizedTask],
    episodes: Episodes,
    rows: np.ndarray,
    labels: np.ndarray,
    mask: np.ndarray,
    shape: Shape,
) -> dict[str, np.ndarray]:
    parts = []
    for task, row, present in zip(episodes.task, rows, mask):
        padded = token_batch(tasks[task].tokens, row, shape.length)
        padded["attention_mask"] *= (present > 0)[:, None]
        parts.append(pack(padded, shape))
    batch = {key: np.stack([part[key] for part in parts]) for key in parts[0]}
    return batch | {"labels": labels, "example_mask": mask, "class_mask": episodes.class_mask}
