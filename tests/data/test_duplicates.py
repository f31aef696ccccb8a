"""Repeated texts are counted, and no episode has one in both support and query set."""

import numpy as np
import pytest

from metajax.data import (
    EpisodeSpec,
    TaskData,
    check_episodes,
    find_duplicates,
    sample_episodes,
    tokenize_task,
)
from metajax.errors import InputError

# Row 4 is row 0 again, rows 5 and 6 are one text with two labels.
TEXTS = ["w1 w2", "w1  w3", "w4", "w5", "w1\u00a0w2 ", "w6", "w6", "w7", "w8", "w9"]
LABELS = [0, 1, 0, 1, 0, 0, 1, 1, 0, 1]


def task_of(texts=TEXTS, labels=LABELS, pairs=None, **settings):
    return TaskData("d.csv", texts, pairs, np.array(labels, np.int32), ("p", "q"), **settings)


def test_which_examples_have_the_text_of_another():
    found = find_duplicates(TEXTS, None, LABELS)
    assert found.first.tolist() == [0, 1, 2, 3, 0, 5, 5, 7, 8, 9]
    assert np.flatnonzero(found.conflicting).tolist() == [5, 6]
    assert found.repeated == 2
    assert np.flatnonzero(found.once).tolist() == [0, 1, 2, 3, 7, 8, 9]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("a b", " a\t\tb\u2003", True),
        ("caf\u00e9", "cafe\u0301", True),
        ("a b", "a\u200b b\ufeff", True),
        ("a", "A", False),
        ("ab", "a b", False),
        ("1", "1.0", False),
    ],
)
def test_what_is_one_text(one, other, same):
    assert (find_duplicates([one, other], None, [0, 0]).repeated == 1) is same


def test_pairs_are_the_same_if_both_texts_are():
    found = find_duplicates(["a", "a", "b", "a "], ["b", "c", "a", "b"], [0, 0, 0, 1])
    assert found.first.tolist() == [0, 1, 2, 0]
    assert found.conflicting.tolist() == [True, False, False, True]


def test_the_texts_of_a_pair_are_told_apart():
    """What is joined may be the same, also with a number before it."""
    texts, pairs = ["ab", "a", "2 a", "ab"], ["c", "bc", "b", "c"]
    found = find_duplicates(texts, pairs, [0, 0, 0, 0])
    assert found.first.tolist() == [0, 1, 2, 0]
    assert find_duplicates([], None, []).first.shape == (0,)


def test_three_labels_with_the_first_one_last():
    found = find_duplicates(["a", "a", "a", "b"], None, [0, 1, 0, 0])
    assert found.conflicting.tolist() == [True, True, True, False]
    assert found.repeated == 2
    assert found.once.tolist() == [False, False, False, True]


def test_episodes_are_drawn_from_one_example_of_each_text(tokenizer):
    rows = tokenize_task(task_of(), tokenizer, 8).rows_by_class
    assert [each.tolist() for each in rows] == [[0, 2, 8], [1, 3, 7, 9]]
    rows = tokenize_task(task_of(keep_duplicates=True), tokenizer, 8).rows_by_class
    assert [each.tolist() for each in rows] == [[0, 2, 4, 5, 8], [1, 3, 6, 7, 9]]


@pytest.mark.parametrize("keep", [False, True])
def test_a_text_is_on_both_sides_only_where_duplicates_are_kept(tokenizer, keep):
    texts = [f"w{n % 10}" for n in range(30)] + [f"w{10 + n % 10}" for n in range(30)]
    task = task_of(texts, [0] * 30 + [1] * 30, keep_duplicates=keep)
    episodes = sample_episodes([tokenize_task(task, tokenizer, 8)], EpisodeSpec(2, 5, 5), 0, 0, 50)
    both = [
        {texts[row] for row in support} & {texts[row] for row in query}
        for support, query in zip(episodes.support, episodes.query)
    ]
    assert all(both) if keep else not any(both)


def test_without_equal_texts_nothing_changes(tokenizer):
    texts, labels = [f"w{n} w{n % 7}" for n in range(40)], [n % 2 for n in range(40)]
    drawn = [
        sample_episodes(
            [tokenize_task(task_of(texts, labels, keep_duplicates=keep), tokenizer, 8)],
            EpisodeSpec(2, 2, 3),
            *(3, 2, 20),
        )
        for keep in (False, True)
    ]
    for one, other in zip(*drawn):
        np.testing.assert_array_equal(one, other)


def test_a_class_needs_as_many_texts_as_an_episode_has_of_it(tokenizer):
    check_episodes([task_of()], EpisodeSpec(2, 1, 2))
    message = "^d.csv: class 'p' has 3 usable texts in 5 examples, fewer than 1 shots and 3 q"
    for task in (task_of(), tokenize_task(task_of(), tokenizer, 8)):
        with pytest.raises(InputError, match=message):
            check_episodes([task], EpisodeSpec(2, 1, 3))
    check_episodes([task_of(keep_duplicates=True)], EpisodeSpec(2, 1, 4))


def test_a_regression_draws_nothing():
    task = TaskData("s", ["t", "t"], None, np.array([0.5, 1.0], np.float32), ())
    assert task.drawn_rows() == ()


def test_repeated_texts_are_searched_once_and_again_after_a_change(monkeypatch):
    task, searched = task_of(), []

    def search(*columns):
        searched.append(columns)
        return find_duplicates(*columns)

    monkeypatch.setattr("metajax.data.tasks.find_duplicates", search)
    assert [task.drawn_rows() for _ in range(2)]
    assert len(searched) == 1
    assert task.duplicates.repeated
    other = task._replace(texts=[f"w{row}" for row in range(len(task.texts))])
    assert not other.duplicates.repeated
    assert len(searched) == 2
