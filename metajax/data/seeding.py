"""Random numbers of step n as a function of (seed, n).

Nothing here has state. So a run resumes without a state of its data, and each host can compute its
share of a batch.
"""

import functools
import zlib

import numpy as np


def generator(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """Return the random generator for a seed, a purpose, and counters such as the step.

    The purpose separates streams with the same seed and step, for example masks and episodes.
    """
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), *counters])


def shuffled_rows(seed: int, step: int, batch_size: int, size: int) -> np.ndarray:
    """Return the rows of one step from an infinite stream of shuffled epochs.

    The stream concatenates one permutation of the rows per epoch. Step n takes batch_size rows from
    position n * batch_size. So each epoch has every row once, also if batch_size does not divide
    the number of rows.

    Args:
        seed: the run's seed.
        step: number of the step.
        batch_size: number of rows to return.
        size: number of rows in an epoch.

    Returns:
        Rows Rows int64 [batch_size], each in range(size).
    """
    epochs, offsets = np.divmod(step * batch_size + np.arange(batch_size), size)
    rows = np.empty(batch_size, np.int64)
    for epoch in np.unique(epochs):
        now = epochs == epoch
        rows[now] = _permutation(seed, int(epoch), size)[offsets[now]]
    return rows


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    # Cached, so that not every step permutes the whole corpus.
    permutation = generator(seed, "epoch", epoch).permutation(size)
    permutation.setflags(write=False)
    return permutation
