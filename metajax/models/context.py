"""What the blocks of each family read besides their input.

Sizes in array names: B examples (or rows), L tokens, H hidden.
"""

from typing import Any

import jax

from metajax.dtypes import at_least_float32
from metajax.models.attention import attention_bias
from metajax.models.config import TransformerConfig
from metajax.models.deberta import near_embeddings
from metajax.models.llama import rotation_of
from metajax.models.modernbert import rotations_of
from metajax.models.mpnet import relative_bias


def context_of(
    config: TransformerConfig, batch: dict[str, jax.Array], hidden_BxLxH: jax.Array
) -> Any:
    """Return what depends on the row: arrays `[B, ...]`.

    Args:
        config: the model's.
        batch: a batch of `Transformer`.
        hidden_BxLxH: the input of the blocks.
    """
    wide = at_least_float32(hidden_BxLxH.dtype)
    causal, window = config.family.decoder, config.sliding_window
    bias = attention_bias(batch, wide, causal=causal, window=window)
    if config.family.block == "modernbert":
        return (bias, *rotations_of(config, batch, hidden_BxLxH))
    if config.family.rotary:
        return (bias, *rotation_of(config, batch, hidden_BxLxH))
    return bias


def shared_of(config: TransformerConfig, relative: jax.Array, hidden_BxLxH: jax.Array) -> jax.Array:
    """Return what is the same for every row.

    Args:
        config: the model's.
        relative: the result of `Transformer.relative`.
        hidden_BxLxH: the input of the blocks.
    """
    length = hidden_BxLxH.shape[1]
    if config.family.block == "deberta":
        return near_embeddings(relative, config, length)
    return relative_bias(relative.astype(at_least_float32(hidden_BxLxH.dtype)), length)
