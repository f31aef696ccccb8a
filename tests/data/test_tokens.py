"""Tokens that are joined give the batches of padded tokens, bit for bit."""

import tracemalloc

import jax
import numpy as np
import pytest

from metajax import data
from metajax.data.batches import longest_text, token_batch
from metajax.data.tokens import Tokens, join, pad

PAD = 9


@pytest.fixture
def joined():
    """Return 40 texts of 1 to 12 tokens."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 13, 40).astype(np.int32)
    ids = rng.integers(10, 100, lengths.sum()).astype(np.int32)
    return join(ids, rng.integers(0, 2, ids.size).astype(np.int8), lengths, PAD, truncated=2)


def padded_by_hand(tokens):
    """Return the same tokens as arrays, one text after the other."""
    arrays = np.full((40, 12), PAD, np.int32), np.zeros((40, 12), np.int8)
    for rows, padded in zip(tokens[:2], arrays, strict=True):
        begin = 0
        for row, length in enumerate(tokens.lengths):
            padded[row, :length] = rows.values[begin : begin + length]
            begin += length
    return Tokens(*arrays, tokens.lengths, tokens.truncated)


def assert_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.asarray(a).dtype == np.asarray(b).dtype


def test_joined_rows_are_padded_when_they_are_read(joined):
    expected = padded_by_hand(joined)
    assert_equal(pad(joined), expected)
    rows = np.array([7, 39, 3, 7, 0])
    for a, b in zip(joined[:2], expected[:2], strict=True):
        assert a.shape == b.shape
        assert_equal(a[rows], b[rows])
    for length in (5, 12, 20):
        assert_equal(token_batch(joined, rows, length), token_batch(expected, rows, length))


SELECTIONS = {
    "one": 3,
    "last": -1,
    "number": np.int64(7),
    "negative": np.array([-1, 0, -40]),
    "mask": np.arange(40) % 3 == 0,
    "slice": slice(5, 30, 2),
    "backwards": slice(None, None, -1),
    "list": [4, 4, 39],
    "none": np.zeros(0, np.int64),
    "none of a list": [],
    "pairs": np.array([[1, 2], [3, 0]]),
}


@pytest.mark.parametrize("rows", SELECTIONS.values(), ids=SELECTIONS)
def test_rows_are_chosen_as_from_an_array(joined, rows):
    expected = padded_by_hand(joined)
    for a, b in zip(joined[:2], expected[:2], strict=True):
        assert_equal(a[rows], b[rows])


def test_joined_rows_have_a_length_and_an_end(joined):
    rows, expected = joined.input_ids, padded_by_hand(joined).input_ids
    assert len(rows) == 40
    assert_equal(list(rows), list(expected))
    for beyond in (40, -41, np.array([0, 40])):
        with pytest.raises(IndexError):
            rows[beyond]


@pytest.mark.parametrize("value", [4, 5, 6, PAD])
def test_rows_that_contain_a_number(value):
    """Also beside rows of no tokens, and not where it is only padding."""
    ids, lengths = np.array([5, 5, 6, 5, 6, 4], np.int32), np.array([0, 2, 0, 0, 3, 0, 1, 0])
    rows = join(ids, ids.astype(np.int8), lengths.astype(np.int32), PAD, 0).input_ids
    expected = [value in row[:length] for row, length in zip(np.asarray(rows), lengths)]
    assert rows.contain(value).tolist() == expected


def test_a_long_text_costs_no_memory_in_short_ones():
    """Beside the result, the array of its places is the largest one."""
    lengths = np.full(20_000, 8, np.int32)
    lengths[5] = 512
    ids = np.ones(lengths.sum(), np.int32)
    rows = join(ids, ids.astype(np.int8), lengths, PAD, 0).input_ids
    tracemalloc.start()
    result = rows[np.arange(20_000)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.7 * result.nbytes


def test_texts_without_tokens():
    none = join(np.zeros(0, np.int32), np.zeros(0, np.int8), np.zeros(0, np.int32), PAD, 0)
    assert pad(none).input_ids.shape == none.input_ids.shape == (0, 1)
    lengths = np.array([0, 2, 0], np.int32)
    some = join(np.array([5, 6], np.int32), np.zeros(2, np.int8), lengths, PAD, 0).input_ids
    assert some[np.array([2, 0, 1])].tolist() == [[PAD, PAD], [PAD, PAD], [5, 6]]
    assert some[0].tolist() == some[-1].tolist() == [PAD, PAD]
    assert np.asarray(some).tolist() == some[:].tolist() == [[PAD, PAD], [5, 6], [PAD, PAD]]


def test_all_batches_are_equal(joined):
    labels = np.arange(40, dtype=np.int32) % 4
    rows = tuple(np.flatnonzero(labels == label) for label in range(4))
    task = data.TokenizedTask("words", joined, labels, ("a", "b", "c", "d"), rows)
    same = task._replace(tokens=padded_by_hand(joined))
    assert longest_text([task]) == longest_text([same]) == 12

    def batches(task):
        spec = data.EpisodeSpec(3, 2, 4)
        plan = data.plan_episodes([task], spec, 0, 3, 100)
        episodes = data.sample_episodes([task], spec, 0, 1, 3)
        few = data.take_examples(task, np.array([30, 2, 39]))
        return [
            plan,
            data.gather([task], episodes, plan),
            data.supervised_batch([task, task], 0, 2, 16),
            [few.tokens.input_ids, few.tokens.token_type_ids, few.tokens.lengths],
            *data.supervised_eval_batches(task, 16),
            list(data.packed_eval_batches(task, 16)),
        ]

    assert_equal(batches(task), batches(same))
