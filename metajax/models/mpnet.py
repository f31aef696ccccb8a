"""MPNet's attention (Song et al. 2020, arXiv:2004.09297): a bias for each distance of two tokens.

All blocks share the bias. Sizes in array names: N attention heads, L tokens, K = 2 L - 1 distances.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from metajax.models.bert import Block
from metajax.models.config import TransformerConfig
from metajax.models.layers import normal

BUCKETS = 32
_FARTHEST = 128  # Longer distances share a bucket.


class RelativeTable(nnx.Module):
    """The bias of each bucket of distances and each head."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        shape = (BUCKETS, config.num_attention_heads)
        self.table = nnx.Param(normal(rngs.params(), shape, config.initializer_range))

    def __call__(self) -> jax.Array:
        """Return the table `[32, N]`."""
        return self.table[...]


class MPNetBlock(Block):
    """BERT's block with a bias `[1, N, L, L]` by distance, besides that of `attention_bias`."""

    def __call__(self, x_BxLxH: jax.Array, biases: Any, key: jax.Array | None) -> jax.Array:
        """Apply the layer to `[B, L, H]`, with both biases."""
        bias, relative_1xNxLxL = biases
        return super().__call__(x_BxLxH, bias + relative_1xNxLxL, key)


def relative_bias(table_32xN: jax.Array, length: int) -> jax.Array:
    """Return the bias of each pair of tokens `[1, N, L, L]`.

    It is the same for every row. In a packed row too, the distance of two tokens of an example is
    the distance of their places in the row.
    """
    values_KxN = table_32xN[buckets(np.arange(1 - length, length))]
    # Row i of the bias is a slice that begins i places earlier than that of row 0. Rows of K out of
    # repetitions of K + 1 values move by one: unlike indices, this has no scatter as its gradient.
    padded_NxK1 = jnp.pad(values_KxN.T, ((0, 0), (0, 1)))
    repeated = jnp.tile(padded_NxK1, length)[:, : length * (2 * length - 1)]
    rows_NxLxK = repeated.reshape(-1, length, 2 * length - 1)
    return rows_NxLxK[None, :, :, length - 1 :]


def buckets(distances: np.ndarray) -> np.ndarray:
    """Return the bucket of each distance (Raffel et al. 2020, arXiv:1910.10683, section 2.1).

    Args:
        distances: position of the key minus that of the query, int of any shape.

    Returns:
        0 to 15 at and before the query, 16 to 31 after it: one bucket each for 0 to 7, and wider
        ones, of equal ratios, up to 128.
    """
    half, exact = BUCKETS // 2, BUCKETS // 4
    far = np.abs(distances)
    # In float32, as in the weights' training.
    ratio = np.log(np.maximum(far, 1).astype(np.float32) / exact) / math.log(_FARTHEST / exact)
    wide = np.minimum(exact + (ratio * (half - exact)).astype(int), half - 1)
    return np.where(far < exact, far, wide) + half * (distances > 0)
