"""GPT-2's blocks (Radford et al. 2019); its causal mask is in `metajax/models/attention.py`."""

import jax

from metajax.models.bert import Block
from metajax.models.layers import dropout


class PreNormBlock(Block):
    """Attention and feed-forward, each on its normalized input and added to it (pre-norm)."""

    def __call__(self, x_BxLxH: jax.Array, bias: jax.Array, key: jax.Array | None) -> jax.Array:
        """One layer `[B, L, H]`; the bias is that of `attention_bias`."""
        keys = (None,) * 3 if key is None else jax.random.split(key, 3)
        rate = self.config.hidden_dropout_prob
        attended = self.out(self.attend(self.attention_norm(x_BxLxH), bias, keys[0]))
        x_BxLxH = x_BxLxH + dropout(attended, rate, keys[1])
        return x_BxLxH + dropout(self.feed_forward(self.output_norm(x_BxLxH)), rate, keys[2])
