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
        The parameters with `params["prefix"]["vectors"]` `[P, E]`. The model then unpacks packed
        batches, one text per row, because each text needs its own vectors.

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


def prefix_length(params: Params) -> int:
    """Return P, the number of vectors before the text; 0 if there are none.

    Args:
        params: parameters of a `metajax.Transformer`.
    """
    return params["prefix"]["vectors"].shape[0] if "prefix" in params else 0


def prepend(vectors_PxE: jax.Array, x_BxLxE: jax.Array, batch: Batch) -> tuple[jax.Array, Batch]:
    """Put vectors before the embeddings of tokens.

    Args:
        vectors_PxE: the vectors.
        x_BxLxE: the embeddings.
        batch: their batch.

    Returns:
        `[B, P + L, E]`, and the batch with `token_type_ids` `[B, P + L]`, 0 for the vectors.

    Raises:
        InputError: the batch is packed and cannot be unpacked.
    """
    if "example_ids" in batch:
        raise InputError(
            "prefix: rows of packed documents have no place for vectors before each text; give "
            "padded batches"
        )
    count, width = vectors_PxE.shape
    shape = (x_BxLxE.shape[0], count, width)
    rows_BxPxE = jnp.broadcast_to(vectors_PxE.astype(x_BxLxE.dtype), shape)
    if "token_type_ids" in batch:
        types = jnp.pad(batch["token_type_ids"], ((0, 0), (count, 0)))
        batch = {**batch, "token_type_ids": types}
    return jnp.concatenate([rows_BxPxE, x_BxLxE], axis=1), batch


def unpack(batch: Batch) -> Batch:
    """Return a batch with one text per row, from a packed batch `[R, L]`.

    Args:
        batch: a packed batch of a `metajax.Transformer`, with `first_token` `[B]`.

    Returns:
        The batch with `input_ids`, `attention_mask` and `token_type_ids` `[B, L]` in place of those
        that describe the packing.
    """
    ids_RxL, first_B = batch["example_ids"], batch["first_token"]
    # Of each text: its tokens, and then tokens of others, which are masked.
    index_BxL = first_B[:, None] + jnp.arange(ids_RxL.shape[1])
    index_BxL = jnp.minimum(index_BxL, ids_RxL.size - 1)
    own_BxL = ids_RxL.reshape(-1)[index_BxL] == jnp.arange(len(first_B))[:, None]
    unpacked = {"attention_mask": own_BxL.astype(jnp.int32)}
    for name in ("input_ids", "token_type_ids"):
        if name in batch:
            unpacked[name] = jnp.where(own_BxL, batch[name].reshape(-1)[index_BxL], 0)
    packed = ("input_ids", "token_type_ids", "position_ids", "example_ids", "first_token")
    return {key: leaf for key, leaf in batch.items() if key not in packed} | unpacked


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
