"""The parts of a network by the top-level keys of its parameters."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from metajax.models.bert import Block, Embeddings
from metajax.models.config import TransformerConfig
from metajax.models.contracts import DenseLayer
from metajax.models.deberta import DebertaBlock, RelativeEmbeddings
from metajax.models.gpt2 import PreNormBlock
from metajax.models.heads import ClassificationHeads, MaskedLMHead, Projection
from metajax.models.layers import Dense, LayerNorm, RMSNorm
from metajax.models.llama import LlamaBlock
from metajax.models.modernbert import ModernBertBlock, PredictionHead
from metajax.models.mpnet import MPNetBlock, RelativeTable

_BLOCKS: dict[str, Any] = {
    "bert": Block,
    "mpnet": MPNetBlock,
    "deberta": DebertaBlock,
    "gpt2": PreNormBlock,
    "llama": LlamaBlock,
    "modernbert": ModernBertBlock,
}


def make_part(
    config: TransformerConfig,
    name: str,
    num_labels: tuple[int, ...],
    projection: int | None,
    dense: DenseLayer | None,
    features: int,
    rngs: nnx.Rngs,
) -> nnx.Module:
    """Create the part of a top-level key of the parameters.

    Args:
        config: sizes and rates.
        name: the key.
        num_labels: see `Transformer`.
        projection: see `Transformer`.
        dense: see `Transformer`.
        features: its `feature_size`.
        rngs: for the initial values.
    """
    if name == "embeddings":
        return Embeddings(config, rngs=rngs)
    if name == "relative" and config.family.block == "deberta":
        return RelativeEmbeddings(config, rngs=rngs)
    if name == "relative":
        return RelativeTable(config, rngs=rngs)
    if name == "layers":
        keys = jax.random.split(rngs.params(), config.blocks)
        block = _BLOCKS[config.family.block]
        return nnx.vmap(lambda key: block(config, rngs=nnx.Rngs(params=key)))(keys)
    if name == "final_norm" and config.family.block == "llama":
        return RMSNorm(config.hidden_size, config.layer_norm_eps)
    if name == "final_norm":
        return LayerNorm(config.hidden_size, config.layer_norm_eps, bias=config.norm_bias)
    if name == "pooler" and config.family.block == "modernbert":
        return PredictionHead(config, rngs=rngs)
    if name == "pooler":
        size, scale = config.hidden_size, config.initializer_range
        return Dense(size, size, scale, rngs=rngs)
    if name == "masked_lm":
        return MaskedLMHead(config, rngs=rngs)
    if name == "lm_head":
        size, scale = config.hidden_size, config.initializer_range
        return Dense(size, config.vocab_size, scale, rngs=rngs, bias=False)
    if name == "dense" and dense is not None:
        size, scale = config.hidden_size, config.initializer_range
        return Dense(size, dense.size, scale, rngs=rngs, bias=dense.bias)
    if name == "projection":
        return Projection(config, features, projection or 0, rngs=rngs)
    return ClassificationHeads(config, num_labels, projection or features, rngs=rngs)


def unused_parts(head: str, pooling: str) -> tuple[str, ...]:
    """Return the keys of parameters that the logits of a model do not depend on.

    Args:
        head: see `Transformer`.
        pooling: see `Transformer`.
    """
    if head != "classification":
        return ("pooler", "dense")
    return () if pooling == "pooler" else ("pooler",)


@functools.lru_cache(maxsize=256)
def graph_of(
    config: TransformerConfig,
    name: str,
    num_labels: tuple[int, ...],
    projection: int | None,
    dense: DenseLayer | None,
    features: int,
    adapted: tuple[str, ...] = (),
) -> Any:
    """Return the structure of a part without arrays. A call then only merges the parameters.

    Args:
        config: as for `make_part`, like the next five.
        name: see there.
        num_labels: see there.
        projection: see there.
        dense: see there.
        features: see there.
        adapted: the names of the dense layers with an adapter.
    """

    def build() -> nnx.Module:
        part = make_part(config, name, num_labels, projection, dense, features, nnx.Rngs(0))
        for layer in adapted:  # A graph has no shapes.
            getattr(part, layer).down = nnx.Param(jnp.zeros(()))
            getattr(part, layer).up = nnx.Param(jnp.zeros(()))
        return part

    return nnx.graphdef(nnx.eval_shape(build))


def adapters_in(layers: Any) -> tuple[str, ...]:
    """Return the names of the dense layers of a block that have a low-rank adapter."""
    block = (layers or [{}])[0] if isinstance(layers, list) else layers
    return tuple(name for name, leaves in block.items() if "down" in leaves)
