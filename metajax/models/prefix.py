"""Learned vectors before a text, in the place of the embeddings of tokens.

As in prompt tuning (Lester et al. 2021, arXiv:2104.08691). Adapted alone by an inner loop, they are
the context parameters of CAVIA (Zintgraf et al. 2019, arXiv:1810.03642): all tasks share the
network.

    params = init_prefix(params, 8, rng)
    algorithm = metajax.maml(loss_fn, optax.sgd(0.1), 3, trainable=is_prefix)

Sizes in array names: B examples, P vectors, L tokens of the text, E the width of the embedding
table, H hidden.
"""

import jax
import jax.numpy as jnp

from metajax.errors import InputError
from metajax.models.contracts import Batch, Params


def init_prefix(params: Params, count: int, rng: jax.Array) -> Params:
    """Add vectors before the text, initialized with the embeddings of random tokens.

    Every token of the text sees them as it sees earlier tokens, and its position is P higher.
    Outputs are about the text only. Files of models have no place for them.

    Args:
        params: parameters of a `metajax.Transformer`.
        count: P > 0, the number of vectors.
        rng: key for the choice of tokens.

    Returns:
        The parameters with `params["prefix"]["vectors"]` `[P, E]`. The model then refuses packed
        batches.

    Raises:
        ValueError: count < 1.

    Examples:
        >>> import jax, metajax
        >>> from metajax.models import TransformerConfig, init_prefix
        >>> config = TransformerConfig(9, hidden_size=12, num_hidden_layers=1)
        >>> model = metajax.Transformer(config)
        >>> params = init_prefix(model.init(jax.random.key(0)), 3, jax.random.key(1))
        >>> params["prefix"]["vectors"].shape
        (3, 12)
        >>> tokens = jax.numpy.ones((2, 5), int)
        >>> batch = {"input_ids": tokens, "attention_mask": tokens, "token_type_ids": 0 * tokens}
        >>> model(params, batch).last_hidden_state.shape
        (2, 5, 12)
    """
    if count < 1:
        raise ValueError(f"count is {count}; it has to be at least 1")
    table = params["embeddings"]["word"]
    rows = jax.random.randint(rng, (count,), 0, table.shape[0])
    return {**params, "prefix": {"vectors": table[rows]}}


def is_prefix(path: str) -> bool:
    """Return whether a path leads to the vectors before the text, for `trainable`.

    Args:
        path: path of a parameter, with or without adapters from `metajax.lora.init`.

    Examples:
        >>> from metajax.models import is_prefix
        >>> is_prefix("prefix/vectors"), is_prefix("base/prefix/vectors"), is_prefix("pooler/bias")
        (True, True, False)
    """
    return path.removeprefix("base/") == "prefix/vectors"


def prepend(vectors_PxE: jax.Array, x_BxLxE: jax.Array, batch: Batch) -> tuple[jax.Array, Batch]:
    """Put vectors before the embeddings of tokens.

    Args:
        vectors_PxE: the vectors.
        x_BxLxE: the embeddings.
        batch: their batch.

    Returns:
        `[B, P + L, E]`, and the batch with `token_type_ids` `[B, P + L]`, 0 for the vectors.

    Raises:
        InputError: the batch is packed.
    """
    if "example_ids" in batch:
        raise InputError(
            "prefix: packed rows have no place for vectors before each text; give padded batches"
        )
    count, width = vectors_PxE.shape
    shape = (x_BxLxE.shape[0], count, width)
    rows_BxPxE = jnp.broadcast_to(vectors_PxE.astype(x_BxLxE.dtype), shape)
    if "token_type_ids" in batch:
        types = jnp.pad(batch["token_type_ids"], ((0, 0), (count, 0)))
        batch = {**batch, "token_type_ids": types}
    return jnp.concatenate([rows_BxPxE, x_BxLxE], axis=1), batch


def show_prefix(batch: Batch, hidden_BxLxH: jax.Array) -> Batch:
    """Return the batch of blocks whose input may have vectors before the text: all tokens see them.

    Args:
        batch: a batch of the text.
        hidden_BxLxH: the blocks' input `[B, P + L, H]`.
    """
    count = _count(batch, hidden_BxLxH)
    if not count:
        return batch
    mask = jnp.pad(batch["attention_mask"], ((0, 0), (count, 0)), constant_values=1)
    return {**batch, "attention_mask": mask}


def drop_prefix(hidden_BxLxH: jax.Array, batch: Batch) -> jax.Array:
    """Return the part of the blocks' output that belongs to the text `[B, L, H]`."""
    count = _count(batch, hidden_BxLxH)
    return hidden_BxLxH[:, count:] if count else hidden_BxLxH


def _count(batch: Batch, hidden_BxLxH: jax.Array) -> int:
    """Return P; a packed batch has no prefix."""
    if "attention_mask" not in batch:
        return 0
    return hidden_BxLxH.shape[1] - batch["attention_mask"].shape[1]
