"""Randomness by counting: what is random in step n is a function of (seed, n).

Nothing here keeps a history, so a run resumes without data state and any host
can compute its own share of a batch.
"""

import functools
import zlib

import numpy as np


def generator(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """Returns the generator that belongs to a seed, a purpose and counters such as the step.

    The purpose keeps streams apart that share seed and step: masks, say, and episodes.
    """
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), *counters])


def shuffled_rows(seed: int, step: int, batch_size: int, size: int) -> np.ndarray:
    """Returns the rows of one step in an endless stream of shuffled epochs.

    The stream is the concatenation of one permutation of the rows an epoch; step n
    takes the batch_size rows from position n * batch_size on. So every row comes
    once an epoch, also when batch_size does not divide the number of rows.

    Args:
        seed: The run's seed.
        step: Which batch.
        batch_size: How many rows.
        size: How many rows there are.

    Returns:
        int64 [batch_size], each in range(size).
    """
    epochs, offsets = np.divmod(step * batch_size + np.arange(batch_size), size)
    rows = np.empty(batch_size, np.int64)
    for epoch in np.unique(epochs):
        now = epochs == epoch
        rows[now] = _permutation(seed, int(epoch), size)[offsets[now]]
    return rows


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    # Remembered, for a step should not pay for permuting the whole corpus.
    permutation = generator(seed, "epoch", epoch).permutation(size)
    permutation.setflags(write=False)
    return permutation
