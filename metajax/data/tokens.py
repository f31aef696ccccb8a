"""The tokens of many texts."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class JoinedRows:
    """N rows of different lengths, one after the other, that are padded when they are read.

    One long row does not make the others longer. The numbers may be mapped from a file.

    Attributes:
        values: [T]; the numbers of all rows.
        bounds: int64 [N + 1]; row n has the values from bounds[n] to bounds[n + 1].
        width: L, the length of a padded row.
        fill: the number after the end of a row.

    Examples:
        >>> import numpy as np
        >>> from metajax.data.tokens import JoinedRows
        >>> rows = JoinedRows(np.array([2, 6, 3, 2, 3]), np.array([0, 3, 5]), width=4, fill=0)
        >>> rows.shape, rows[np.array([1])].tolist(), np.asarray(rows).tolist()
        ((2, 4), [[2, 3, 0, 0]], [[2, 6, 3, 0], [2, 3, 0, 0]])
    """

    values: np.ndarray
    bounds: np.ndarray
    width: int
    fill: int

    @property
    def shape(self) -> tuple[int, int]:
        """N, L."""
        return len(self), self.width

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Return padded rows, as an array [N, L] would: [B, L], or [L] of a single number.

        Args:
            rows: numbers of rows, bool [N], or a slice.
        """
        begins, ends = self.bounds[:-1][rows], self.bounds[1:][rows]
        filled = np.arange(self.width) < (ends - begins)[..., None]
        padded = np.full(filled.shape, self.fill, self.values.dtype)
        # Indexes only of tokens that exist: with a long text, most of the array is padding.
        sizes = np.ravel(ends - begins)
        places = np.repeat(np.ravel(begins) - (np.cumsum(sizes) - sizes), sizes)
        places += np.arange(places.size)
        padded[filled] = self.values[places]
        return padded

    def contain(self, value: int) -> np.ndarray:
        """Return which rows have a number, bool [N]."""
        rows = np.zeros(len(self), bool)
        places = np.flatnonzero(self.values == value)
        rows[np.searchsorted(self.bounds, places, "right") - 1] = True
        return rows

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return all rows, padded."""
        padded = np.full(self.shape, self.fill, self.values.dtype)
        padded[np.arange(self.width) < np.diff(self.bounds)[:, None]] = self.values
        return padded if dtype is None else padded.astype(dtype)


class Tokens(NamedTuple):
    """N tokenized texts, padded to the longest one.

    Commands map the tokens of many texts from files without padding. Then `input_ids[rows]` pads
    some texts, and `numpy.asarray(input_ids)` all; `token_type_ids` likewise.

    Attributes:
        input_ids: int32 [N, L].
        token_type_ids: int8 [N, L]; 1 in the second text of a pair.
        lengths: int32 [N]; number of tokens without padding.
        truncated: number of texts that were longer than the limit.
        apart: whether the texts of pairs are tokenized each by itself; see `tokenize_apart`.

    Examples:
        >>> import metajax.data as data, numpy as np
        >>> ids = np.array([[2, 6, 3, 0], [2, 6, 7, 3]], np.int32)
        >>> tokens = data.Tokens(ids, np.zeros((2, 4), np.int8), np.array([3, 4]), truncated=0)
        >>> tokens.input_ids[0, : tokens.lengths[0]].tolist()
        [2, 6, 3]
    """

    input_ids: np.ndarray | JoinedRows
    token_type_ids: np.ndarray | JoinedRows
    lengths: np.ndarray
    truncated: int
    apart: bool = False


def join(
    ids: np.ndarray, types: np.ndarray, lengths: np.ndarray, pad_id: int, truncated: int
) -> Tokens:
    """Return the tokens of N texts, given one after the other: ids int32 [T] and types int8 [T]."""
    bounds = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=bounds[1:])
    width = int(lengths.max(initial=1))
    rows = JoinedRows(ids, bounds, width, pad_id), JoinedRows(types, bounds, width, 0)
    return Tokens(*rows, lengths, truncated)


def pad(tokens: Tokens) -> Tokens:
    """Return tokens as padded arrays."""
    return tokens._replace(
        input_ids=np.asarray(tokens.input_ids), token_type_ids=np.asarray(tokens.token_type_ids)
    )
