import numpy as np
import pytest

from metajax.data import (
    Shape,
    TaskData,
    packed_eval_batches,
    take_examples,
    tokenize,
    tokenize_apart,
)
from metajax.data.batches import token_batch
from metajax.data.packing import pack

TEXTS = ["w1 w2 w3", "w4", "w5 w6"]
OTHERS = ["w7", "w8 w9 w10 w11", "w5 w6"]


@pytest.fixture
def pairs(tokenizer):
    task = TaskData("pairs", TEXTS, OTHERS, np.array([0, 1, 1], np.int32), ("a", "b"))
    return tokenize_apart(task, tokenizer, 5)


def test_each_text_of_a_pair_has_its_own_tokens(pairs, tokenizer):
    first, second = (tokenize(side, None, tokenizer, 5) for side in (TEXTS, OTHERS))
    tokens = pairs.tokens
    assert (tokens.apart, tokens.truncated) == (True, 1)
    for row in range(3):
        own = [side.input_ids[row, : side.lengths[row]] for side in (first, second)]
        length = tokens.lengths[row]
        np.testing.assert_array_equal(tokens.input_ids[row, :length], np.concatenate(own))
        types = np.repeat([0, 1], [len(side) for side in own])
        np.testing.assert_array_equal(tokens.token_type_ids[row, :length], types)
        assert not tokens.token_type_ids[row, length:].any()


def test_a_packed_pair_is_two_texts(pairs, tokenizer):
    alone = tokenize([text for pair in zip(TEXTS, OTHERS) for text in pair], None, tokenizer, 5)
    packed = pack(token_batch(pairs.tokens, np.arange(3), 10), Shape(3, 10))
    for text, length in enumerate(alone.lengths):
        mine = packed["example_ids"].reshape(-1) == text
        ids = packed["input_ids"].reshape(-1)[mine]
        np.testing.assert_array_equal(ids, alone.input_ids[text, :length])
        np.testing.assert_array_equal(packed["position_ids"].reshape(-1)[mine], np.arange(length))
        assert np.flatnonzero(mine)[0] == packed["first_token"][text]
    assert not packed["token_type_ids"].any()
    assert {value.dtype for value in packed.values()} == {np.dtype(np.int32)}


def test_pairs_stay_apart_in_batches(pairs):
    some = take_examples(pairs, np.array([2, 0]))
    ((_, batch),) = packed_eval_batches(some, 3)
    assert batch["first_token"].shape == (6,)  # Two of them belong to the missing pair.
    assert {*batch["example_ids"].reshape(-1).tolist()} - {-1} == {0, 1, 2, 3}
    assert batch["labels"].tolist() == [1, 0, 0]


def test_rows_are_longer_than_the_longest_pair(tokenizer):
    """In a row as long as the longest pair, there would be one pair."""
    texts = ["w1 w2 w3"] * 23
    task = TaskData("pairs", texts, texts, np.zeros(23, np.int32), ("a",))
    pairs = tokenize_apart(task, tokenizer, 5)
    pairs = pairs._replace(tokens=pairs.tokens._replace(lengths=np.array([10] + [8] * 22)))
    shapes = [
        batch["input_ids"].shape
        for room in (None, 10, 16, 512)
        for _, batch in packed_eval_batches(pairs, 23, room=room)
    ]
    assert shapes == [(24, 10), (24, 10), (12, 16), (12, 16)]
