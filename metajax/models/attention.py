"""The attention mask: no padding, no other packed example and, in a decoder, no later token.

Sizes in array names: B examples, or R rows of several examples; L tokens.
"""

from typing import Any

import jax
import jax.numpy as jnp

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
