"""Llama's blocks (Touvron et al. 2023, arXiv:2302.13971), also of Mistral and Qwen.

Sizes in array names: B examples (or rows), L tokens, H hidden, N query heads, K key-value heads,
G = N / K queries per key, D head size.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from metajax.dtypes import at_least_float32
from metajax.models.config import TransformerConfig
from metajax.models.layers import ACTIVATION, Dense, RMSNorm, dropout
from metajax.models.rotary import frequencies, rotate, rotation

Context = tuple[jax.Array, jax.Array, jax.Array]


class LlamaBlock(nnx.Module):
    """Grouped-query attention with rotary positions, and SwiGLU (pre-norm)."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.config = config
        hidden, inner, size = config.hidden_size, config.intermediate_size, config.head_size
        scale, epsilon = config.initializer_range, config.layer_norm_eps

        def dense(size_in: int, size_out: int, *, bias: bool = False) -> Dense:
            return Dense(size_in, size_out, scale, rngs=rngs, bias=bias)

        queries, keys = config.num_attention_heads * size, config.key_value_heads * size
        self.attention_norm = RMSNorm(hidden, epsilon)
        self.query = dense(hidden, queries, bias=config.attention_bias)
        self.key = dense(hidden, keys, bias=config.attention_bias)
        self.value = dense(hidden, keys, bias=config.attention_bias)
        if config.family.query_key_norm:
            self.query_norm = RMSNorm(size, epsilon)
            self.key_norm = RMSNorm(size, epsilon)
        out_bias = config.attention_bias and config.family.output_bias
        self.out = dense(queries, hidden, bias=out_bias)
        self.output_norm = RMSNorm(hidden, epsilon)
        self.gate = dense(hidden, inner)
        self.up = dense(hidden, inner)
        self.down = dense(inner, hidden)

    def __call__(self, x_BxLxH: jax.Array, context: Context, key: jax.Array | None) -> jax.Array:
        """Apply the layer to `[B, L, H]`, with the bias of attention and the rotation."""
        attended = self.attend(self.attention_norm(x_BxLxH), context, key)
        x_BxLxH = x_BxLxH + self.out(attended)
        return x_BxLxH + self.feed_forward(self.output_norm(x_BxLxH))

    @jax.named_scope("attention")
    def attend(self, x_BxLxH: jax.Array, context: Context, key: jax.Array | None) -> jax.Array:
        """Return the attended values of all heads `[B, L, N D]`, before the output layer."""
        bias_Bx1xLxL, *rotation = context
        B, L, _ = x_BxLxH.shape
        D, K = self.config.head_size, self.config.key_value_heads

        def heads(x: jax.Array, norm: str) -> jax.Array:
            x_BxLxND = x.reshape(B, L, -1, D)
            x_BxLxND = getattr(self, norm)(x_BxLxND) if hasattr(self, norm) else x_BxLxND
            return x_BxLxND.transpose(0, 2, 1, 3)

        q_BxNxLxD = rotate(heads(self.query(x_BxLxH), "query_norm"), *rotation) / math.sqrt(D)
        q_BxKxGxLxD = q_BxNxLxD.reshape(B, K, -1, L, D)
        k_BxKxLxD = rotate(heads(self.key(x_BxLxH), "key_norm"), *rotation)
        v_BxKxLxD = heads(self.value(x_BxLxH), "")
        scores = jnp.einsum("bkgqd,bkcd->bkgqc", q_BxKxGxLxD, k_BxKxLxD)
        probs = jax.nn.softmax(scores.astype(bias_Bx1xLxL.dtype) + bias_Bx1xLxL[:, None])
        probs = dropout(probs.astype(x_BxLxH.dtype), self.config.attention_probs_dropout_prob, key)
        mixed_BxKxGxLxD = jnp.einsum("bkgqc,bkcd->bkgqd", probs, v_BxKxLxD)
        return mixed_BxKxGxLxD.transpose(0, 3, 1, 2, 4).reshape(B, L, -1)

    @jax.named_scope("feed_forward")
    def feed_forward(self, x_BxLxH: jax.Array) -> jax.Array:
        """Apply SwiGLU (Shazeer 2020, arXiv:2002.05202) to each token of `[B, L, H]`."""
        activation = ACTIVATION[self.config.hidden_act]
        return self.down(activation(self.gate(x_BxLxH)) * self.up(x_BxLxH))


def rotation_of(
    config: TransformerConfig, batch: dict[str, jax.Array], hidden_BxLxH: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return cosines and sines of a batch's positions; by default they are 0 to L - 1."""
    default_BxL = jnp.broadcast_to(jnp.arange(hidden_BxLxH.shape[1]), hidden_BxLxH.shape[:2])
    turns = frequencies(config.head_size, config.rope_theta, config.rope_scaling)
    wide = at_least_float32(hidden_BxLxH.dtype)
    return rotation(batch.get("position_ids", default_BxL), turns, wide)
