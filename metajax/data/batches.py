"""Batches of tokenised examples, padded to few lengths, and those of supervised training."""

import bisect
from collections.abc import Iterator, Sequence

import numpy as np

from metajax.data.counting import shuffled_rows
from metajax.data.text import TokenizedTask, Tokens

BUCKETS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)


def bucket(longest: int, tasks: Sequence[TokenizedTask]) -> int:
    """Returns the length to pad a batch to whose longest example has `longest` tokens.

    That is the next of `BUCKETS`, or beyond them the next multiple of 128, so that few
    shapes are compiled; but no more than the longest example of all tasks has, for a
    bucket may be longer than the model's positions.
    """
    index = bisect.bisect_left(BUCKETS, longest)
    rounded = BUCKETS[index] if index < len(BUCKETS) else -(-longest // 128) * 128
    return min(rounded, max(task.tokens.input_ids.shape[1] for task in tasks))


def token_batch(tokens: Tokens, rows: np.ndarray, length: int) -> dict[str, np.ndarray]:
    """Returns input_ids, attention_mask, token_type_ids int32 [B, length] of some rows."""
    B, width = len(rows), min(length, tokens.input_ids.shape[1])
    input_ids = np.zeros((B, length), np.int32)
    input_ids[:, :width] = tokens.input_ids[rows, :width]
    token_type_ids = np.zeros((B, length), np.int32)
    token_type_ids[:, :width] = tokens.token_type_ids[rows, :width]
    attention_mask = (np.arange(length) < tokens.lengths[rows, None]).astype(np.int32)
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "token_type_ids": token_type_ids,
    }


def supervised_batch(
    tasks: Sequence[TokenizedTask], seed: int, step: int, batch_size: int
) -> dict[str, np.ndarray]:
    """Returns the batch of one step: every example of every task once an epoch, mixed.

    See `shuffled_rows` for the order.

    Returns:
      input_ids, attention_mask, token_type_ids int32 [B, L]; task int32 [B], which of the
      tasks; labels [B], float32 if any task is a regression, else int32.
    """
    ends = np.cumsum([len(task.labels) for task in tasks])
    picked = shuffled_rows(seed, step, batch_size, int(ends[-1]))
    which = np.searchsorted(ends, picked, side="right").astype(np.int32)
    groups = {
        int(t): picked[which == t] - (ends[t] - len(tasks[t].labels)) for t in np.unique(which)
    }
    longest = max(int(tasks[t].tokens.lengths[rows].max()) for t, rows in groups.items())
    length = bucket(longest, tasks)
    parts = [token_batch(tasks[t].tokens, rows, length) for t, rows in groups.items()]
    regression = any(not task.label_names for task in tasks)
    labels = np.concatenate([tasks[t].labels[rows] for t, rows in groups.items()])
    # Task by task up to here; from here on in the order of the shuffle.
    back = np.argsort(np.argsort(which, kind="stable"))
    batch = {key: np.concatenate([part[key] for part in parts])[back] for key in parts[0]}
    batch["labels"] = labels[back].astype(np.float32 if regression else np.int32)
    return batch | {"task": which}


def supervised_eval_batches(
    task: TokenizedTask, batch_size: int, *, head: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Yields a task's examples in order, the last batch filled up with its last example.

    Args:
      task: The examples.
      batch_size: B, of every batch.
      head: The task's number among those of `supervised_batch`.

    Yields:
      What `supervised_batch` returns, labels of the task's own type, and example_mask
      float32 [B], 0 where a batch is filled up.
    """
    size = len(task.labels)
    for begin in range(0, size, batch_size):
        places = np.arange(begin, begin + batch_size)
        rows = np.minimum(places, size - 1)
        length = bucket(int(task.tokens.lengths[rows].max()), [task])
        yield token_batch(task.tokens, rows, length) | {
            "labels": task.labels[rows],
            "task": np.full(batch_size, head, np.int32),
            "example_mask": (places < size).astype(np.float32),
        }
