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
    unroll: bool | None = None,
    trainable: Callable[[str], bool] | None = None,
    frozen: Callable[[str], bool] | None = None,
    reparametrize: Reparametrize | None = None,
    init_fn: InitFn | None = None,
    stream: bool = False,
    micro_batches: int = 1,
) -> MetaAlgorithm:
    """MAML: learn an initialization from which a few gradient steps solve a task.

    The meta-gradient is the exact gradient of `loss(adapted(meta_params), query)` (equation 1 of
    the paper). It passes through the inner steps and includes second derivatives.

    Args:
        loss_fn: `(params, batch, rng) -> (loss, aux)`, for the support and the query set.
        inner_optimizer: any optax optimizer. Unless first_order, Adam needs `eps_root`
            (`optax.adam(rate, eps_root=1e-8)`). Otherwise its derivative and the meta-gradient are
            not finite if an entry of a gradient is zero.
        num_steps: inner steps, K >= 0.
        first_order: whether to omit the second derivatives (FOMAML, section 5.2).
        low_memory: whether to store less per inner step (see `metajax.algorithms.inner_loop`). The
            result is exact too, at about half the speed on a CPU. `loss_fn` must not close over
            anything that depends on the meta-parameters, and its gradient must be that of a
            function (no clipping on the way back, say).
        unroll: whether to compile the inner steps one after the other instead of a loop. This is
            10% faster on a CPU, but takes longer to compile. By default only on a CPU, for up to
            five steps with a loss of `metajax.models` that chooses `reparametrize` (see there).
        trainable: predicate on a parameter's path (`layers/qkv/kernel`); true if the inner loop
            updates it. By default the inner loop updates all parameters. The outer loop also trains
            those that the inner loop does not update.
        frozen: predicate on a parameter's path; true if neither loop updates it. Its meta-gradient
            is zero. Pass the same predicate to `metajax.outer_loop`, which then has no optimizer
            state for it. By default no parameter is frozen.
        reparametrize: `(params, task) -> (params, task, undo)`. It expresses the task in fewer
            parameters, so that results that do not depend on the inner steps are computed once.
            `undo(params)` returns the original parameters. By default the losses of
            `metajax.models` choose it: separate blocks, and only the embedding rows that the task
            mentions. They do not with `trainable`, `frozen`, `low_memory`, another `init_fn` than
            those of `metajax.models`, or an optimizer that depends on how parameters are laid out
            (weight decay, norms of single arrays, masks).
        init_fn: `(params, support, rng) -> params`, the start of the inner loop. It can add a head
            made of class prototypes, for example. The meta-gradient passes through it. By default
            the inner loop starts at the meta-parameters.
        stream: whether each inner step has its own batch. The leaves of the support set are then
            [num_steps, ...], and step k takes batch k. `reparametrize` and `init_fn` are called
            with the whole stream.
        micro_batches: M, the number of equal parts of a step's batch. Their gradients are computed
            one part at a time, in less memory, and averaged. All leaves of the batch must have the
            examples as first axis. The result is exact for losses that are means over equally
            weighted examples, and not exact if the parts have different amounts of padding. Each
            part has its own random key.

    Returns:
        A MetaAlgorithm whose meta_params are the given params.

    Raises:
        ValueError: num_steps is below 0 or micro_batches below 1, or, when called, `trainable` is
            false for all parameters that are not frozen, or the shape of a leaf of the support set
            does not fit `stream` or `micro_batches`.
        TypeError: when called, loss_fn does not return a scalar loss and aux.

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
        frozen=frozen,
        reparametrize=reparametrize,
        init_fn=init_fn,
        stream=stream,
        micro_batches=micro_batches,
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
    """ANIL, "almost no inner loop": MAML whose inner steps update only the head.

    See section 4 of Raghu et al. 2020, https://arxiv.org/abs/1909.09157. The outer loop trains all
    parameters.

    Args:
        loss_fn: as for `maml`.
        inner_optimizer: as for `maml`.
        num_steps: K >= 0.
        head: predicate on a parameter's path; true if it belongs to the head.
        reparametrize: as for `maml`.
        init_fn: as for `maml`.
        **engine: `first_order`, `low_memory`, `unroll`, `stream` and `micro_batches`, as for
            `maml`.

    Returns:
        A MetaAlgorithm whose meta_params are the given params.

    Raises:
        ValueError: num_steps is below 0, or, when called, `head` is false for all parameters.
        TypeError: when called, loss_fn does not return a scalar loss and aux.

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
