"""Repeated texts in a data set, with the same label or different ones."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from metajax.data.normalization import normalise

Example = tuple[str, str]  # Its texts, normalised; the second is empty for a single text.


class Duplicates(NamedTuple):
    """Which of N examples have the same text, or the same two texts.

    White space, invisible characters and Unicode composition make no difference.

    Attributes:
        first: int64 [N]; the first example with the same text, which may be the example itself.
        conflicting: bool [N]; whether examples with this text have several labels.

    Examples:
        >>> import numpy as np
        >>> from metajax.data import Duplicates
        >>> same = Duplicates(first=np.array([0, 1, 0]), conflicting=np.array([True, False, True]))
        >>> same.repeated, same.once.tolist()
        (1, [False, True, False])
    """

    first: np.ndarray
    conflicting: np.ndarray

    @property
    def repeated(self) -> int:
        """How many examples have the text of an earlier one."""
        return int(np.sum(self.first != np.arange(len(self.first))))

    @property
    def once(self) -> np.ndarray:
        """Which examples to keep, bool [N]: the first with each text that has a single label."""
        return (self.first == np.arange(len(self.first))) & ~self.conflicting


def find_duplicates(
    texts: Sequence[str], pairs: Sequence[str] | None, labels: Sequence[int] | np.ndarray
) -> Duplicates:
    """Finds examples whose texts are the same.

    Args:
        texts: N texts.
        pairs: N second texts, or None.
        labels: N labels of any kind.

    Examples:
        >>> from metajax.data import find_duplicates
        >>> duplicates = find_duplicates(["good", "so so", "good ", "so  so"], None, [1, 1, 1, 0])
        >>> duplicates.first.tolist(), duplicates.conflicting.tolist()
        ([0, 1, 0, 1], [False, True, False, True])
    """
    rows: dict[Example, int] = {}
    keys = examples(texts, pairs)
    first = np.array([rows.setdefault(key, row) for row, key in enumerate(keys)], np.int64)
    labels = np.asarray(labels)
    several = np.zeros(len(first), bool)
    several[first[labels != labels[first]]] = True
    return Duplicates(first, several[first])


def examples(texts: Sequence[str], pairs: Sequence[str] | None) -> list[Example]:
    """Returns the normalised texts, which identify an example."""
    others = [""] * len(texts) if pairs is None else map(normalise, pairs)
    return list(zip(map(normalise, texts), others))
