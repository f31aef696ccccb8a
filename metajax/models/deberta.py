"""DeBERTa's disentangled attention (He et al. 2020, arXiv:2006.03654; 2021, arXiv:2111.09543).

The score of a pair of tokens has three terms: content with content, content with the embedding of
their distance, and that embedding with content. All blocks share the embeddings. Sizes in array
names: B examples (or rows), L tokens, K = 2 L - 1 distances, P embeddings, H hidden, N attention
heads, D = H / N.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from metajax.models.attention import attended_values, split_heads
from metajax.models.bert import Block
from metajax.models.config import TransformerConfig
from metajax.models.layers import LayerNorm, dropout, normal


class RelativeEmbeddings(nnx.Module):
    """An embedding for each bucket of distances."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        shape = (2 * config.position_buckets, config.hidden_size)
        self.table = nnx.Param(normal(rngs.params(), shape, config.initializer_range))
        self.norm = LayerNorm(config.hidden_size, config.layer_norm_eps)

    def __call__(self) -> jax.Array:
        """Return the normalized table `[2 * position_buckets, H]`."""
        return self.norm(self.table[...])


class DebertaBlock(Block):
    """BERT's block with disentangled attention."""

    @jax.named_scope("attention")
    def attend(
        self, x_BxLxH: jax.Array, context: tuple[jax.Array, jax.Array], key: jax.Array | None
    ) -> jax.Array:
        """Return the attended values of all heads `[B, L, H]`, before the output layer.

        Args:
            x_BxLxH: the input.
            context: the bias of `attention_bias`, and the result of `near_embeddings`.
            key: of dropout.
        """
        bias, relative_PxH = context
        keys = (None, None) if key is None else jax.random.split(key)
        (_, L, H), N = x_BxLxH.shape, self.config.num_attention_heads
        q_BxNxLxD, k_BxNxLxD, v_BxNxLxD = split_heads(self.qkv(x_BxLxH), N)
        relative_PxH = relative_PxH.astype(x_BxLxH.dtype)
        relative_PxH = dropout(relative_PxH, self.config.hidden_dropout_prob, keys[0])
        # The projections of contents are also those of distances.
        both_PxH = self.qkv(relative_PxH)[:, : 2 * H]
        both_2xNxPxD = both_PxH.reshape(-1, 2, N, H // N).transpose(1, 2, 0, 3)
        index_K = places(self.config, L)
        near_q_NxKxD, near_k_NxKxD = both_2xNxPxD[:, :, index_K]
        scale = math.sqrt(3 * H // N)
        q_BxNxLxD, near_q_NxKxD = q_BxNxLxD / scale, near_q_NxKxD / scale
        scores_BxNxLxL = jnp.einsum("bnqd,bnkd->bnqk", q_BxNxLxD, k_BxNxLxD)
        # The distance of a query from a key falls from key to key, and rises from query to query.
        by_query_BxNxLxK = jnp.einsum("bnqd,npd->bnqp", q_BxNxLxD, near_k_NxKxD[:, ::-1])
        by_key_BxNxLxK = jnp.einsum("bnkd,npd->bnkp", k_BxNxLxD, near_q_NxKxD)
        scores_BxNxLxL += of_pairs(by_query_BxNxLxK) + of_pairs(by_key_BxNxLxK).swapaxes(2, 3)
        rate = self.config.attention_probs_dropout_prob
        return attended_values(scores_BxNxLxL, bias, v_BxNxLxD, rate, keys[1])


def of_pairs(x_BxNxLxK: jax.Array) -> jax.Array:
    """Return a slice of L columns of each row. It begins at L - 1 in row 0, and at 0 in row L - 1.

    Rows of K = 2 L - 1 out of rows of K + 1 move by one: unlike indices, this has no scatter as its
    gradient.
    """
    B, N, L, K = x_BxNxLxK.shape
    padded = jnp.pad(x_BxNxLxK, ((0, 0), (0, 0), (0, 0), (0, 1))).reshape(B, N, -1)
    return padded[:, :, L - 1 : -1].reshape(B, N, L, K)[..., :L]


def near_embeddings(relative: jax.Array, config: TransformerConfig, length: int) -> jax.Array:
    """Return the embeddings of the distances in a text of L tokens `[P, H]`.

    Args:
        relative: the result of `RelativeEmbeddings`.
        config: the model's.
        length: L.
    """
    middle, most = config.position_buckets, _largest(config, length)
    return relative[middle - most : middle + most + 1]


def places(config: TransformerConfig, length: int) -> np.ndarray:
    """Return the row of `near_embeddings` of each distance of a query from a key, 1 - L to L - 1.

    It is the same for every row. In a packed row too, the distance of two tokens of an example is
    the distance of their places in the row.
    """
    distances = np.arange(1 - length, length)
    return buckets(distances, config) + _largest(config, length)


def _largest(config: TransformerConfig, length: int) -> int:
    return int(buckets(np.array(length - 1), config))


def buckets(distances: np.ndarray, config: TransformerConfig) -> np.ndarray:
    """Return the bucket of each distance (He et al. 2021, appendix A.5).

    Args:
        distances: position of the query minus that of the key, int of any shape.
        config: has the number of buckets and the largest distance.

    Returns:
        Up to half of `position_buckets`, the distance itself; beyond, wider buckets of equal ratios
        up to `max_position_embeddings`.
    """
    half, far = config.position_buckets // 2, np.abs(distances)
    # In float32, as in transformers.
    ratio = np.log(np.maximum(far, half).astype(np.float32) / np.float32(half))
    whole = np.log(np.float32((config.max_position_embeddings - 1) / half))
    wide = np.ceil(ratio / whole * np.float32(half - 1)).astype(int) + half
    return np.where(far <= half, distances, np.sign(distances) * wide)
