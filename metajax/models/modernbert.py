"""ModernBERT's blocks and prediction head (Warner et al. 2024, arXiv:2412.13663).

Sizes in array names: B examples (or rows), L tokens, H hidden, N attention heads, D = H / N.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from metajax.models.attention import MASKED, attended_values, split_heads
from metajax.models.config import TransformerConfig
from metajax.models.layers import ACTIVATION, Dense, LayerNorm, dropout
from metajax.models.llama import rotation_of
from metajax.models.rotary import rotate

# The number of the block, the bias of attention, and cosines and sines for global and for local
# attention `[B, 2, L, D / 2]`.
Context = tuple[Any, tuple[jax.Array, jax.Array, jax.Array]]


class ModernBertBlock(nnx.Module):
    """Attention with rotary positions, and GeGLU, each on its normalized input and added to it.

    Attention is global in every `global_attn_every_n_layers`-th block, the first among them. In the
    others, a token sees those at most `local_attention` / 2 tokens away. Attention of the first
    block reads its input as it is: `attention_norm` has no effect there.
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.config = config
        hidden, inner, scale = (
            config.hidden_size,
            config.intermediate_size,
            config.initializer_range,
        )

        def norm() -> LayerNorm:
            return LayerNorm(hidden, config.layer_norm_eps, bias=config.norm_bias)

        def dense(size_in: int, size_out: int, *, bias: bool) -> Dense:
            return Dense(size_in, size_out, scale, rngs=rngs, bias=bias)

        self.attention_norm = norm()
        self.qkv = dense(hidden, 3 * hidden, bias=config.attention_bias)
        self.out = dense(hidden, hidden, bias=config.attention_bias)
        self.output_norm = norm()
        self.up = dense(hidden, 2 * inner, bias=config.mlp_bias)  # The gate, and what it scales.
        self.down = dense(inner, hidden, bias=config.mlp_bias)

    def __call__(self, x_BxLxH: jax.Array, context: Context, key: jax.Array | None) -> jax.Array:
        """Apply the layer to `[B, L, H]`, with the number of the block and `rotations_of`."""
        number, shared = context
        keys = (None,) * 3 if key is None else jax.random.split(key, 3)
        normed = jnp.where(number == 0, x_BxLxH, self.attention_norm(x_BxLxH))
        is_local = number % self.config.global_attn_every_n_layers != 0
        attended = self.out(self.attend(normed, is_local, shared, keys[0]))
        rate = self.config.attention_probs_dropout_prob
        x_BxLxH = x_BxLxH + dropout(attended, rate, keys[1])
        return x_BxLxH + self.feed_forward(self.output_norm(x_BxLxH), keys[2])

    @jax.named_scope("attention")
    def attend(
        self,
        x_BxLxH: jax.Array,
        is_local: Any,
        shared: tuple[jax.Array, jax.Array, jax.Array],
        key: jax.Array | None,
    ) -> jax.Array:
        """Return the attended values of all heads `[B, L, H]`, before the output layer."""
        bias, *rotations = shared
        q_BxNxLxD, k_BxNxLxD, v_BxNxLxD = split_heads(
            self.qkv(x_BxLxH), self.config.num_attention_heads
        )
        own = [
            jax.lax.dynamic_index_in_dim(each, jnp.asarray(is_local, jnp.int32), axis=1)
            for each in rotations
        ]
        q_BxNxLxD = rotate(q_BxNxLxD, *own) / math.sqrt(q_BxNxLxD.shape[-1])
        k_BxNxLxD = rotate(k_BxNxLxD, *own)
        # In a packed row too, the distance of two tokens of an example is that of their places.
        places = jnp.arange(x_BxLxH.shape[1])
        far_LxL = jnp.abs(places[:, None] - places) > self.config.local_attention // 2
        scores_BxNxLxL = jnp.einsum("bnqd,bnkd->bnqk", q_BxNxLxD, k_BxNxLxD)
        bias = jnp.where(is_local & far_LxL, MASKED, bias)
        rate = self.config.attention_probs_dropout_prob
        return attended_values(scores_BxNxLxL, bias, v_BxNxLxD, rate, key)

    @jax.named_scope("feed_forward")
    def feed_forward(self, x_BxLxH: jax.Array, key: jax.Array | None) -> jax.Array:
        """Apply GeGLU (Shazeer 2020, arXiv:2002.05202) to each token of `[B, L, H]`."""
        gate, value = jnp.split(self.up(x_BxLxH), 2, axis=-1)
        gated = ACTIVATION[self.config.hidden_act](gate) * value
        return self.down(dropout(gated, self.config.hidden_dropout_prob, key))


def rotations_of(
    config: TransformerConfig, batch: dict[str, jax.Array], hidden_BxLxH: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return cosines and sines `[B, 2, L, D / 2]`: of global, and of local attention."""
    local = dataclasses.replace(config, rope_theta=config.local_rope_theta)
    both = [rotation_of(each, batch, hidden_BxLxH) for each in (config, local)]
    cosines, sines = (jnp.concatenate(each, axis=1) for each in zip(*both))
    return cosines, sines


class PredictionHead(nnx.Module):
    """Dense layer, activation and norm, between the pooled output and the classifier."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        hidden, scale = config.hidden_size, config.initializer_range
        self.activation = config.family.pooler_act
        self.dense = Dense(hidden, hidden, scale, rngs=rngs, bias=config.classifier_bias)
        self.norm = LayerNorm(hidden, config.layer_norm_eps, bias=config.norm_bias)

    def __call__(self, pooled_BxH: jax.Array) -> jax.Array:
        """`[B, H]` to the same."""
        return self.norm(ACTIVATION[self.activation](self.dense(pooled_BxH)))
