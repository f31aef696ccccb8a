import subprocess
import sys

import numpy as np
import pytest

from metajax.data import (
    Shape,
    packed_eval_batches,
    packed_parts,
    plan_batches,
    supervised_batch,
    supervised_eval_batches,
)


@pytest.fixture(scope="module")
def tasks(make_task):
    """Two data sets of different lengths, with random token types."""
    made = [make_task("a", [5, 6], longest=4), make_task("b", [3, 3, 4], longest=20)]
    random = np.random.default_rng(0)
    return [
        task._replace(
            tokens=task.tokens._replace(
                token_type_ids=random.integers(0, 2, task.tokens.input_ids.shape).astype(np.int8)
            )
        )
        for task in made
    ]


def example(task, row):
    """The label, tokens and token types of an example, without padding."""
    tokens, length = task.tokens, task.tokens.lengths[row]
    parts = tokens.input_ids[row, :length], tokens.token_type_ids[row, :length]
    return task.labels[row].item(), *(tuple(part.tolist()) for part in parts)


def example_of(batch, row):
    """The same for a row of a batch."""
    inside = batch["attention_mask"][row] > 0
    parts = batch["input_ids"][row][inside], batch["token_type_ids"][row][inside]
    return batch["labels"][row].item(), *(tuple(part.tolist()) for part in parts)


def test_supervised_batches_take_every_example_once_an_epoch(tasks):
    total, size = 21, 4
    seen = []
    for step in range(total):  # four epochs
        batch = supervised_batch(tasks, 0, step, size)
        seen += [(int(batch["task"][row]), *example_of(batch, row)) for row in range(size)]
    per_epoch = [sorted(seen[i : i + total]) for i in range(0, 4 * total, total)]
    expected = sorted(
        (t, *example(task, row)) for t, task in enumerate(tasks) for row in range(len(task.labels))
    )
    assert per_epoch == [expected] * 4
    assert seen[:total] != seen[total : 2 * total]


def test_supervised_batch_is_a_function_of_seed_and_step(tasks):
    first, again, other = (supervised_batch(tasks, seed, 3, 8) for seed in (0, 0, 1))
    for key in first:
        np.testing.assert_array_equal(first[key], again[key])
    assert not np.array_equal(first["input_ids"], other["input_ids"])


def test_supervised_layout(tasks):
    batch = supervised_batch(tasks, 0, 0, 8)
    assert batch.keys() == {"input_ids", "attention_mask", "token_type_ids", "labels", "task"}
    assert {value.dtype for value in batch.values()} == {np.dtype(np.int32)}
    assert batch["labels"].shape == batch["task"].shape == (8,)
    assert batch["input_ids"].shape[1] == batch["attention_mask"].sum(1).max()


@pytest.mark.parametrize("parts", [1, 2])
def test_packed_parts_hold_the_batch(tasks, parts):
    plan = plan_batches(tasks, 0, 8, parts, 100)
    for step in range(8):
        batch = supervised_batch(tasks, 0, step, 8)
        packed = packed_parts(batch, parts, plan)
        assert packed["input_ids"].shape[1:] in [shape for (shape,) in plan]
        for key in ("labels", "task"):
            np.testing.assert_array_equal(packed[key].reshape(-1), batch[key])
        for row in range(8):
            part, text = divmod(row, 8 // parts)
            found = packed["input_ids"][part][packed["example_ids"][part] == text]
            length = batch["attention_mask"][row].sum()
            np.testing.assert_array_equal(found, batch["input_ids"][row, :length])


def test_hosts_pack_their_parts_in_the_shapes_of_all(tasks):
    plan = [(Shape(1, 16),), (Shape(2, 16),), (Shape(2, 20),)]
    taken = []
    for step in range(8):
        batch = supervised_batch(tasks, 0, step, 8)
        whole = packed_parts(batch, 4, plan)
        for own in (slice(0, 1), slice(1, 3), slice(3, 4)):
            mine = packed_parts(batch, 4, plan, own=own)
            assert mine.keys() == whole.keys()
            for key in whole:
                np.testing.assert_array_equal(mine[key], whole[key][own])
        first = {key: value[:2] for key, value in batch.items()}
        taken += [packed_parts(first, 1, plan)["input_ids"].shape[1:], whole["input_ids"].shape[1:]]
    assert taken[::2] != taken[1::2]  # One part alone fits smaller shapes.


def test_more_steps_are_worth_more_shapes(make_task):
    tasks = [make_task("a", [40, 40], longest=40)]
    few, many = (plan_batches(tasks, 0, 16, 2, steps) for steps in (1, 10**6))
    assert many[1:] == few
    assert many[-1] == (Shape(rows=8, length=42),)
    batches = [supervised_batch(tasks, 0, step, 16) for step in range(64)]
    taken = [packed_parts(batch, 2, many)["input_ids"].shape[1:] for batch in batches]
    assert taken.count(many[0][0]) >= 48
    assert set(taken) == {many[0][0], many[1][0]}
    assert len({plan_batches(tasks, seed, 16, 2, 10**6) for seed in range(3)}) > 1


def test_a_regression_makes_all_labels_floats(tasks):
    scores = np.linspace(0, 5, 10, dtype=np.float32)
    mixed = [tasks[0], tasks[1]._replace(labels=scores, label_names=(), rows_by_class=())]
    for step in range(4):
        batch = supervised_batch(mixed, 0, step, 2)
        assert batch["labels"].dtype == np.float32
    batch = supervised_batch(mixed, 0, 0, 21)
    assert sorted(batch["labels"][batch["task"] == 1]) == scores.tolist()
    assert next(supervised_eval_batches(mixed[1], 4))["labels"].dtype == np.float32


def test_evaluation_is_in_order_and_filled_up(tasks):
    task = tasks[1]
    batches = list(supervised_eval_batches(task, 4, head=1))
    assert [batch["example_mask"].tolist() for batch in batches] == [[1] * 4, [1] * 4, [1, 1, 0, 0]]
    assert all(batch["task"].tolist() == [1] * 4 for batch in batches)
    labels = np.concatenate([batch["labels"] for batch in batches])
    np.testing.assert_array_equal(labels[:10], task.labels)
    for i, batch in enumerate(batches):
        rows = [min(4 * i + j, 9) for j in range(4)]
        assert [example_of(batch, j) for j in range(4)] == [example(task, row) for row in rows]
    assert next(supervised_eval_batches(task, 4))["task"].tolist() == [0] * 4


def test_evaluation_pads_to_few_lengths(make_task):
    task = make_task("long", [10, 11], longest=40)  # Of 3 to 23 tokens.
    found = [batch["input_ids"].shape for batch in supervised_eval_batches(task, 7)]
    assert found == [(7, 16), (7, 16), (7, 23)]


def test_packed_evaluation_has_every_example_once(tasks):
    task = tasks[1]
    taken = []
    for rows, batch in packed_eval_batches(task, 4, head=1):
        taken += rows.tolist()
        assert batch["example_mask"].tolist() == [row < len(rows) for row in range(4)]
        assert batch["task"].tolist() == [1] * 4
        for place, row in enumerate(rows):
            inside = batch["example_ids"] == place
            found = batch["input_ids"][inside], batch["token_type_ids"][inside]
            label, *expected = example(task, row)
            assert [tuple(part.tolist()) for part in found] == expected
            assert batch["labels"][place] == label
            assert batch["first_token"][place] == np.flatnonzero(inside)[0]
        assert batch["example_ids"].max() == len(rows) - 1
    assert sorted(taken) == list(range(10))


def test_packed_evaluation_has_one_shape_with_little_padding(make_task):
    """In the order of the texts, the last batch would need 16 rows of 64 tokens, and so all."""
    task = make_task("grows", [62], longest=62)  # Of 3 to 64 tokens, each longer by one.
    found = [batch["input_ids"].shape for _, batch in packed_eval_batches(task, 16)]
    assert len(found) == 4
    assert len(set(found)) == 1
    assert task.tokens.lengths.sum() > 0.65 * sum(np.prod(shape) for shape in found)


def test_packed_evaluation_rounds_the_rows_of_few_batches_only(make_task):
    """Five texts fill five rows. Sets of few batches have six, so that they share programs."""
    few, many = (make_task("even", [5 * count], longest=1) for count in (16, 17))
    shapes = [
        {batch["input_ids"].shape for _, batch in packed_eval_batches(task, 5)}
        for task in (few, many)
    ]
    assert shapes == [{(6, 3)}, {(5, 3)}]


def test_evaluation_deals_within_a_part_of_many_texts(make_task):
    """So that the results of the first texts do not wait for all others."""
    task = make_task("many", [70], longest=72)
    taken = [rows for rows, _ in packed_eval_batches(task, 2)]
    assert sorted(np.concatenate(taken[:16])) == list(range(32))
    assert sorted(np.concatenate(taken[32:])) == list(range(64, 70))


def test_pairs_keep_their_token_types(tokenizer):
    from metajax.data import TaskData, tokenize_task

    labels = np.array([0, 1], np.int32)
    data = TaskData("p", ["w1", "w2 w3"], ["w4 w5", "w6"], labels, ("a", "b"))
    (batch,) = supervised_eval_batches(tokenize_task(data, tokenizer, 32), 2)
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1]]


def test_importing_data_imports_nothing_heavy():
    code = (
        "import sys, metajax.data; print([m for m in ('jax', 'transformers', 'datasets', 'pyarrow',"
        " 'pandas', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
