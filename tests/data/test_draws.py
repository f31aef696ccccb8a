"""Published draws of a support set are joined with their task and split into episodes."""

import numpy as np
import pytest

from metajax.data import TaskData, draws, fixed_episodes, join_draws

TASK = TaskData(
    "task",
    ["t0", "t1", "t2", "t3", "t4", "t5", "t6"],
    None,
    np.array([0, 1, 2, 0, 1, 2, 0], np.int32),
    ("x", "y", "z"),
)
# Class orders that are not their own inverses.
ONE = TaskData("0", ["t1", "n0", "t2"], None, np.array([2, 1, 0], np.int32), ("z", "x", "y"))
TWO = TaskData(
    "1", ["n1", "t3", "n2", "t5"], None, np.array([0, 2, 0, 1], np.int32), ("y", "z", "x")
)


def named(task, rows):
    """Text and label of each row."""
    return [(task.texts[row], task.label_names[task.labels[row]]) for row in rows]


def test_draws_keep_their_labels_whatever_the_order_of_their_classes():
    joined = join_draws(TASK, [ONE, TWO])
    assert joined.task.label_names == TASK.label_names
    assert joined.task.labels.dtype == np.int32
    assert named(joined.task, range(7)) == named(TASK, range(7))
    for draw, support in zip((ONE, TWO), joined.support):
        assert named(joined.task, support) == named(draw, range(len(draw.texts)))
    # Only the draw's examples are not queries.
    assert [query.tolist() for query in joined.query] == [[0, 3, 4, 5, 6], [0, 1, 2, 4, 6]]


def test_pairs_of_draws_come_after_those_of_the_task():
    pairs = [f"p{row}" for row in range(7)]
    draw = ONE._replace(pairs=["p1", "q", "other"])
    joined = join_draws(TASK._replace(pairs=pairs), [draw])
    assert joined.task.pairs == [*pairs, "p1", "q", "other"]
    assert joined.query[0].tolist() == [0, 2, 3, 4, 5, 6]  # Row 2 has another pair than the draw.


def test_draws_become_episodes_of_one_size(monkeypatch):
    monkeypatch.setattr(draws, "_MOST_QUERIES", 3)
    joined = join_draws(TASK, [ONE, TWO])
    episodes, of = fixed_episodes(joined)
    assert of.tolist() == [0, 0, 1, 1]
    for part, size in (("support", 4), ("query", 3)):
        for episode in episodes:
            rows, labels = getattr(episode, part), getattr(episode, f"{part}_labels")
            mask = getattr(episode, f"{part}_mask")
            assert rows.shape == labels.shape == mask.shape == (1, size)
            there = mask > 0
            np.testing.assert_array_equal(labels[there], joined.task.labels[rows[there]])
            assert (rows[~there] == rows[0, 0]).all()
            assert not labels[~there].any()
    held = [(e.support[e.support_mask > 0], e.query[e.query_mask > 0]) for e in episodes]
    for number in (0, 1):
        mine = [parts for parts, draw in zip(held, of) if draw == number]
        for support, _ in mine:
            np.testing.assert_array_equal(support, joined.support[number])
        found = np.concatenate([query for _, query in mine])
        np.testing.assert_array_equal(found, joined.query[number])
    for episode in episodes:
        assert episode.task.tolist() == [0]
        assert episode.class_mask.tolist() == [[1, 1, 1]]
        assert episode.classes.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(("count", "sizes"), [(1024, [1024]), (1025, [1024, 1])])
def test_an_episode_has_1024_queries_at_most(count, sizes):
    labels = np.arange(count + 2, dtype=np.int32) % 2
    task = TaskData("task", ["t"] * len(labels), None, labels, ("x", "y"))
    joined = draws.Draws(task, (np.arange(2),), (np.arange(2, count + 2),))
    episodes, _ = fixed_episodes(joined)
    assert [int(episode.query_mask.sum()) for episode in episodes] == sizes
