"""Reptile (Nichol, Achiam & Schulman 2018, arXiv:1803.02999)."""

import functools

import jax
import optax

from metajax.algorithms.adaptation import QUERY, Adaptation
from metajax.algorithms.checks import check_params, check_task, loss_and_aux
from metajax.algorithms.inner_loop import fold_in
from metajax.tree import extend
from metajax.types import (
    InitFn,
    Key,
    LossFn,
    MetaAlgorithm,
    MetaInfo,
    Params,
    Reparametrize,
    Task,
)


def reptile(
    loss_fn: LossFn,
    inner_optimizer: optax.GradientTransformation,
    num_steps: int,
    *,
    unroll: bool = False,
    reparametrize: Reparametrize | None = None,
    init_fn: InitFn | None = None,
    stream: bool = False,
    micro_batches: int = 1,
) -> MetaAlgorithm:
    """Reptile: move the initialization towards the adapted parameters of each task.

    The meta-gradient is `params - adapted` (section 2 of the paper), so that outer SGD at rate
    epsilon is the paper's update. It needs no second derivatives. The query set does not affect
    the meta-gradient; only its loss is reported.

    Args:
        loss_fn: `(params, batch, rng) -> (loss, aux)`.
        inner_optimizer: any optax optimizer.
        num_steps: K >= 0. Use more than one step, because one step is ordinary training.
        unroll: as for `metajax.maml`.
        reparametrize: as for `metajax.maml`.
        init_fn: as for `metajax.maml`. Parameters that it adds have no meta-gradient.
        stream: as for `metajax.maml`.
        micro_batches: as for `metajax.maml`.

    Returns:
        A MetaAlgorithm whose meta_params are the given params.

    Raises:
        ValueError: num_steps is below 0, or micro_batches below 1.
        TypeError: when called, loss_fn does not return a scalar loss and aux.

    Examples:
        >>> import jax.numpy as jnp, metajax, optax
        >>> def loss_fn(params, batch, rng):
        ...     return jnp.sum((params - batch) ** 2) / 2, {}
        >>> algorithm = metajax.reptile(loss_fn, optax.sgd(0.5), num_steps=2)
        >>> task = metajax.Task(support=jnp.ones(1), query=jnp.ones(1))
        >>> algorithm.meta_grad(jnp.zeros(1), task, None)[0]
        Array([-0.75], dtype=float32)
    """
    adaptation = Adaptation(
        loss_fn,
        num_steps,
        first_order=True,
        unroll=unroll,
        reparametrize=reparametrize,
        init_fn=init_fn,
        stream=stream,
        micro_batches=micro_batches,
    )
    adapt = functools.partial(adaptation.adapt, inner_optimizer)

    def meta_grad(params: Params, task: Task, rng: Key | None) -> tuple[Params, MetaInfo]:
        params = check_params(params)
        adapted, info = adapt(params, check_task(task).support, rng)
        loss, aux = loss_and_aux(loss_fn(adapted, task.query, fold_in(rng, QUERY)))
        moved = jax.tree.map(lambda a, b: a - b, params, extend(adapted, params, None))
        return moved, MetaInfo(loss, aux, info.support_loss)

    return MetaAlgorithm(init=lambda params: params, adapt=adapt, meta_grad=meta_grad)
