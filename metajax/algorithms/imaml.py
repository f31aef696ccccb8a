"""Implicit MAML (Rajeswaran, Finn, Kakade & Levine 2019, arXiv:1909.04630)."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import optax
from jax.scipy.sparse.linalg import cg

from metajax.algorithms.adaptation import adaptation, meta_gradient
from metajax.algorithms.hypergrad import InnerLoss
from metajax.algorithms.inner_loop import InnerLoop, inner_loop
from metajax.dtypes import is_float, narrow, widen
from metajax.tree import combine, partition
from metajax.types import AdaptInfo, Batch, Key, LossFn, MetaAlgorithm, Params, Reduce, Start

Solver = Literal["cg", "neumann"]


def imaml(
    loss_fn: LossFn,
    inner_optimizer: optax.GradientTransformation,
    num_steps: int,
    *,
    strength: float = 1.0,
    solver: Solver = "cg",
    solver_steps: int = 5,
    unroll: bool = False,
    adapted: Callable[[str], bool] | None = None,
    reduce: Reduce | None = None,
    start: Start | None = None,
) -> MetaAlgorithm:
    """Adapts under a pull back to the start, and differentiates where that ends, not how.

    The inner loop descends `support loss + strength / 2 |adapted - start|^2` (equation 3); at
    its minimum the meta-gradient is `(I + H / strength)^-1` times the gradient of the query loss
    there (lemma 1), H being the Hessian of the support loss. Nothing of the inner steps is kept.

    Args:
        loss_fn: `(params, batch, rng) -> (loss, aux)`.
        inner_optimizer: any optax optimizer.
        num_steps: K; enough to come near the minimum, for the meta-gradient is that of the
            minimum.
        strength: lambda, > 0.
        solver: "cg", conjugate gradient, or "neumann", the series sum (-H / strength)^i, which
            converges only where H is smaller than the strength.
        solver_steps: how many Hessian-vector products.
        unroll: as for `metajax.maml`.
        adapted: as for `metajax.maml`; what is not adapted gets its meta-gradient through the
            minimum too.
        reduce: as for `metajax.maml`.
        start: as for `metajax.maml`.

    Returns:
        A MetaAlgorithm whose meta_params are the params given.

    Raises:
        ValueError: num_steps or solver_steps is below 1, strength not above 0, or solver neither
            of the two.
        TypeError: once it is used, loss_fn does not return a scalar loss and aux.

    Examples:
        >>> import jax.numpy as jnp, metajax, optax
        >>> def loss_fn(params, batch, rng):
        ...     return jnp.sum((params - batch) ** 2) / 2, {}
        >>> algorithm = metajax.imaml(loss_fn, optax.sgd(0.5), num_steps=20)
        >>> task = metajax.Task(support=jnp.ones(1), query=jnp.ones(1))
        >>> round(float(algorithm.meta_grad(jnp.zeros(1), task, None)[0][0]), 3)
        -0.25
    """
    if strength <= 0:
        raise ValueError(f"strength is {strength}: give a number above 0")
    if num_steps < 1 or solver_steps < 1:
        raise ValueError(
            f"num_steps is {num_steps} and solver_steps is {solver_steps}: give 1 or more of both"
        )
    if solver not in ("cg", "neumann"):
        raise ValueError(f"solver is {solver!r}: choose cg or neumann")
    solve = functools.partial(
        _conjugate_gradient if solver == "cg" else _neumann, steps=solver_steps
    )

    def make_loop(inner_loss: InnerLoss) -> InnerLoop:
        return _implicit_loop(inner_loss, num_steps, strength, solve, unroll)

    learner = adaptation(
        loss_fn, num_steps, make_loop=make_loop, adapted=adapted, reduce=reduce, start=start
    )
    return MetaAlgorithm(
        init=lambda params: params,
        adapt=functools.partial(learner.adapt, inner_optimizer),
        meta_grad=meta_gradient(functools.partial(learner.query_loss, inner_optimizer)),
    )


def _implicit_loop(
    loss_fn: InnerLoss, num_steps: int, strength: float, solve: Callable[..., Any], unroll: bool
) -> InnerLoop:
    """An inner loop whose derivative is that of the minimum it comes near; `watch` sees that."""
    descend = inner_loop(loss_fn, num_steps, first_order=True, unroll=unroll)

    def run(
        optimizer: optax.GradientTransformation,
        start: Params,
        frozen: Params,
        batch: Batch,
        rng: Key | None,
        watch: Callable[[Params], Any] | None = None,
    ) -> tuple[Params, AdaptInfo, Any]:
        # start, the floats of frozen and batch, and what has no gradient.
        def minimum(start: Params, smooth: Any, rest: Any) -> tuple[Params, AdaptInfo]:
            (frozen, batch), rng = combine(smooth, rest[0]), rest[1]
            pulled = optax.chain(_pull_to(start, strength), optimizer)
            return descend(pulled, start, frozen, batch, rng)[:2]

        def keep(start: Params, smooth: Any, rest: Any) -> tuple[Any, Any]:
            adapted, info = minimum(start, smooth, rest)
            return (adapted, info), (adapted, smooth, rest)

        def through_minimum(residuals: Any, cotangents: Any) -> tuple[Params, Any, None]:
            adapted, smooth, rest = residuals

            def loss_of(adapted: Params, smooth: Any) -> jax.Array:
                (frozen, batch), rng = combine(smooth, rest[0]), rest[1]
                return loss_fn(adapted, frozen, batch, rng)

            def along(direction: Params) -> tuple[Params, Any]:
                """The second derivatives along a direction: by adapted twice, and mixed."""
                gradient = jax.grad(loss_of, argnums=(0, 1))
                product = jax.jvp(lambda p: gradient(p, smooth), (adapted,), (direction,))[1]
                return optax.tree.scale(1 / strength, product)

            def matrix(direction: Params) -> Params:
                return widen(along(narrow(direction, adapted))[0])

            to_start = narrow(solve(matrix, widen(cotangents[0])), adapted)
            # The minimum moves with what it is a minimum of: the implicit function theorem.
            return to_start, optax.tree.scale(-1, along(to_start)[1]), None

        implicit = jax.custom_vjp(minimum)
        implicit.defvjp(keep, through_minimum)
        smooth, rest = partition((frozen, batch), is_float)
        adapted, info = implicit(start, smooth, (rest, rng))
        return adapted, info, watch and watch(adapted)

    return run


def _pull_to(start: Params, strength: float) -> optax.GradientTransformation:
    """Adds the gradient of `strength / 2 |params - start|^2`."""

    def update(grads: Params, state: Any, params: Params) -> tuple[Params, Any]:
        pull = lambda grad, param, begin: grad + strength * (param - begin)  # noqa: E731
        return jax.tree.map(pull, grads, params, start), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _conjugate_gradient(matrix: Callable[[Params], Params], vector: Params, steps: int) -> Params:
    """X of (I + matrix) x = vector."""
    product = lambda x: optax.tree.add(x, matrix(x))  # noqa: E731
    return cg(product, vector, maxiter=steps, tol=1e-12)[0]


def _neumann(matrix: Callable[[Params], Params], vector: Params, steps: int) -> Params:
    """The same, by the sum of (-matrix)^i vector."""

    def add(carry: tuple[Params, Params], _: None) -> tuple[tuple[Params, Params], None]:
        total, term = carry
        term = optax.tree.scale(-1, matrix(term))
        return (optax.tree.add(total, term), term), None

    return jax.lax.scan(add, (vector, vector), None, length=steps)[0][0]
