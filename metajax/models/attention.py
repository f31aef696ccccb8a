"""Which tokens attention may see: padding, packed examples and, in a decoder, what comes later.

Sizes in array names: B examples, or R rows of several examples; L tokens.
"""

from typing import Any

import jax
import jax.numpy as jnp

# Large enough to switch a padding token off, small enough that adding it never overflows.
MASKED = -1e9


def attention_bias(batch: dict[str, jax.Array], dtype: Any, *, causal: bool) -> jax.Array:
    """What is added to the scores: very negative where a token may not look.

    Returns:
        `[B, 1, 1, L]`: not at padding; of a packed batch `[R, 1, L, L]`: not at other examples.
        If causal, `[B, 1, L, L]`: nor at what comes later, for a packed text stands in order too.
    """
    if "example_ids" in batch:
        ids_RxL = batch["example_ids"]
        closed = ids_RxL[:, None, :, None] != ids_RxL[:, None, None, :]
    else:
        closed = batch["attention_mask"][:, None, None, :] == 0
    if causal:
        length = closed.shape[-1]
        closed |= jnp.arange(length)[:, None] < jnp.arange(length)
    return MASKED * closed.astype(dtype)
