"""What gradient-based algorithms share: a task reduced, a start, the inner loop, the query loss."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
import optax

from metajax.algorithms.checks import check_params, check_task, loss_and_aux
from metajax.algorithms.hypergrad import InnerLoss
from metajax.algorithms.inner_loop import InnerLoop, fold_in, inner_loop
from metajax.dtypes import is_float, widen
from metajax.tree import combine, path_name, paths, select
from metajax.types import (
    AdaptInfo,
    Batch,
    Key,
    LossFn,
    MetaInfo,
    Params,
    Reduce,
    Start,
    Task,
)

# Keys of the independent uses of one task's key.
START, INNER, QUERY = range(3)

Optimizer: TypeAlias = optax.GradientTransformation


class Adaptation(NamedTuple):
    """Adapting to a task, and judging the result; pure, differentiable functions of ONE task.

    Attributes:
        adapt: `(optimizer, params, support, rng) -> (adapted_params, AdaptInfo)`.
        query_loss: `(optimizer, params, task, rng) -> (loss, MetaInfo)`, the loss on the query
            set after adaptation. With `step_weights` [K], the sum of the losses after each step,
            so weighted.
    """

    adapt: Callable[[Optimizer, Params, Batch, Key | None], tuple[Params, AdaptInfo]]
    query_loss: Callable[..., tuple[jax.Array, MetaInfo]]


def adaptation(
    loss_fn: LossFn,
    num_steps: int,
    *,
    first_order: bool = False,
    low_memory: bool = False,
    unroll: bool = False,
    adapted: Callable[[str], bool] | None = None,
    reduce: Reduce | None = None,
    start: Start | None = None,
    make_loop: Callable[[InnerLoss], InnerLoop] | None = None,
) -> Adaptation:
    """Composes an algorithm's adaptation; see `metajax.maml` for the arguments.

    With `make_loop`, an algorithm brings an inner loop of its own.

    Raises:
        ValueError: num_steps is below 0; once it is used, `adapted` is true of no parameter.
        TypeError: once it is used, loss_fn does not return a scalar loss and aux.

    Examples:
        >>> import jax.numpy as jnp, metajax, optax
        >>> from metajax.algorithms.adaptation import adaptation
        >>> def loss_fn(params, batch, rng):
        ...     return jnp.sum((params - batch) ** 2) / 2, {}
        >>> learner = adaptation(loss_fn, num_steps=1)
        >>> task = metajax.Task(support=jnp.ones(1), query=jnp.ones(1))
        >>> float(learner.query_loss(optax.sgd(0.5), jnp.zeros(1), task, None)[0])
        0.125
    """

    def inner_loss(changed: Params, frozen: Params, batch: Batch, rng: Key | None) -> jax.Array:
        return loss_and_aux(loss_fn(combine(changed, frozen), batch, rng))[0]

    if start is not None and low_memory:
        start = jax.checkpoint(start)
    make_loop = make_loop or functools.partial(
        inner_loop,
        num_steps=num_steps,
        first_order=first_order,
        low_memory=low_memory,
        unroll=unroll,
    )
    loop = make_loop(inner_loss)

    def solve(
        optimizer: Optimizer,
        params: Params,
        support: Batch,
        rng: Key | None,
        watch: Callable[[Params], Any] | None = None,
    ) -> tuple[Params, AdaptInfo, Any]:
        if start is not None:
            params = start(params, support, fold_in(rng, START))
        params = check_params(params)
        changed, frozen = select(params, adapted or (lambda path: True))
        if num_steps and not jax.tree.leaves(changed):
            known = ", ".join(sorted(paths(params))[:8])
            raise ValueError(
                f"adapted (or ANIL's head) is true of none of {known}: an inner step would change "
                "nothing"
            )
        if num_steps:
            _check_floats(changed)
        changed, info, watched = loop(
            optimizer,
            changed,
            frozen,
            support,
            fold_in(rng, INNER),
            watch=watch and (lambda changed: watch(combine(changed, frozen))),
        )
        return combine(changed, frozen), info, watched

    def adapt(
        optimizer: Optimizer, params: Params, support: Batch, rng: Key | None
    ) -> tuple[Params, AdaptInfo]:
        if reduce is None:
            return solve(optimizer, params, support, rng)[:2]
        params, task, restore = reduce(params, Task(support, None))
        params, info, _ = solve(optimizer, params, task.support, rng)
        return restore(params), info

    def query_loss(
        optimizer: Optimizer,
        params: Params,
        task: Task,
        rng: Key | None,
        step_weights: jax.Array | None = None,
    ) -> tuple[jax.Array, MetaInfo]:
        if reduce is not None:
            params, task, _ = reduce(params, task)

        def judge(params: Params) -> tuple[jax.Array, Any]:
            return loss_and_aux(loss_fn(params, task.query, fold_in(rng, QUERY)))

        if step_weights is None:
            params, info, _ = solve(optimizer, params, task.support, rng)
            loss, aux = judge(params)
            return loss, MetaInfo(loss, aux, info.support_loss)
        _, info, judged = solve(optimizer, params, task.support, rng, judge)
        loss, aux = jax.tree.map(lambda leaf: leaf[-1], judged)
        return widen(judged[0]) @ step_weights, MetaInfo(loss, aux, info.support_loss)

    return Adaptation(adapt, query_loss)


def meta_gradient(
    query_loss: Callable[[Params, Task, Key | None], tuple[jax.Array, MetaInfo]],
    *,
    through: Optimizer | None = None,
) -> Callable[[Params, Task, Key | None], tuple[Params, MetaInfo]]:
    """The gradient of `(meta_params, task, rng) -> (loss, MetaInfo)`, an algorithm's `meta_grad`.

    Of leaves that are not floating-point it is a zero of JAX's dtype float0.

    Args:
        query_loss: as `Adaptation` has it, of one optimizer.
        through: the inner optimizer, if its updates are differentiated.
    """
    gradient = jax.grad(query_loss, has_aux=True, allow_int=True)

    def meta_grad(meta_params: Params, task: Task, rng: Key | None) -> tuple[Params, MetaInfo]:
        if through is not None:
            _warn_of_infinite_slope(through)
        return gradient(check_params(meta_params), check_task(task), rng)

    return meta_grad


def _warn_of_infinite_slope(optimizer: Optimizer) -> None:
    """Warns if an update has no finite derivative where an entry of the gradient is zero."""
    params, grads = np.ones(2, np.float32), np.array([0, 1], np.float32)
    try:
        with jax.ensure_compile_time_eval():
            slope = jax.grad(lambda g: optimizer.update(g, optimizer.init(params), params)[0].sum())
            finite = np.isfinite(slope(grads)).all()
    except Exception:  # Traced rates have no value yet, and some optimizers want other parameters.
        return
    if not finite:
        warnings.warn(
            "inner_optimizer: its update has no finite derivative where a gradient is 0, so the "
            "meta-gradient may be nan; give Adam eps_root (`optax.adam(rate, eps_root=1e-8)`) or "
            "set first_order=True",
            stacklevel=3,
        )


def _check_floats(adapted: Params) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(adapted):
        if not is_float(leaf):
            raise TypeError(
                f"params: leaf {path_name(path)!r} is {leaf.dtype}, and inner steps change only "
                "floating-point parameters; leave it out with `adapted`, or keep it out of params "
                "(flax.nnx: `nnx.split(model, nnx.Param, ...)`)"
            )
