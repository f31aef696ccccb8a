"""Test-time training: meta-learning for parameters that adapt to a stream."""
# ruff: noqa: PT028 -- the name of the method begins like that of a test.

import functools
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import optax

from metajax.algorithms.adaptation import Adaptation, meta_gradient
from metajax.algorithms.inner_loop import inner_loop
from metajax.dtypes import widen
from metajax.types import (
    Batch,
    InitFn,
    Key,
    LossFn,
    MetaAlgorithm,
    MetaInfo,
    Params,
    Reparametrize,
    Task,
)

# From leaves [K, ...] to the weights of K chunks.
ChunkWeights: TypeAlias = Callable[[Batch], jax.Array]


def test_time_training(
    loss_fn: LossFn,
    inner_optimizer: optax.GradientTransformation,
    num_steps: int | None = None,
    *,
    first_order: bool = False,
    truncate: int | None = None,
    low_memory: bool = False,
    unroll: bool = False,
    micro_batches: int = 1,
    chunk_weights: ChunkWeights | None = None,
    trainable: Callable[[str], bool] | None = None,
    frozen: Callable[[str], bool] | None = None,
    reparametrize: Reparametrize | None = None,
    init_fn: InitFn | None = None,
) -> MetaAlgorithm:
    """Learn parameters that adapt to a stream while they are evaluated on it.

    The support set is a stream of K chunks. The meta-loss is the mean of the losses on the chunks,
    each before the step on it. For a pretrained model this loss is dynamic evaluation (Krause et
    al. 2018, arXiv:1709.07432). Test-time training learns the parameters through the steps (Sun et
    al. 2023, arXiv:2310.13807; Sun et al. 2024, arXiv:2407.04620). In these two papers the steps
    minimize a self-supervised loss; here they minimize `loss_fn`.

    Args:
        loss_fn: `(params, batch, rng) -> (loss, aux)`.
        inner_optimizer: as for `metajax.maml`.
        num_steps: K >= 1, the number of chunks. None: that of each support set.
        first_order: whether to omit the second derivatives, as for `metajax.maml`.
        truncate: T: gradients pass through the last T steps only. The gradients of earlier steps
            are constants. The meta-gradient is then not exact, but needs less time and memory. 0 is
            first order. None: exact, unless first_order.
        low_memory: as for `metajax.maml`.
        unroll: as for `metajax.maml`.
        micro_batches: as for `metajax.maml`, but applied to a chunk.
        chunk_weights: `(chunks) -> [K]` from leaves [K, ...], the weights of the chunks' losses in
            the mean, such as their numbers of tokens. By default they are equal.
        trainable: as for `metajax.maml`.
        frozen: as for `metajax.maml`.
        reparametrize: as for `metajax.maml`. It is called with the whole stream.
        init_fn: as for `metajax.maml`. It is called with the whole stream.

    Returns:
        A MetaAlgorithm whose meta_params are the given params. The support set of a task has leaves
        [K, ...]. The query set is None or one more chunk: the meta-loss is then the mean of K + 1
        losses, the last one after all steps. In MetaInfo, `support_loss` [K] has the losses before
        the steps, `query_loss` is the meta-loss, and `query_aux` is that of the query set, or {}.

    Raises:
        ValueError: num_steps or micro_batches is below 1, or truncate below 0 or given with
            first_order, or, when called, a leaf of the support set is not [K, ...], or `trainable`
            is false for all parameters.
        TypeError: when called, loss_fn does not return a scalar loss and aux.

    Examples:
        >>> import jax.numpy as jnp, metajax, optax
        >>> def loss_fn(params, batch, rng):
        ...     return jnp.sum((params - batch) ** 2) / 2, {}
        >>> algorithm = metajax.test_time_training(loss_fn, optax.sgd(0.5), num_steps=2)
        >>> task = metajax.Task(support=jnp.array([[1.0], [2.0]]), query=None)
        >>> grads, info = algorithm.meta_grad(jnp.zeros(1), task, None)
        >>> info.support_loss.tolist(), float(info.query_loss), grads.tolist()
        ([0.5, 1.125], 0.8125, [-0.875])
    """
    if first_order and truncate is not None:
        raise ValueError(f"first_order=True is truncate=0, but truncate is {truncate}; give one")

    def make(num_steps: int) -> MetaAlgorithm:
        if num_steps < 1:
            raise ValueError(f"num_steps is {num_steps}; give a number of chunks >= 1")
        constant = 0 if first_order else truncate
        make_loop = functools.partial(
            inner_loop,
            num_steps=num_steps,
            low_memory=low_memory,
            unroll=unroll,
            stream=True,
            micro_batches=micro_batches,
            differentiable_loss=True,
            truncate=constant,
        )
        adaptation = Adaptation(
            loss_fn,
            num_steps,
            low_memory=low_memory,
            trainable=trainable,
            frozen=frozen,
            reparametrize=reparametrize,
            init_fn=init_fn,
            stream=True,
            make_loop=make_loop,
        )
        meta_loss = functools.partial(_meta_loss, adaptation, inner_optimizer, chunk_weights)
        through = None if constant == 0 else inner_optimizer
        algorithm = adaptation.algorithm(inner_optimizer)
        return algorithm._replace(meta_grad=meta_gradient(meta_loss, through=through))

    if num_steps is not None:
        return make(num_steps)
    return MetaAlgorithm(
        init=lambda params: params,
        adapt=lambda params, support, rng: make(_length(support)).adapt(params, support, rng),
        meta_grad=lambda params, task, rng: make(_length(task.support)).meta_grad(
            params, task, rng
        ),
    )


def _length(support: Batch) -> int:
    """Return K of a stream."""
    sizes = [jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(support)]
    if not sizes or sizes[0] == ():
        raise ValueError("support: is not a stream; give leaves [K, ...], one chunk per inner step")
    return sizes[0][0]


def _meta_loss(
    adaptation: Adaptation,
    inner_optimizer: optax.GradientTransformation,
    chunk_weights: ChunkWeights | None,
    params: Params,
    task: Task,
    rng: Key | None,
) -> tuple[jax.Array, MetaInfo]:
    """Return the mean loss on the chunks before the steps, and on the query set after all."""
    if task.query is None:
        losses = adaptation.adapt(inner_optimizer, params, task.support, rng)[1].support_loss
        mean = _mean_of(chunk_weights, losses, task.support)
        return mean, MetaInfo(mean, {}, losses)
    loss, info = adaptation.query_loss(inner_optimizer, params, task, rng)
    last = jax.tree.map(lambda leaf: leaf[None], task.query)
    mean = _mean_of(chunk_weights, jnp.append(info.support_loss, loss), task.support, last)
    return mean, info._replace(query_loss=mean)


def _mean_of(chunk_weights: ChunkWeights | None, losses: jax.Array, *chunks: Batch) -> jax.Array:
    wide = widen(losses)
    if chunk_weights is None:
        return wide.mean()
    weights = jnp.concatenate(list(map(chunk_weights, chunks))).astype(wide.dtype)
    return (weights * wide).sum() / jnp.maximum(weights.sum(), 1e-12)
