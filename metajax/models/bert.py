"""BERT's encoder (Devlin et al. 2018) in Flax NNX.

Sizes in array names: B examples (or rows, where several examples are packed into one: R), L tokens,
H hidden, N attention heads, D = H / N, F feed-forward width.

Activations have the dtype of the embeddings' output. Attention is plain einsum, so everything can
be differentiated any number of times, in forward and in reverse mode.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from metajax.models.attention import attended_values, split_heads
from metajax.models.config import TransformerConfig
from metajax.models.layers import ACTIVATION, Dense, LayerNorm, dropout, normal
from metajax.models.prefix import prepend
from metajax.platforms import target_platform


class Embeddings(nnx.Module):
    """Add word, position and token-type embeddings, and normalize them except in a decoder.

    A model whose positions are rotations or relative has no position embeddings.
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        size = config.embedding_size or config.hidden_size

        def table(rows: int) -> nnx.Param[jax.Array]:
            shape = (rows, size)
            return nnx.Param(normal(rngs.params(), shape, config.initializer_range))

        self.positions = config.max_position_embeddings
        self.word = table(config.vocab_size)
        if config.family.position_table:
            self.position = table(self.positions)
        if config.type_vocab_size:
            self.token_type = table(config.type_vocab_size)
        if not config.family.decoder:
            self.norm = LayerNorm(size, config.layer_norm_eps, bias=config.norm_bias)
        if config.projects_embeddings:
            scale = config.initializer_range
            self.project = Dense(size, config.hidden_size, scale, rngs=rngs)

    def __call__(
        self, batch: dict[str, jax.Array], prefix_PxH: jax.Array | None = None
    ) -> jax.Array:
        """`input_ids`, `token_type_ids` and, if packed, `position_ids` `[B, L]` to `[B, L, H]`.

        With vectors `[P, H]` in front, `[B, P + L, H]`.
        """
        count = 0 if prefix_PxH is None else len(prefix_PxH)
        length = batch["input_ids"].shape[1] + count
        if length > self.positions:
            before = f" after a prefix of {count}" if count else ""
            raise ValueError(
                f"input_ids are {length - count} long{before}, but the model has {self.positions} "
                "positions"
            )
        x_BxLxH = self.word[batch["input_ids"]]
        if prefix_PxH is not None:
            x_BxLxH, batch = prepend(prefix_PxH, x_BxLxH, batch)
        if hasattr(self, "position"):
            x_BxLxH = x_BxLxH + self.position[batch.get("position_ids", slice(length))]
        if hasattr(self, "token_type"):
            x_BxLxH = x_BxLxH + self.token_type[batch["token_type_ids"]]
        return self.norm(x_BxLxH) if hasattr(self, "norm") else x_BxLxH


class Block(nnx.Module):
    """Attention and feed-forward, each added to its input and then normalized (post-norm)."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.config = config
        hidden, inner, scale = (
            config.hidden_size,
            config.intermediate_size,
            config.initializer_range,
        )
        self.qkv = Dense(hidden, 3 * hidden, scale, rngs=rngs)
        self.out = Dense(hidden, hidden, scale, rngs=rngs)
        self.attention_norm = LayerNorm(hidden, config.layer_norm_eps)
        self.up = Dense(hidden, inner, scale, rngs=rngs)
        self.down = Dense(inner, hidden, scale, rngs=rngs)
        self.output_norm = LayerNorm(hidden, config.layer_norm_eps)

    def __call__(self, x_BxLxH: jax.Array, bias: Any, key: jax.Array | None) -> jax.Array:
        """Apply the layer to `[B, L, H]`, with the bias of `attention_bias`."""
        keys = (None,) * 3 if key is None else jax.random.split(key, 3)
        rate = self.config.hidden_dropout_prob
        attended = self.out(self.attend(x_BxLxH, bias, keys[0]))
        x_BxLxH = self.attention_norm(x_BxLxH + dropout(attended, rate, keys[1]))
        return self.output_norm(x_BxLxH + dropout(self.feed_forward(x_BxLxH), rate, keys[2]))

    @jax.named_scope("attention")
    def attend(self, x_BxLxH: jax.Array, bias: Any, key: jax.Array | None) -> jax.Array:
        """Return the attended values of all heads `[B, L, H]`, before the output layer."""
        N = self.config.num_attention_heads
        q_BxNxLxD, k_BxNxLxD, v_BxNxLxD = split_heads(self.qkv(x_BxLxH), N)
        q_BxNxLxD = q_BxNxLxD / math.sqrt(q_BxNxLxD.shape[-1])
        scores_BxNxLxL = jnp.einsum("bnqd,bnkd->bnqk", q_BxNxLxD, k_BxNxLxD)
        rate = self.config.attention_probs_dropout_prob
        return attended_values(scores_BxNxLxL, bias, v_BxNxLxD, rate, key)

    @jax.named_scope("feed_forward")
    def feed_forward(self, x_BxLxH: jax.Array) -> jax.Array:
        """Apply the feed-forward layer to each token of `[B, L, H]`."""
        return self.down(ACTIVATION[self.config.hidden_act](self.up(x_BxLxH)))


# With remat, a block computes so many tokens at once: few, but enough to keep the machine busy.
_CHUNK_TOKENS = {"cpu": 256}
_CHUNK_TOKENS_ELSEWHERE = 4096


def count_blocks(layers: Any) -> int:
    """Return the number of blocks, stacked `[N, ...]` or in a list."""
    return len(layers) if isinstance(layers, list) else jax.tree.leaves(layers)[0].shape[0]


def run_blocks(
    graph: Any,
    layers: Any,
    x_BxLxH: jax.Array,
    context: Any,
    rng: jax.Array | None,
    *,
    remat: bool,
    shared: jax.Array | None = None,
    first: int | None = None,
    repeats: int = 1,
) -> jax.Array:
    """Run the blocks `[B, L, H]`: a scan over stacked ones, a loop over separate ones.

    Args:
        graph: the graph of a block.
        layers: the blocks' parameters, stacked `[N, ...]` or a list of N.
        x_BxLxH: the input.
        context: what a block gets besides its input: arrays `[B, ...]`, such as the bias from
            `attention_bias`.
        rng: the key for dropout; None means no dropout.
        remat: keep only each block's input for the backward pass, and compute the rest again, a few
            rows at a time. Without remat, matrix products are kept too, and only elementwise work
            is repeated. On a CPU this is 20% faster than keeping everything in memory.
        shared: what a block also gets, the same for all rows; its context is then a pair.
        first: the number of the first of these blocks, if blocks differ by their number; the
            context of each is then a pair with its number in front.
        repeats: how many times to run all of them, one after the other.
    """
    separate, count = isinstance(layers, list), count_blocks(layers)
    keys = None if rng is None else jax.random.split(rng, count * repeats)
    numbers = None if first is None else first + jnp.arange(count)

    def block(layer: Any, x_BxLxH: jax.Array, context: Any, shared: Any) -> jax.Array:
        params, key, number = layer
        context = context if shared is None else (context, shared)
        context = context if number is None else (number, context)
        return nnx.merge(graph, params)(x_BxLxH, context, key)

    policy = None if remat else jax.checkpoint_policies.dots_saveable
    # A scan prevents CSE; without a scan, a barrier has to. (On a CPU, separate blocks save memory
    # only if their rows come in chunks: only loops order XLA's work there.)
    block = jax.checkpoint(block, policy=policy, prevent_cse=separate and remat)

    def run(x_BxLxH: jax.Array, layer: Any) -> tuple[jax.Array, None]:
        B, L, _ = x_BxLxH.shape
        most = _CHUNK_TOKENS.get(target_platform(), _CHUNK_TOKENS_ELSEWHERE)
        # Dropout draws masks for the whole batch.
        if not remat or keys is not None or most >= B * L:
            return block(layer, x_BxLxH, context, shared), None
        parts = next(n for n in range(1, B + 1) if (B % n == 0 and B // n * L <= most) or n == B)
        rows = jax.tree.map(
            lambda a: a.reshape(parts, B // parts, *a.shape[1:]), (x_BxLxH, context)
        )
        done = jax.lax.map(lambda part: block(layer, part[0], part[1], shared), rows)
        return done.reshape(x_BxLxH.shape), None

    if separate:
        for index, params in enumerate(layers * repeats):
            key, number = (None if each is None else each[index] for each in (keys, numbers))
            x_BxLxH, _ = run(x_BxLxH, (params, key, number))
        return x_BxLxH
    if repeats == 1:
        return jax.lax.scan(run, x_BxLxH, (layers, keys, numbers))[0]
    keys = None if keys is None else keys.reshape(repeats, count)
    return jax.lax.scan(
        lambda x_BxLxH, keys: (jax.lax.scan(run, x_BxLxH, (layers, keys, numbers))[0], None),
        x_BxLxH,
        keys,
        length=repeats,
    )[0]
