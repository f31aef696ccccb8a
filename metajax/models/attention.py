"""Parts of attention that all encoders share: the mask, the heads, and the mean of the values.

The mask closes padding, other packed examples and, in a decoder, later tokens. Sizes in array
names: B examples, or R rows of several examples; L tokens, H hidden, N heads, D = H / N.
"""

from typing import Any

import jax
import jax.numpy as jnp

from metajax.models.layers import dropout

# Large enough to mask a token, small enough that adding it never overflows.
MASKED = -1e9


def attention_bias(
    batch: dict[str, jax.Array], dtype: Any, *, causal: bool, window: int | None = None
) -> jax.Array:
    """The bias that is added to the scores: very negative where attention is masked.

    Args:
        batch: has `attention_mask` or, if packed, `example_ids`.
        dtype: of the bias.
        causal: whether later tokens are masked.
        window: of a causal bias: the last tokens that a token sees; None: all.

    Returns:
        `[B, 1, 1, L]`, which masks padding; for a packed batch `[R, 1, L, L]`, which masks other
        examples. If causal, `[B, 1, L, L]`, which also masks later tokens: the tokens of a packed
        text are in order too.
    """
    if "example_ids" in batch:
        ids_RxL = batch["example_ids"]
        closed = ids_RxL[:, None, :, None] != ids_RxL[:, None, None, :]
    else:
        closed = batch["attention_mask"][:, None, None, :] == 0
    if causal:
        length = closed.shape[-1]
        before = jnp.arange(length)[:, None] - jnp.arange(length)
        closed |= before < 0
        closed |= before >= (window or length)
    return MASKED * closed.astype(dtype)


def split_heads(qkv_BxLx3H: jax.Array, heads: int) -> jax.Array:
    """Return queries, keys and values of N heads `[3, B, N, L, D]`.

    Heads before tokens is twice as fast as [B, L, N, D] on a CPU.
    """
    B, L, _ = qkv_BxLx3H.shape
    return qkv_BxLx3H.reshape(B, L, 3, heads, -1).transpose(2, 0, 3, 1, 4)


def attended_values(
    scores_BxNxLxL: jax.Array, bias: jax.Array, v_BxNxLxD: jax.Array, rate: float, key: Any
) -> jax.Array:
    """Return the means of the values by the softmax of the scores `[B, L, H]`, of all heads.

    Args:
        scores_BxNxLxL: of each query and key.
        bias: is added to the scores, in its dtype.
        v_BxNxLxD: the values.
        rate: of dropout of the probabilities.
        key: of dropout; None means none.
    """
    B, _, L, _ = v_BxNxLxD.shape
    probs_BxNxLxL = jax.nn.softmax(scores_BxNxLxL.astype(bias.dtype) + bias)
    probs_BxNxLxL = dropout(probs_BxNxLxL.astype(v_BxNxLxD.dtype), rate, key)
    mixed_BxNxLxD = jnp.einsum("bnqk,bnkd->bnqd", probs_BxNxLxL, v_BxNxLxD)
    return mixed_BxNxLxD.transpose(0, 2, 1, 3).reshape(B, L, -1)
