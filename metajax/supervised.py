"""Ordinary supervised training, as a MetaAlgorithm without an inner loop."""

import jax
import jax.numpy as jnp

from metajax.types import AdaptInfo, Batch, Key, LossFn, MetaAlgorithm, MetaInfo, Params, Task


def supervised(loss_fn: LossFn) -> MetaAlgorithm:
    """Trains on the query sets alone: what meta-learning has to beat.

    One outer loop then serves pretraining and fine-tuning too: a batch of examples is a "task"
    without a support set (`Task(support=None, query=batch)`), several such are gradient
    accumulation.

    Args:
        loss_fn: `(params, batch, rng) -> (loss, aux)`.
    """

    def adapt(params: Params, support: Batch, rng: Key | None) -> tuple[Params, AdaptInfo]:
        return params, AdaptInfo(jnp.zeros(0))

    def query_loss(params: Params, task: Task, rng: Key | None) -> tuple[jax.Array, MetaInfo]:
        loss, aux = loss_fn(params, task.query, rng)
        return loss, MetaInfo(loss, aux, jnp.zeros(0))

    return MetaAlgorithm(
        init=lambda params: params,
        adapt=adapt,
        meta_grad=jax.grad(query_loss, has_aux=True),
    )
