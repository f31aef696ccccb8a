"""Batches of tokenized examples for supervised training and evaluation."""

from collections.abc import Iterator, Sequence

import numpy as np

from metajax.data.packing import Shape, Shapes, bucket, fit_shapes, pack, plan_shapes
from metajax.data.seeding import shuffled_rows
from metajax.data.text import TokenizedTask
from metajax.data.tokens import Tokens

_PLANNED_STEPS = 64
_SAMPLED = 16  # Batches of an evaluation that its shapes are planned for.
_DEALT = 16  # Batches among which the texts of an evaluation are dealt out.


def token_batch(tokens: Tokens, rows: np.ndarray, length: int) -> dict[str, np.ndarray]:
    """Return input_ids, attention_mask, token_type_ids int32 [B, length] for some rows.

    If the texts of pairs are apart, also `second` int32 [B], where each second text begins.
    """
    B, width = len(rows), min(length, tokens.input_ids.shape[1])
    input_ids = np.zeros((B, length), np.int32)
    input_ids[:, :width] = tokens.input_ids[rows][:, :width]
    token_type_ids = np.zeros((B, length), np.int32)
    token_type_ids[:, :width] = tokens.token_type_ids[rows][:, :width]
    attention_mask = (np.arange(length) < tokens.lengths[rows, None]).astype(np.int32)
    batch = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "token_type_ids": token_type_ids,
    }
    if tokens.apart:
        batch["second"] = (tokens.lengths[rows] - token_type_ids.sum(1)).astype(np.int32)
    return batch


def take_examples(task: TokenizedTask, rows: np.ndarray) -> TokenizedTask:
    """Return some examples, for training or prediction but not for episodes.

    Args:
        task: the examples.
        rows: int [M].

    Examples:
        >>> import metajax.data as data, numpy as np
        >>> ids = np.array([[2, 6], [2, 7], [2, 8]], np.int32)
        >>> tokens = data.Tokens(ids, np.zeros((3, 2), np.int8), np.full(3, 2), truncated=0)
        >>> task = data.TokenizedTask("films", tokens, np.array([0, 1, 1]), ("bad", "good"), ())
        >>> data.take_examples(task, np.array([2, 0])).tokens.input_ids[:, 1].tolist()
        [8, 6]
    """
    tokens = task.tokens._replace(
        input_ids=task.tokens.input_ids[rows],
        token_type_ids=task.tokens.token_type_ids[rows],
        lengths=task.tokens.lengths[rows],
    )
    return task._replace(tokens=tokens, labels=task.labels[rows], rows_by_class=())


def supervised_batch(
    tasks: Sequence[TokenizedTask], seed: int, step: int, batch_size: int
) -> dict[str, np.ndarray]:
    """Return the batch of one step. Each epoch has every example of every task once, shuffled.

    `shuffled_rows` defines the order.

    Args:
        tasks: the data sets.
        seed: the run's seed.
        step: number of the step.
        batch_size: B.

    Returns:
        input_ids, attention_mask, token_type_ids int32 [B, L], where L is the length of the longest
        text in the batch; task int32 [B], the index of the task; labels [B], float32 if a task is a
        regression, else int32.

    Examples:
        >>> import numpy as np
        >>> from metajax.data import TokenizedTask, Tokens, supervised_batch
        >>> ids, types = np.ones((3, 8), np.int32), np.zeros((3, 8), np.int8)
        >>> tokens = Tokens(ids, types, np.array([2, 5, 3]), truncated=0)
        >>> task = TokenizedTask("films", tokens, np.array([0, 1, 1]), ("bad", "good"), ())
        >>> batch = supervised_batch([task, task], seed=0, step=0, batch_size=6)
        >>> batch["input_ids"].shape, sorted(batch["task"].tolist())
        ((6, 5), [0, 0, 0, 1, 1, 1])
    """
    ends = np.cumsum([len(task.labels) for task in tasks])
    picked = shuffled_rows(seed, step, batch_size, int(ends[-1]))
    which = np.searchsorted(ends, picked, side="right").astype(np.int32)
    groups = {
        int(t): picked[which == t] - (ends[t] - len(tasks[t].labels)) for t in np.unique(which)
    }
    longest = max(int(tasks[t].tokens.lengths[rows].max()) for t, rows in groups.items())
    parts = [token_batch(tasks[t].tokens, rows, longest) for t, rows in groups.items()]
    regression = any(not task.label_names for task in tasks)
    labels = np.concatenate([tasks[t].labels[rows] for t, rows in groups.items()])
    # Sorted by task up to here, from here on in the order of the shuffle.
    back = np.argsort(np.argsort(which, kind="stable"))
    batch = {key: np.concatenate([part[key] for part in parts])[back] for key in parts[0]}
    batch["labels"] = labels[back].astype(np.float32 if regression else np.int32)
    return batch | {"task": which}


def plan_batches(
    tasks: Sequence[TokenizedTask], seed: int, batch_size: int, parts: int, steps: int
) -> tuple[Shapes, ...]:
    """Choose the shapes to which `packed_parts` packs the batches of a run.

    Args:
        tasks: the data sets.
        seed: the run's seed.
        batch_size: B, a multiple of parts.
        parts: P, parts per batch.
        steps: steps of the run, as for `plan_episodes`.

    Returns:
        At most three choices of one Shape each, the cheapest first. The last one fits every batch.

    Raises:
        ValueError: batch_size is not a multiple of parts.

    Examples:
        >>> import numpy as np
        >>> from metajax.data import TokenizedTask, Tokens, plan_batches
        >>> ids, types = np.ones((3, 24), np.int32), np.zeros((3, 24), np.int8)
        >>> tokens = Tokens(ids, types, np.array([8, 8, 24]), truncated=0)
        >>> task = TokenizedTask("films", tokens, np.array([0, 1, 1]), ("bad", "good"), ())
        >>> plan_batches([task], seed=0, batch_size=3, parts=1, steps=100)
        ((Shape(rows=2, length=24),), (Shape(rows=3, length=24),))
    """
    batches = (supervised_batch(tasks, seed, step, batch_size) for step in range(_PLANNED_STEPS))
    lengths = [(_lengths(batch, parts),) for batch in batches]
    return plan_shapes(lengths, longest_text(tasks), steps)


def packed_parts(
    batch: dict[str, np.ndarray],
    parts: int,
    plan: Sequence[Shapes],
    *,
    own: slice = slice(None),
) -> dict[str, np.ndarray]:
    """Split a batch into equal parts, and pack each part.

    Args:
        batch: a batch from `supervised_batch`. B is a multiple of parts.
        parts: P.
        plan: from `plan_batches`.
        own: indices of the parts to return, by default all. The shapes are those of the whole
            batch.

    Returns:
        Leaves [P, ...] (or only the parts `own`): input_ids, token_type_ids, position_ids,
        example_ids int32 [P, R, L] and first_token int32 [P, B / P] (see
        `metajax.data.packing.pack`), the rest [P, B / P].

    Raises:
        ValueError: B is not a multiple of parts.

    Examples:
        >>> import numpy as np
        >>> from metajax.data import Shape, packed_parts
        >>> ones = np.ones((4, 8), np.int32)
        >>> tokens = {"input_ids": ones, "attention_mask": ones, "token_type_ids": ones}
        >>> batch = tokens | {"labels": np.array([0, 1, 1, 0])}
        >>> parts = packed_parts(batch, parts=2, plan=[(Shape(rows=1, length=16),)])
        >>> parts["input_ids"].shape, parts["first_token"].tolist(), parts["labels"].tolist()
        ((2, 1, 16), [[0, 8], [0, 8]], [[0, 1], [1, 0]])
    """
    (shape,) = fit_shapes((_lengths(batch, parts),), plan)
    split = {key: value.reshape(parts, -1, *value.shape[1:])[own] for key, value in batch.items()}
    tokens = split.keys() & {"input_ids", "attention_mask", "token_type_ids", "second"}
    packed = [
        pack({key: split[key][p] for key in tokens}, shape) for p in range(len(split["labels"]))
    ]
    rest = {key: value for key, value in split.items() if key not in tokens}
    return {key: np.stack([part[key] for part in packed]) for key in packed[0]} | rest


def _lengths(batch: dict[str, np.ndarray], parts: int) -> np.ndarray:
    """Return the lengths of the texts in each part, [P, B / P]."""
    return batch["attention_mask"].sum(1).reshape(parts, -1)


def longest_text(tasks: Sequence[TokenizedTask]) -> int:
    """Return the number of tokens of the longest text."""
    return max(task.tokens.input_ids.shape[1] for task in tasks)


def supervised_eval_batches(
    task: TokenizedTask, batch_size: int, *, head: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Yield a task's examples in order; repeat the last example to fill the last batch.

    Args:
        task: the examples.
        batch_size: B.
        head: the task's index in `supervised_batch`.

    Yields:
        Batches in the format of `supervised_batch`, but with labels of the task's type and with
        example_mask float32 [B], 0 for repeated examples. L comes from
        `metajax.data.packing.bucket`.

    Examples:
        >>> import numpy as np
        >>> from metajax.data import TokenizedTask, Tokens, supervised_eval_batches
        >>> ids, types = np.ones((3, 8), np.int32), np.zeros((3, 8), np.int8)
        >>> tokens = Tokens(ids, types, np.array([2, 8, 3]), truncated=0)
        >>> task = TokenizedTask("films", tokens, np.array([0, 1, 1]), ("bad", "good"), ())
        >>> first, last = supervised_eval_batches(task, batch_size=2)
        >>> last["input_ids"].shape, last["labels"].tolist(), last["example_mask"].tolist()
        ((2, 8), [1, 1], [1.0, 0.0])
    """
    size = len(task.labels)
    for begin in range(0, size, batch_size):
        yield _eval_batch(task, np.arange(begin, min(begin + batch_size, size)), batch_size, head)


def packed_eval_batches(
    task: TokenizedTask, batch_size: int, *, head: int = 0, room: int | None = None
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Yield a task's examples in packed batches of few shapes, as each shape is compiled.

    Within every 16 batches, long and short texts are dealt out, so that these batches have
    about equally many tokens: one shape then has room for each of them, and little padding.

    Args:
        task: the examples.
        batch_size: B.
        head: the task's index in `supervised_batch`.
        room: the most tokens of a row that is longer than the longest text. By default no row is:
            it costs more attention than it saves padding. But a pair whose texts are apart is two
            texts for the network, and a row as long as the longest pair often holds only one.

    Yields:
        The indices, int64 [M] with M <= B, of a batch's examples, and the batch: the leaves of a
        part of `packed_parts`, and example_mask float32 [B], 0 where there is no example.

    Examples:
        >>> import numpy as np
        >>> from metajax.data import TokenizedTask, Tokens, packed_eval_batches
        >>> ids, types = np.ones((3, 8), np.int32), np.zeros((3, 8), np.int8)
        >>> tokens = Tokens(ids, types, np.array([2, 8, 3]), truncated=0)
        >>> task = TokenizedTask("films", tokens, np.array([0, 1, 1]), ("bad", "good"), ())
        >>> (examples, batch), (_, last) = packed_eval_batches(task, batch_size=2)
        >>> examples.tolist(), batch["first_token"].tolist(), last["example_mask"].tolist()
        ([1, 0], [0, 8], [1.0, 0.0])
    """
    dealt = _deal(task.tokens.lengths, batch_size)
    lengths = np.zeros((len(dealt), 1, batch_size), np.int32)
    for batch_lengths, rows in zip(lengths, dealt, strict=True):
        batch_lengths[0, : len(rows)] = task.tokens.lengths[rows]
    spread = lengths[:: -(-len(lengths) // _SAMPLED)]
    longest = longest_text([task])
    widest = None if room is None else min(room, 2 * longest)
    plan = plan_shapes([(each,) for each in spread], longest, len(lengths), widest=widest)
    if len(dealt) <= _DEALT:  # For more batches, less padding is worth a program of their own.
        plan = tuple((Shape(_round_up(shape.rows), shape.length),) for (shape,) in plan)
    for rows in dealt:
        batch = _eval_batch(task, rows, batch_size, head)
        batch["attention_mask"] *= batch["example_mask"][:, None].astype(np.int32)
        yield rows, {name: leaf[0] for name, leaf in packed_parts(batch, 1, plan).items()}


def _deal(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Deal out texts to batches, the longest first, so that the batches have about as many tokens.

    Texts are dealt within consecutive groups of `_DEALT` batches, so that the first results do not
    wait for all texts.
    """
    dealt = []
    for begin in range(0, len(lengths), _DEALT * batch_size):
        window = lengths[begin : begin + _DEALT * batch_size]
        longest_first = begin + np.argsort(-window, kind="stable")
        count = -(-len(window) // batch_size)
        dealt += [longest_first[first::count] for first in range(count)]
    return dealt


def _eval_batch(
    task: TokenizedTask, rows: np.ndarray, batch_size: int, head: int
) -> dict[str, np.ndarray]:
    """Return some examples as a padded batch, which repeats the last one if they are too few."""
    mask = (np.arange(batch_size) < len(rows)).astype(np.float32)
    rows = np.pad(rows, (0, batch_size - len(rows)), mode="edge")
    length = bucket(int(task.tokens.lengths[rows].max()), longest_text([task]))
    return token_batch(task.tokens, rows, length) | {
        "labels": task.labels[rows],
        "task": np.full(batch_size, head, np.int32),
        "example_mask": mask,
    }


def _round_up(count: int) -> int:
    """Return the next of 1, 2, 3, 4, 6, 8, 12, 16, 24, ..., so that sets share compiled shapes."""
    power = 1 << (count - 1).bit_length()
    return power * 3 // 4 if power > 2 and count <= power * 3 // 4 else power
