import subprocess
import sys

import numpy as np
import pytest

from metajax.data import packed_parts, plan_batches, supervised_batch, supervised_eval_batches


@pytest.fixture(scope="module")
def tasks(make_task):
    return [make_task("a", [5, 6], longest=4), make_task("b", [3, 3, 4], longest=20)]


def find(task, ids):
    """The rows of a task's texts by their tokens."""
    return [row for row in range(len(task.labels)) if (task.tokens.input_ids[row] == ids).all()]


def test_supervised_batches_take_every_example_once_an_epoch(tasks):
    total, size = 21, 4
    seen = []
    for step in range(total):  # four epochs
        batch = supervised_batch(tasks, 0, step, size)
        for i in range(size):
            which = batch["task"][i]
            width = tasks[which].tokens.input_ids.shape[1]
            length = batch["attention_mask"][i].sum()
            ids = np.zeros(width, np.int32)
            ids[:length] = batch["input_ids"][i, :length]
            (label,) = {int(tasks[which].labels[row]) for row in find(tasks[which], ids)} & {
                int(batch["labels"][i])
            }
            seen.append((int(which), tuple(ids), label))
    per_epoch = [sorted(seen[i : i + total]) for i in range(0, 4 * total, total)]
    expected = sorted(
        (t, tuple(task.tokens.input_ids[row]), int(task.labels[row]))
        for t, task in enumerate(tasks)
        for row in range(len(task.labels))
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
            expected = batch["input_ids"][row, : batch["attention_mask"][row].sum()]
            np.testing.assert_array_equal(found, expected)


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
        for j in range(4):
            row = min(4 * i + j, 9)
            length = task.tokens.lengths[row]
            assert batch["attention_mask"][j].sum() == length
            expected = task.tokens.input_ids[row, :length]
            np.testing.assert_array_equal(batch["input_ids"][j, :length], expected)


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
