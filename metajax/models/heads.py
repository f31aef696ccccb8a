"""Layers after the encoder: pooling, the masked-LM head, classification heads.

Sizes in array names: B examples, L tokens, M positions, H hidden, V vocabulary, T heads, C classes
of the largest head.
"""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from metajax.dtypes import at_least_float32, widen
from metajax.models.attention import MASKED
from metajax.models.config import TransformerConfig
from metajax.models.layers import ACTIVATION, Dense, LayerNorm, dropout, normal

if TYPE_CHECKING:
    from metajax.models.model import Transformer


def pool(pooling: str, hidden: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
    """Return one vector per text [B, H].

    Args:
        pooling: see `Transformer`; all but "pooler".
        hidden: the last hidden states [B, L, H], or [R, L, H] of a packed batch.
        batch: a batch of `Transformer`.
    """
    packed = "example_ids" in batch
    if pooling in ("mean", "weighted-mean"):
        weighted = pooling == "weighted-mean"
        if packed:
            first_B = batch["first_token"]
            return mean_pool_packed(hidden, batch["example_ids"], first_B, weighted=weighted)
        return mean_pool(hidden, batch["attention_mask"], weighted=weighted)
    flat = hidden.reshape(-1, hidden.shape[-1])
    if pooling == "last":
        return flat[last_tokens(batch)]
    return flat[batch["first_token"]] if packed else hidden[:, 0]


def mean_pool(
    hidden_BxLxH: jax.Array, attention_mask_BxL: jax.Array, *, weighted: bool = False
) -> jax.Array:
    """Return the mean over tokens without padding [B, H]; weighted: the n-th has the weight n."""
    wide_BxLxH = widen(hidden_BxLxH)
    mask_BxLx1 = attention_mask_BxL[:, :, None].astype(wide_BxLxH.dtype)
    if weighted:
        places_L = jnp.arange(1, mask_BxLx1.shape[1] + 1, dtype=wide_BxLxH.dtype)
        mask_BxLx1 = mask_BxLx1 * places_L[:, None]
    mean_BxH = (wide_BxLxH * mask_BxLx1).sum(1) / jnp.maximum(mask_BxLx1.sum(1), 1)
    return mean_BxH.astype(hidden_BxLxH.dtype)


def mean_pool_packed(
    hidden_RxLxH: jax.Array,
    example_ids_RxL: jax.Array,
    first_token_B: jax.Array,
    *,
    weighted: bool = False,
) -> jax.Array:
    """Return the mean over the tokens of each example [B, H]; 0 without tokens."""
    wide = at_least_float32(hidden_RxLxH.dtype)
    count = first_token_B.shape[0]
    # A matrix product, because on a CPU it is faster than a scatter.
    mine_BxT = (jnp.arange(count)[:, None] == example_ids_RxL.reshape(-1)).astype(wide)
    if weighted:
        places_BxT = jnp.arange(1, example_ids_RxL.size + 1) - first_token_B[:, None]
        mine_BxT = mine_BxT * places_BxT.astype(wide)
    total_BxH = mine_BxT @ hidden_RxLxH.reshape(-1, hidden_RxLxH.shape[-1]).astype(wide)
    return (total_BxH / jnp.maximum(mine_BxT.sum(1), 1)[:, None]).astype(hidden_RxLxH.dtype)


def last_tokens(batch: dict[str, jax.Array]) -> jax.Array:
    """Return the index of each example's last token in the flattened rows [B].

    Padding does not count. For an example without tokens, the index is arbitrary.
    """
    if "example_ids" in batch:
        first_B, ids_T = batch["first_token"], batch["example_ids"].reshape(-1)
        lengths_B = (jnp.arange(first_B.shape[0])[:, None] == ids_T).sum(1)
        return first_B + jnp.maximum(lengths_B, 1) - 1
    B, L = batch["attention_mask"].shape
    return jnp.arange(B) * L + (batch["attention_mask"] * jnp.arange(L)).argmax(1)


def rescale(x_BxH: jax.Array, length: float | None) -> jax.Array:
    """Scale each row to Euclidean length `length` (None: no scaling); a zero row stays zero."""
    if length is None:
        return x_BxH
    square_Bx1 = jnp.square(x_BxH.astype(at_least_float32(x_BxH.dtype))).sum(-1, keepdims=True)
    # The inner `where` keeps the derivative at zero finite.
    scale_Bx1 = length * jax.lax.rsqrt(jnp.where(square_Bx1 > 0, square_Bx1, 1))
    return (x_BxH * scale_Bx1).astype(x_BxH.dtype)


def head_features(
    model: "Transformer", pooled: jax.Array, batch: dict[str, jax.Array]
) -> jax.Array:
    """Return what a head reads: vectors of texts `[B, D]`; of a siamese network, pairs `[B, 2 D]`.

    The features of a pair are |u - v| and u * v of the vectors of its texts, as in InferSent
    (Conneau et al. 2017, arXiv:1705.02364, section 3.1), but without u and v themselves.

    Args:
        model: the network.
        pooled: the vectors of the texts, the two of a pair one after the other.
        batch: their batch.

    Raises:
        ValueError: the network is siamese and the batch has not two texts for each example.
    """
    scaled = rescale(pooled, model.feature_norm)
    if not model.siamese:
        return scaled
    examples = {len(batch[name]) for name in ("labels", "task") if name in batch}
    if "first_token" not in batch or len(pooled) % 2 or examples - {len(pooled) // 2}:
        raise ValueError(
            "the network encodes each text of a pair by itself; give a packed batch of the two "
            "(metajax.data.tokenize_apart, packed_eval_batches)"
        )
    u_BxD, v_BxD = scaled[0::2], scaled[1::2]
    return jnp.concatenate([jnp.abs(u_BxD - v_BxD), u_BxD * v_BxD], axis=1)


class MaskedLMHead(nnx.Module):
    """Dense layer, activation, norm, and the transposed word embeddings as a decoder.

    If `tie_word_embeddings` is false in the configuration, the head has another decoder.
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        hidden, scale = config.hidden_size, config.initializer_range
        width = config.embedding_size or hidden
        self.activation = config.family.lm_act or config.hidden_act
        self.dense = Dense(hidden, width, scale, rngs=rngs, bias=config.classifier_bias)
        self.norm = LayerNorm(width, config.layer_norm_eps, bias=config.norm_bias)
        if config.decoder_bias:
            self.bias = nnx.Param(jnp.zeros(config.vocab_size, jnp.float32))
        if not config.tie_word_embeddings:
            self.decoder = nnx.Param(normal(rngs.params(), (width, config.vocab_size), scale))

    def __call__(
        self, hidden_BxLxH: jax.Array, positions_BxM: jax.Array | None, word_VxH: jax.Array
    ) -> jax.Array:
        """Return logits [B, M, V], or [B, L, V] without positions."""
        x_BxMxH = hidden_BxLxH
        if positions_BxM is not None:
            x_BxMxH = jnp.take_along_axis(hidden_BxLxH, positions_BxM[:, :, None], axis=1)
        x_BxMxH = self.norm(ACTIVATION[self.activation](self.dense(x_BxMxH)))
        decoder_HxV = self.decoder[...] if hasattr(self, "decoder") else word_VxH.T
        logits_BxMxV = x_BxMxH @ decoder_HxV.astype(x_BxMxH.dtype)
        wide = at_least_float32(x_BxMxH.dtype)
        logits_BxMxV = logits_BxMxV.astype(wide)
        return logits_BxMxV + self.bias.astype(wide) if hasattr(self, "bias") else logits_BxMxV


class Projection(nnx.Module):
    """Two layers between features and classifier (LEOPARD: Bansal et al. 2020, equation 4)."""

    def __init__(self, config: TransformerConfig, size: int, width: int, *, rngs: nnx.Rngs):
        scale = config.initializer_range
        self.first = Dense(size, width, scale, rngs=rngs)
        self.second = Dense(width, width, scale, rngs=rngs)

    def __call__(self, features_BxH: jax.Array) -> jax.Array:
        """`[B, D]` to `[B, W]`, in at least float32."""
        return self.second(jnp.tanh(self.first(widen(features_BxH))))


class ClassificationHeads(nnx.Module):
    """T linear classifiers, padded to the largest number of classes.

    Args:
        config: sizes and rates.
        num_labels: number of classes of each head.
        rngs: for the initial kernel.
    """

    def __init__(
        self, config: TransformerConfig, num_labels: tuple[int, ...], size: int, *, rngs: nnx.Rngs
    ):
        self.num_labels = num_labels
        rate = config.classifier_dropout
        self.rate = config.hidden_dropout_prob if rate is None else rate
        shape = (len(num_labels), size, max(num_labels))
        self.kernel = nnx.Param(normal(rngs.params(), shape, config.initializer_range))
        self.bias = nnx.Param(jnp.zeros((shape[0], shape[2]), jnp.float32))

    def __call__(
        self, features_BxH: jax.Array, batch: dict[str, jax.Array], key: jax.Array | None
    ) -> jax.Array:
        """Return logits [B, C]; -1e9 for classes that the head or the batch's class_mask lacks."""
        features_BxH = dropout(features_BxH, self.rate, key)
        wide = at_least_float32(features_BxH.dtype)
        kernel_TxHxC = self.kernel.astype(features_BxH.dtype)
        logits_BxTxC = jnp.einsum("bh,thc->btc", features_BxH, kernel_TxHxC).astype(wide)
        present_TxC = np.arange(max(self.num_labels)) < np.array(self.num_labels)[:, None]
        logits_BxTxC = jnp.where(present_TxC, logits_BxTxC + self.bias.astype(wide), MASKED)
        if "task" in batch:
            logits_BxC = jnp.take_along_axis(logits_BxTxC, batch["task"][:, None, None], axis=1)[
                :, 0
            ]
        else:
            logits_BxC = logits_BxTxC[:, 0]
        if "class_mask" in batch:
            logits_BxC = jnp.where(batch["class_mask"] > 0, logits_BxC, MASKED)
        return logits_BxC
