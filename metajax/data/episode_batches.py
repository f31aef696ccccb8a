"""Assemble episodes into batches, and choose the shapes that they are packed to."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from metajax.data.batches import longest_text, token_batch
from metajax.data.episodes import Episodes, EpisodeSpec, sample_episodes
from metajax.data.packing import Shape, Shapes, fit_shapes, pack, plan_shapes
from metajax.data.text import TokenizedTask

if TYPE_CHECKING:
    from metajax.types import Task

_PLANNED_EPISODES = 128


def plan_episodes(
    tasks: Sequence[TokenizedTask], spec: EpisodeSpec, seed: int, count: int, steps: int
) -> tuple[Shapes, ...]:
    """Choose the shapes to which the support and query sets of a run are packed.

    Args:
        tasks: the data sets.
        spec: the size of an episode.
        seed: the run's seed.
        count: T, episodes per step.
        steps: steps of the run. A further shape has to save more time than its compilation takes.

    Returns:
        At most three pairs of shapes, the cheapest first. The last one fits every step.

    Examples:
        >>> import metajax.data as data, numpy as np
        >>> ids, rows = np.ones((6, 8), np.int32), (np.arange(3), np.arange(3, 6))
        >>> tokens = data.Tokens(ids, np.zeros((6, 8), np.int8), ids.sum(1), truncated=0)
        >>> task = data.TokenizedTask("films", tokens, np.repeat([0, 1], 3), ("bad", "good"), rows)
        >>> data.plan_episodes([task], data.EpisodeSpec(2, 1, 2), seed=0, count=5, steps=100)
        ((Shape(rows=2, length=8), Shape(rows=4, length=8)),)
    """
    planned = range(max(8, _PLANNED_EPISODES // count))
    drawn = [sample_episodes(tasks, spec, seed, step, count) for step in planned]
    return plan_drawn(tasks, drawn, steps)


def plan_drawn(
    tasks: Sequence[TokenizedTask], drawn: Sequence[Episodes], steps: int
) -> tuple[Shapes, ...]:
    """Choose the shapes for steps that are similar to some given steps.

    Args:
        tasks: the data sets.
        drawn: episodes of each of the given steps.
        steps: steps of the run.

    Returns:
        Shapes as `plan_episodes` returns them.

    Examples:
        >>> import metajax.data as data, numpy as np
        >>> ids, rows = np.ones((6, 8), np.int32), (np.arange(3), np.arange(3, 6))
        >>> tokens = data.Tokens(ids, np.zeros((6, 8), np.int8), ids.sum(1), truncated=0)
        >>> task = data.TokenizedTask("films", tokens, np.repeat([0, 1], 3), ("bad", "good"), rows)
        >>> episodes = data.sample_episodes([task], data.EpisodeSpec(2, 1, 1), 0, 0, count=5)
        >>> data.plan_drawn([task], [episodes], steps=1)
        ((Shape(rows=2, length=8), Shape(rows=2, length=8)),)
    """
    lengths = [_lengths(tasks, episodes) for episodes in drawn]
    return plan_shapes(lengths, longest_text(tasks), steps)


def gather(tasks: Sequence[TokenizedTask], episodes: Episodes, plan: Sequence[Shapes]) -> "Task":
    """Assemble the packed batches of T episodes.

    Args:
        tasks: the data sets the episodes were drawn from.
        episodes: the episodes to assemble.
        plan: shapes from `plan_episodes`. The first shapes that fit are used. A host that assembles
            only its share of a step passes the shapes that `fit_episodes` returns for the whole
            step, because all hosts must use the same shapes.

    Returns:
        Task(support, query), each a dict of input_ids, token_type_ids, position_ids, example_ids
        int32 [T, R, L] and first_token int32 [T, B] (see `metajax.data.packing.pack`), labels int32
        [T, B], example_mask float32 [T, B] and class_mask float32 [T, C]; B is S or Q.

    Examples:
        >>> import metajax.data as data, numpy as np
        >>> ids, rows = np.ones((6, 8), np.int32), (np.arange(3), np.arange(3, 6))
        >>> tokens = data.Tokens(ids, np.zeros((6, 8), np.int8), ids.sum(1), truncated=0)
        >>> task = data.TokenizedTask("films", tokens, np.repeat([0, 1], 3), ("bad", "good"), rows)
        >>> episodes = data.sample_episodes([task], data.EpisodeSpec(2, 1, 2), 0, 0, count=5)
        >>> batch = data.gather([task], episodes, [(data.Shape(2, 8), data.Shape(4, 8))])
        >>> batch.query["input_ids"].shape, batch.query["labels"].shape
        ((5, 4, 8), (5, 4))
    """
    from metajax.types import Task  # imports jax

    support, query = fit_episodes(tasks, episodes, plan)
    e = episodes
    return Task(
        _batch(tasks, e, e.support, e.support_labels, e.support_mask, support),
        _batch(tasks, e, e.query, e.query_labels, e.query_mask, query),
    )


def fit_episodes(
    tasks: Sequence[TokenizedTask], episodes: Episodes, plan: Sequence[Shapes]
) -> Shapes:
    """Return the first shapes of a plan that T episodes fit, or the last ones.

    Args:
        tasks: the data sets the episodes were drawn from.
        episodes: all episodes of a step.
        plan: from `plan_episodes`.

    Examples:
        >>> import metajax.data as data, numpy as np
        >>> ids, rows = np.ones((6, 8), np.int32), (np.arange(3), np.arange(3, 6))
        >>> tokens = data.Tokens(ids, np.zeros((6, 8), np.int8), ids.sum(1), truncated=0)
        >>> task = data.TokenizedTask("films", tokens, np.repeat([0, 1], 3), ("bad", "good"), rows)
        >>> episodes = data.sample_episodes([task], data.EpisodeSpec(2, 1, 1), 0, 0, count=5)
        >>> data.fit_episodes([task], episodes, [(data.Shape(1, 8),) * 2, (data.Shape(1, 16),) * 2])
        (Shape(rows=1, length=16), Shape(rows=1, length=16))
    """
    return fit_shapes(_lengths(tasks, episodes), plan)


def _lengths(tasks: Sequence[TokenizedTask], episodes: Episodes) -> tuple[np.ndarray, np.ndarray]:
    """Return the lengths [T, S] and [T, Q] of the texts; 0 at padding."""

    def of(rows: np.ndarray, mask: np.ndarray) -> np.ndarray:
        lengths = [tasks[task].tokens.lengths[row] for task, row in zip(episodes.task, rows)]
        return np.stack(lengths) * (mask > 0)

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
