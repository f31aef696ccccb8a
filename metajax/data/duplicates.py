"""Find repeated texts in a data set, and texts with several labels."""

import hashlib
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from metajax.data.normalization import normalize

Example = tuple[str, str]  # Its texts, normalized; the second is empty for a single text.


class Duplicates(NamedTuple):
    """Which of N examples have the same text or pair of texts.

    Differences in white space, invisible characters and Unicode composition are ignored.

    Attributes:
        first: int64 [N]; index of the first example with the same text (possibly the example
            itself).
        conflicting: bool [N]; true if the examples with this text have several labels.

    Examples:
        >>> import numpy as np
        >>> from metajax.data import Duplicates
        >>> films = Duplicates(first=np.array([0, 1, 0]), conflicting=np.array([True, False, True]))
        >>> films.repeated, films.once.tolist()
        (1, [False, True, False])
    """

    first: np.ndarray
    conflicting: np.ndarray

    @property
    def repeated(self) -> int:
        """Return how many examples have the text of an earlier example."""
        return int(np.sum(self.first != np.arange(len(self.first))))

    @property
    def once(self) -> np.ndarray:
        """Return which examples to keep, bool [N]: the first of each text with only one label."""
        return (self.first == np.arange(len(self.first))) & ~self.conflicting


def find_duplicates(
    texts: Sequence[str], pairs: Sequence[str] | None, labels: Sequence[int] | np.ndarray
) -> Duplicates:
    """Find examples with the same text.

    Args:
        texts: N texts.
        pairs: N second texts, or None.
        labels: N labels of any kind.

    Examples:
        >>> from metajax.data import find_duplicates
        >>> films = find_duplicates(["good", "so so", "good ", "so  so"], None, [1, 1, 1, 0])
        >>> films.first.tolist(), films.conflicting.tolist()
        ([0, 1, 0, 1], [False, True, False, True])
    """
    keys = hashes(texts, pairs)
    order = np.lexsort(keys.T)  # Stable: of equal texts, the first comes first.
    begins = np.ones(len(keys), bool)
    begins[1:] = (keys[order[1:]] != keys[order[:-1]]).any(1)
    first = np.empty(len(keys), np.int64)
    first[order] = np.repeat(order[begins], np.diff(np.append(np.flatnonzero(begins), len(keys))))
    labels = np.asarray(labels)
    several = np.zeros(len(first), bool)
    several[first[labels != labels[first]]] = True
    return Duplicates(first, several[first])


def are_among(keys: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return which examples have the text of one of others, bool [N].

    Args:
        keys: uint64 [N, 2], from `hashes`.
        others: uint64 [M, 2], likewise.
    """
    pair = np.dtype([("", np.uint64)] * 2)
    return np.isin(keys.view(pair)[:, 0], others.view(pair)[:, 0])


def hashes(texts: Sequence[str], pairs: Sequence[str] | None) -> np.ndarray:
    """Return a hash of each example, uint64 [N, 2]: the examples take ten times the memory.

    Equal texts have equal hashes. A single text has that of a pair whose second text is empty.
    """
    content = bytearray()
    others = itertools.repeat("") if pairs is None else map(normalize, pairs)
    for text, other in zip(map(normalize, texts), others):
        example = f"{len(text)} {text}{other}".encode("utf-8", "surrogatepass")
        content += hashlib.blake2b(example, digest_size=16).digest()
    return np.frombuffer(content, np.uint64).reshape(-1, 2)


def examples(texts: Sequence[str], pairs: Sequence[str] | None) -> list[Example]:
    """Return a key for each example; equal texts have equal keys."""
    others = [""] * len(texts) if pairs is None else map(normalize, pairs)
    return list(zip(map(normalize, texts), others))


def count_repeated(texts: Sequence[str]) -> int:
    """Return how many texts are repetitions of an earlier one; see `Duplicates`."""
    return len(texts) - len(set(map(normalize, texts)))
