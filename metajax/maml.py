"""Model-agnostic meta-learning (Finn, Abbeel & Levine 2017, arXiv:1703.03400)."""

from collections.abc import Callable

import jax
import optax

from metajax.inner import fold_in, inner_loop
from metajax.types import AdaptInfo, Batch, Key, LossFn, MetaAlgorithm, MetaInfo, Params, Task

# Keys of the independent uses of one task's key.
_START, _INNER, _QUERY = range(3)

Start = Callable[[Params, Batch, Key | None], Params]


def maml(
    loss_fn: LossFn,
    inner_optimizer: optax.GradientTransformation,
    num_steps: int,
    *,
    first_order: bool = False,
    start: Start | None = None,
) -> MetaAlgorithm:
    """Learns an initialisation from which few gradient steps solve a task.

    The meta-gradient is that of `loss(adapted(meta_params), query)` (equation 1 of the paper),
    exact: through the inner steps, second derivatives included.

    Args:
        loss_fn: `(params, batch, rng) -> (loss, aux)`, for support and query alike.
        inner_optimizer: any optax optimizer; see `metajax.inner.inner_loop` for Adam.
        num_steps: inner steps, K >= 0.
        first_order: leave out the second derivatives (FOMAML, section 5.2).
        start: `(meta_params, support, rng) -> params`, where the inner loop starts if that is
            not at the meta-parameters themselves: a head made of the support set's class
            prototypes, for instance. It is differentiated through.

    Returns:
        A MetaAlgorithm whose meta_params are the params given.

    Example:
        >>> import jax, jax.numpy as jnp, metajax, optax
        >>> def loss_fn(params, batch, rng):
        ...     return jnp.sum((params - batch) ** 2) / 2, {}
        >>> algorithm = metajax.maml(loss_fn, optax.sgd(0.5), num_steps=1)
        >>> task = metajax.Task(support=jnp.ones(2), query=jnp.ones(2))
        >>> grads, info = algorithm.meta_grad(jnp.zeros(2), task, None)
        >>> grads
        Array([-0.25, -0.25], dtype=float32)
    """
    loop = inner_loop(loss_fn, inner_optimizer, num_steps, first_order=first_order)

    def adapt(meta_params: Params, support: Batch, rng: Key | None) -> tuple[Params, AdaptInfo]:
        params = meta_params
        if start is not None:
            params = start(meta_params, support, fold_in(rng, _START))
        return loop(params, support, fold_in(rng, _INNER))

    def query_loss(meta_params: Params, task: Task, rng: Key | None) -> tuple[jax.Array, MetaInfo]:
        params, adapt_info = adapt(meta_params, task.support, rng)
        loss, aux = loss_fn(params, task.query, fold_in(rng, _QUERY))
        return loss, MetaInfo(loss, aux, adapt_info.support_loss)

    return MetaAlgorithm(
        init=lambda params: params,
        adapt=adapt,
        meta_grad=jax.grad(query_loss, has_aux=True),
    )
