"""Ordinary supervised training, as a MetaAlgorithm without an inner loop."""

import jax
import jax.numpy as jnp

from metajax.algorithms.adaptation import meta_gradient
from metajax.algorithms.checks import loss_and_aux
from metajax.types import (
    AdaptInfo,
    Batch,
    Key,
    LossFn,
    MetaAlgorithm,
    MetaInfo,
    Params,
    Task,
)


def supervised(loss_fn: LossFn) -> MetaAlgorithm:
    """Supervised training on the query sets, the baseline for meta-learning.

    It makes the outer loop usable for pretraining and fine-tuning. A batch of examples is a task
    without a support set (`Task(support=None, query=batch)`). Several of these tasks per step are
    gradient accumulation.

    Args:
        loss_fn: `(params, batch, rng) -> (loss, aux)`.

    Returns:
        A MetaAlgorithm whose meta_params are the given params, and whose `adapt` returns them
        unchanged.

    Raises:
        TypeError: when called, loss_fn does not return a scalar loss and aux.

    Examples:
        >>> import jax.numpy as jnp, metajax
        >>> def loss_fn(params, batch, rng):
        ...     return jnp.sum((params - batch) ** 2) / 2, {}
        >>> task = metajax.Task(support=None, query=jnp.ones(2))
        >>> metajax.supervised(loss_fn).meta_grad(jnp.zeros(2), task, None)[0].tolist()
        [-1.0, -1.0]
    """

    def adapt(params: Params, support: Batch, rng: Key | None) -> tuple[Params, AdaptInfo]:
        return params, AdaptInfo(jnp.zeros(0))

    def query_loss(params: Params, task: Task, rng: Key | None) -> tuple[jax.Array, MetaInfo]:
        loss, aux = loss_and_aux(loss_fn(params, task.query, rng))
        return loss, MetaInfo(loss, aux, jnp.zeros(0))

    return MetaAlgorithm(
        init=lambda params: params,
        adapt=adapt,
        meta_grad=meta_gradient(query_loss),
    )


def split_batch(batch: Batch, parts: int) -> Task:
    """Split one batch into P = `parts` tasks of equal size: [B, ...] to [P, B / P, ...].

    Raises:
        ValueError: parts does not divide B.
    """

    def split(leaf: jax.Array) -> jax.Array:
        if leaf.shape[0] % parts:
            raise ValueError(
                f"batch: {leaf.shape[0]} examples cannot be split into {parts} equal parts; use a "
                f"multiple of {parts}"
            )
        return leaf.reshape(parts, leaf.shape[0] // parts, *leaf.shape[1:])

    return Task(support=None, query=jax.tree.map(split, batch))
