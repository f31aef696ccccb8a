"""Several short texts in one row of tokens, so that hardly any padding is computed.

Texts differ in length: of a padded batch half or more is padding. Packed rows hold whole texts
one after the other; the model keeps them apart by `example_ids` (attention within an example
alone, positions restarting, pooling by example), so the result is the same.
"""

import bisect
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

BUCKETS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
# Attention's share of a token's time grows with the row: on a CPU it is even with the rest of a
# block at about this length.
_EVEN_LENGTH = 1000
_SHARE = 0.75  # Of the steps, which the cheapest choice is to fit.
# Compiling a step takes about as long as this many of them.
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


# For each part of a step (an episode's support and query, say) the shape it is packed to; a plan
# is a sequence of these to choose from.
Shapes = tuple[Shape, ...]


def bucket(longest: int, limit: int) -> int:
    """Returns the length to pad to: the next of `BUCKETS`, or multiple of 128 beyond them.

    But no more than `limit`, the longest text there is, for a bucket may be longer than the
    model's positions.
    """
    index = bisect.bisect_left(BUCKETS, longest)
    return min(BUCKETS[index] if index < len(BUCKETS) else -(-longest // 128) * 128, limit)


def place(lengths: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Places texts in rows: each, the longest first, in the first row that has room.

    Args:
        lengths: int [B], none above width; a text of length 0 takes no room.
        width: Tokens in a row.

    Returns:
        For each text its row and its first column, int64 [B]. First-fit decreasing needs no
        more than 11/9 of the fewest rows possible, and two thirds of one.
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
    """Returns how many rows `place` uses; infinitely many if a text is longer than a row."""
    if lengths.max(initial=0) > width:
        return math.inf
    return float(place(lengths, width)[0].max(initial=0) + 1)


def pack(batch: dict[str, np.ndarray], shape: Shape) -> dict[str, np.ndarray]:
    """Packs a padded batch, whose texts have to fit.

    Args:
        batch: input_ids, attention_mask, token_type_ids [B, W], the padding at the end.
        shape: R rows of L tokens.

    Returns:
        input_ids, token_type_ids, position_ids, example_ids int32 [R, L] and first_token int32
        [B]: of each token its place in its text and the text it belongs to (-1 for padding), of
        each text where it begins in the flattened rows.
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

    return {
        "input_ids": spread(batch["input_ids"], 0),
        "token_type_ids": spread(batch["token_type_ids"], 0),
        "position_ids": spread(inside, 0),
        "example_ids": spread(np.arange(len(mask))[:, None], -1),
        "first_token": first.astype(np.int32),
    }


def plan_shapes(
    samples: Sequence[Sequence[np.ndarray]], longest: int, steps: int
) -> tuple[Shapes, ...]:
    """Chooses the few shapes that a run's steps are packed to, each compiled once.

    Args:
        samples: Steps like those to come: for each part the lengths [T, B] of its texts.
        longest: The longest text that can come.
        steps: How many are to come.

    Returns:
        At most three choices, the cheapest first: one that fits three quarters of the samples,
        where it saves more than compiling it takes; one that fits them all, and one that fits any
        step.
    """
    parts = list(zip(*samples, strict=True))
    anything = tuple(Shape(part[0].shape[1], longest) for part in parts)
    tables = [_needs(part, longest) for part in parts]
    common = tuple(_cheapest(table, _SHARE) for table in tables)
    seen = tuple(_cheapest(table, 1.0) for table in tables)
    saved = 1 - sum(map(_cost, common)) / sum(map(_cost, seen))
    choices = (common, seen, anything) if _SHARE * steps * saved > _COMPILE else (seen, anything)
    return tuple(dict.fromkeys(choices))


def fit_shapes(parts: Sequence[np.ndarray], plan: Sequence[Shapes]) -> Shapes:
    """Returns the first choice of a plan that the texts of a step fit.

    Args:
        parts: For each part the lengths [T, B] of its texts.
        plan: Of `plan_shapes`; the last choice is taken unasked.
    """
    for shapes in plan[:-1]:
        pairs = zip(parts, shapes, strict=True)
        texts = ((lengths, shape) for part, shape in pairs for lengths in part)
        if all(rows_needed(lengths, shape.length) <= shape.rows for lengths, shape in texts):
            return shapes
    return plan[-1]


def _needs(samples: Sequence[np.ndarray], longest: int) -> dict[int, np.ndarray]:
    """For each length of row, the rows that each sample needs."""
    widths = sorted({bucket(length, longest) for length in (*BUCKETS, longest)})
    return {
        width: np.array([max(rows_needed(row, width) for row in sample) for sample in samples])
        for width in widths
    }


def _cheapest(needs: dict[int, np.ndarray], share: float) -> Shape:
    """The shape that fits a share of the samples and takes the least time."""
    rows = {width: np.quantile(found, share, method="higher") for width, found in needs.items()}
    return min(
        (Shape(int(rows[width]), width) for width in rows if rows[width] < math.inf), key=_cost
    )


def _cost(shape: Shape) -> float:
    """Of the time of a step, up to a factor."""
    return shape.rows * shape.length * (1 + shape.length / _EVEN_LENGTH)
