"""Model-agnostic meta-learning (Finn, Abbeel & Levine 2017, arXiv:1703.03400)."""

from collections.abc import Callable
from typing import Unpack

import optax

from metajax.algorithms.adaptation import Adaptation, Engine
from metajax.types import InitFn, LossFn, MetaAlgorithm, Reparametrize


def maml(
    loss_fn: LossFn,
    inner_optimizer: optax.GradientTransformation,
    num_steps: int,
    *,
    first_order: bool = False,
    low_memory: bool = False,
    unroll: bool = False,
    trainable: Callable[[str], bool] | None = None,
    reparametrize: Reparametrize | None = None,
    init_fn: InitFn | None = None,
) -> MetaAlgorithm:
    """Learns an initialisation from which few gradient steps solve a task.

    The meta-gradient is that of `loss(adapted(meta_params), query)` (equation 1 of the paper),
    exact: through the inner steps, second derivatives included.

    Args:
        loss_fn: `(params, batch, rng) -> (loss, aux)`, for support and query alike.
        inner_optimizer: any optax optimizer. Adam needs `eps_root` (`optax.adam(rate,
            eps_root=1e-8)`) unless first_order: its derivative is not finite where a gradient is
            zero, and neither is the meta-gradient then.
        num_steps: inner steps, K >= 0.
        first_order: leave out the second derivatives (FOMAML, section 5.2).
        low_memory: exact too, but what an inner step leaves behind no longer grows with its
            activations (see `metajax.algorithms.inner_loop`); about half as fast. `loss_fn` must
            then not close over anything that depends on the meta-parameters.
        unroll: compile the inner steps one after the other in place of a loop: a tenth faster on a
            CPU, more to compile.
        trainable: predicate on a parameter's path (`layers/qkv/kernel`); true if the inner loop
            updates it. By default it updates all. The outer loop trains the others too.
        reparametrize: `(params, task) -> (params, task, undo)`: the same task in terms of fewer
            parameters, so that what the inner steps cannot change is computed once.
            `undo(params)` returns to the original ones.
        init_fn: `(params, support, rng) -> params`, where the inner loop starts. By default it
            starts at the meta-parameters; a head made of class prototypes is another start. The
            meta-gradient passes through it.

    Returns:
        A MetaAlgorithm whose meta_params are the params given.

    Raises:
        ValueError: num_steps is below 0; once it is used, `trainable` is true of no parameter.
        TypeError: once it is used, loss_fn does not return a scalar loss and aux.

    Examples:
        >>> import jax, jax.numpy as jnp, metajax, optax
        >>> def loss_fn(params, batch, rng):
        ...     return jnp.sum((params - batch) ** 2) / 2, {}
        >>> algorithm = metajax.maml(loss_fn, optax.sgd(0.5), num_steps=1)
        >>> task = metajax.Task(support=jnp.ones(2), query=jnp.ones(2))
        >>> grads, info = algorithm.meta_grad(jnp.zeros(2), task, None)
        >>> grads
        Array([-0.25, -0.25], dtype=float32)
    """
    return Adaptation(
        loss_fn,
        num_steps,
        first_order=first_order,
        low_memory=low_memory,
        unroll=unroll,
        trainable=trainable,
        reparametrize=reparametrize,
        init_fn=init_fn,
    ).algorithm(inner_optimizer)


def anil(
    loss_fn: LossFn,
    inner_optimizer: optax.GradientTransformation,
    num_steps: int,
    *,
    head: Callable[[str], bool],
    reparametrize: Reparametrize | None = None,
    init_fn: InitFn | None = None,
    **engine: Unpack[Engine],
) -> MetaAlgorithm:
    """Almost no inner loop: the inner steps change the head alone (Raghu et al. 2020).

    https://arxiv.org/abs/1909.09157, section 4. The outer loop trains all.

    Args:
        loss_fn: as for `maml`.
        inner_optimizer: as for `maml`.
        num_steps: K >= 0.
        head: predicate on a parameter's path; true if it belongs to the head.
        reparametrize: as for `maml`.
        init_fn: as for `maml`.
        **engine: `first_order`, `low_memory` and `unroll`, as for `maml`.

    Returns:
        A MetaAlgorithm whose meta_params are the params given.

    Raises:
        ValueError: num_steps is below 0; once it is used, `head` is true of no parameter.
        TypeError: once it is used, loss_fn does not return a scalar loss and aux.

    Examples:
        >>> import jax.numpy as jnp, metajax, optax
        >>> def loss_fn(params, batch, rng):
        ...     return jnp.sum((params["body"] * params["head"] - batch) ** 2) / 2, {}
        >>> algorithm = metajax.anil(
        ...     loss_fn, optax.sgd(0.5), 1, head=lambda path: path == "head")
        >>> params = {"body": jnp.ones(1), "head": jnp.zeros(1)}
        >>> adapted, _ = algorithm.adapt(params, jnp.ones(1), None)
        >>> float(adapted["body"][0]), float(adapted["head"][0])
        (1.0, 0.5)
    """
    return maml(
        loss_fn,
        inner_optimizer,
        num_steps,
        trainable=head,
        reparametrize=reparametrize,
        init_fn=init_fn,
        **engine,
    )
