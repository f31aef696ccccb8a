"""Pack several short texts into one row of tokens to avoid padding.

Texts differ in length, so half or more of a padded batch is padding. A packed row contains several
whole texts. The model separates them by `example_ids`: attention stays within an example, positions
restart, and pooling is per example. So the result is the same.
"""

import bisect
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

BUCKETS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
# The time of attention per token grows with the length of the row: on a CPU it equals that of the
# rest of a block at about this length.
_EVEN_LENGTH = 1000
_SHARE = 0.75  # The share of steps that the cheapest choice has to fit.
# Compiling a step takes about as long as running this many.
_COMPILE = 10


class Shape(NamedTuple):
    """The size of packed rows: R rows of L tokens.

    Attributes:
        rows: R.
        length: L.

    Examples:
        >>> import numpy as np
        >>> from metajax.data import Shape
        >>> from metajax.data.packing import pack
        >>> ones = np.ones((3, 4), np.int32)
        >>> batch = {"input_ids": ones, "attention_mask": ones, "token_type_ids": ones}
        >>> pack(batch, Shape(rows=2, length=8))["example_ids"].tolist()
        [[0, 0, 0, 0, 1, 1, 1, 1], [2, 2, 2, 2, -1, -1, -1, -1]]
    """

    rows: int
    length: int


# The shape of each part of a step (for example support and query); a plan is a sequence of these to
# choose from.
Shapes = tuple[Shape, ...]


def bucket(longest: int, limit: int) -> int:
    """Return the length to pad to: the next of `BUCKETS`, or beyond them a multiple of 128.

    The result is at most `limit`, the longest text, because a bucket may be longer than the model
    allows.
    """
    index = bisect.bisect_left(BUCKETS, longest)
    return min(BUCKETS[index] if index < len(BUCKETS) else -(-longest // 128) * 128, limit)


def place(lengths: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Place each text, the longest first, in the first row with enough room.

    Args:
        lengths: int [B], at most width. A text of length 0 takes no room.
        width: tokens per row.

    Returns:
        The row and the first column of each text, int64 [B]. This method (first-fit decreasing)
        needs at most 11/9 of the smallest possible number of rows, plus 6/9.
    """
    free = np.full(len(lengths), width)
    rows, columns = np.zeros(len(lengths), np.int64), np.zeros(len(lengths), np.int64)
    for text in np.argsort(-lengths, kind="stable"):
        if lengths[text] == 0:
            break
        row = int(np.argmax(free >= lengths[text]))
        rows[text], columns[text] = row, width - free[row]
        free[row] -= lengths[text]
    return rows, columns


def rows_needed(lengths: np.ndarray, width: int) -> float:
    """Return how many rows `place` uses; infinity if a text is longer than a row."""
    if lengths.max(initial=0) > width:
        return math.inf
    return float(place(lengths, width)[0].max(initial=0) + 1)


def pack(batch: dict[str, np.ndarray], shape: Shape) -> dict[str, np.ndarray]:
    """Pack a padded batch. Its texts have to fit.

    Args:
        batch: input_ids, attention_mask, token_type_ids [B, W], with padding at the end. Perhaps
            `second` [B], where the second text of each pair begins: each text is then an example of
            its own, and there are 2 B, the two of a pair one after the other.
        shape: R rows of L tokens.

    Returns:
        input_ids, token_type_ids, position_ids, example_ids int32 [R, L], and first_token int32
        [B]. A token has its position in its text and the index of this text (-1 for padding).
        first_token is where each text starts in the flattened rows.
    """
    mask = batch["attention_mask"] > 0
    rows, columns = place(mask.sum(1), shape.length)
    first = rows * shape.length + columns
    inside = np.broadcast_to(np.arange(mask.shape[1]), mask.shape)
    target = (first[:, None] + inside)[mask]

    def spread(values: np.ndarray, padding: int) -> np.ndarray:
        flat = np.full(shape.rows * shape.length, padding, np.int32)
        flat[target] = np.broadcast_to(values, mask.shape)[mask]
        return flat.reshape(shape)

    types, examples = batch["token_type_ids"], np.arange(len(mask))[:, None]
    if "second" in batch:
        second = batch["second"][:, None]
        in_second = inside >= second
        inside = inside - second * in_second
        types, examples = np.zeros_like(types), 2 * examples + in_second
        first = (first[:, None] + np.concatenate([0 * second, second], 1)).reshape(-1)
    return {
        "input_ids": spread(batch["input_ids"], 0),
        "token_type_ids": spread(types, 0),
        "position_ids": spread(inside, 0),
        "example_ids": spread(examples, -1),
        "first_token": first.astype(np.int32),
    }


def plan_shapes(
    samples: Sequence[Sequence[np.ndarray]], longest: int, steps: int, *, widest: int | None = None
) -> tuple[Shapes, ...]:
    """Choose the few shapes to which the steps of a run are packed; each is compiled once.

    Args:
        samples: typical steps. For each part of a step, the lengths [T, B] of its texts; B may
            differ between samples.
        longest: the longest possible text.
        steps: steps of the run.
        widest: the longest row to choose from. By default, the longest text.

    Returns:
        At most three choices, the cheapest first: one that fits three quarters of the samples, if
        it saves more time than its compilation takes; one that fits all samples; one that fits
        every step.
    """
    parts = list(zip(*samples, strict=True))
    anything = tuple(Shape(max(row.shape[1] for row in part), longest) for part in parts)
    tables = [_needs(part, longest, widest or longest) for part in parts]
    common = tuple(_cheapest(table, _SHARE) for table in tables)
    seen = tuple(_cheapest(table, 1.0) for table in tables)
    saved = 1 - sum(map(_cost, common)) / sum(map(_cost, seen))
    choices = (common, seen, anything) if _SHARE * steps * saved > _COMPILE else (seen, anything)
    return tuple(dict.fromkeys(choices))


def fit_shapes(parts: Sequence[np.ndarray], plan: Sequence[Shapes]) -> Shapes:
    """Return the first choice of a plan that fits the texts of a step.

    Args:
        parts: for each part, the lengths [T, B] of its texts.
        plan: choices from `plan_shapes`. The last one is not checked.
    """
    for shapes in plan[:-1]:
        pairs = zip(parts, shapes, strict=True)
        texts = ((lengths, shape) for part, shape in pairs for lengths in part)
        if all(rows_needed(lengths, shape.length) <= shape.rows for lengths, shape in texts):
            return shapes
    return plan[-1]


def _needs(samples: Sequence[np.ndarray], longest: int, widest: int) -> dict[int, np.ndarray]:
    """Return how many rows each sample needs, by length of a row."""
    widths = sorted({longest, *(bucket(length, widest) for length in BUCKETS)})
    return {
        width: np.array([max(rows_needed(row, width) for row in sample) for sample in samples])
        for width in widths
    }


def _cheapest(needs: dict[int, np.ndarray], share: float) -> Shape:
    """Return the fastest shape that fits a share of the samples."""
    rows = {width: np.quantile(counts, share, method="higher") for width, counts in needs.items()}
    return min(
        (Shape(int(rows[width]), width) for width in rows if rows[width] < math.inf), key=_cost
    )


def _cost(shape: Shape) -> float:
    """Return the time of a step, up to a factor."""
    return shape.rows * shape.length * (1 + shape.length / _EVEN_LENGTH)
