"""Implicit MAML (Rajeswaran, Finn, Kakade & Levine 2019, arXiv:1909.04630)."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import optax
from jax.scipy.sparse.linalg import cg

from metajax.algorithms.adaptation import Adaptation
from metajax.algorithms.hypergrad import InnerLoss, second_derivatives
from metajax.algorithms.inner_loop import InnerLoop, inner_loop
from metajax.dtypes import is_float, narrow, widen
from metajax.tree import combine, partition
from metajax.types import (
    AdaptInfo,
    Batch,
    InitFn,
    Key,
    LossFn,
    MetaAlgorithm,
    Params,
    Reparametrize,
)

Solver = Literal["cg", "neumann"]


def imaml(
    loss_fn: LossFn,
    inner_optimizer: optax.GradientTransformation,
    num_steps: int,
    *,
    prox_weight: float = 1.0,
    solver: Solver = "cg",
    solver_steps: int = 5,
    unroll: bool = False,
    trainable: Callable[[str], bool] | None = None,
    reparametrize: Reparametrize | None = None,
    init_fn: InitFn | None = None,
) -> MetaAlgorithm:
    """MAML with a proximal inner objective, differentiated implicitly at its solution.

    The inner loop minimizes `support loss + prox_weight / 2 |params - start|^2` (equation 3). At
    the minimum the meta-gradient is `(I + H / prox_weight)^-1` times the gradient of the query
    loss there (lemma 1), where H is the Hessian of the support loss. No inner step is stored. All
    steps see one support set: a stream has no minimum at which to differentiate.

    Args:
        loss_fn: `(params, batch, rng) -> (loss, aux)`.
        inner_optimizer: any optax optimizer.
        num_steps: K >= 1. Use enough steps to come close to the minimum, because the meta-gradient
            is computed for the minimum.
        prox_weight: lambda, > 0.
        solver: "cg" (conjugate gradient) or "neumann" (the series sum (-H / prox_weight)^i, which
            converges only if H is smaller than prox_weight).
        solver_steps: number of Hessian-vector products, >= 1.
        unroll: as for `metajax.maml`.
        trainable: as for `metajax.maml`. The meta-gradient of the other parameters also passes
            through the minimum.
        reparametrize: as for `metajax.maml`.
        init_fn: as for `metajax.maml`.

    Returns:
        A MetaAlgorithm whose meta_params are the given params.

    Raises:
        ValueError: num_steps or solver_steps is below 1, prox_weight is not above 0, or solver is
            unknown.
        TypeError: when called, loss_fn does not return a scalar loss and aux.

    Examples:
        >>> import jax.numpy as jnp, metajax, optax
        >>> def loss_fn(params, batch, rng):
        ...     return jnp.sum((params - batch) ** 2) / 2, {}
        >>> algorithm = metajax.imaml(loss_fn, optax.sgd(0.5), num_steps=20)
        >>> task = metajax.Task(support=jnp.ones(1), query=jnp.ones(1))
        >>> round(float(algorithm.meta_grad(jnp.zeros(1), task, None)[0][0]), 3)
        -0.25
    """
    if prox_weight <= 0:
        raise ValueError(f"prox_weight is {prox_weight}; give a number above 0")
    if num_steps < 1 or solver_steps < 1:
        raise ValueError(
            f"num_steps is {num_steps} and solver_steps is {solver_steps}; give at least 1 for both"
        )
    if solver not in ("cg", "neumann"):
        raise ValueError(f"solver is {solver!r}; give 'cg' or 'neumann'")
    solve = functools.partial(
        _conjugate_gradient if solver == "cg" else _neumann, steps=solver_steps
    )

    def make_loop(inner_loss: InnerLoss) -> InnerLoop:
        descend = inner_loop(inner_loss, num_steps, first_order=True, unroll=unroll)
        return _ImplicitLoop(inner_loss, descend, prox_weight, solve)

    return Adaptation(
        loss_fn,
        num_steps,
        trainable=trainable,
        reparametrize=reparametrize,
        init_fn=init_fn,
        make_loop=make_loop,
    ).algorithm(inner_optimizer)


@dataclass(frozen=True)
class _ImplicitLoop:
    """An inner loop that is differentiated implicitly at the minimum.

    It calls `per_step_fn` once, at the minimum.

    Attributes:
        loss_fn: `(adapted, frozen, batch, rng) -> loss`.
        descend: the inner loop that approaches the minimum.
        prox_weight: lambda.
        solve: `(matrix, vector) -> x`, with (I + matrix) x = vector.
    """

    loss_fn: InnerLoss
    descend: InnerLoop
    prox_weight: float
    solve: Callable[[Callable[[Params], Params], Params], Params]

    def __call__(
        self,
        optimizer: optax.GradientTransformation,
        start: Params,
        frozen: Params,
        batch: Batch,
        rng: Key | None,
        /,
        per_step_fn: Callable[[Params], Any] | None = None,
    ) -> tuple[Params, AdaptInfo, Any]:
        floats, others = partition((frozen, batch, rng), is_float)
        adapted, info = _minimum(self, optimizer, start, floats, others)
        return adapted, info, per_step_fn and per_step_fn(adapted)


def _descend(
    loop: _ImplicitLoop,
    optimizer: optax.GradientTransformation,
    start: Params,
    floats: Any,
    others: Any,
) -> tuple[Params, AdaptInfo]:
    pulled = optax.chain(_pull_to(start, loop.prox_weight), optimizer)
    return loop.descend(pulled, start, *combine(floats, others))[:2]


def _minimum_fwd(
    loop: _ImplicitLoop,
    optimizer: optax.GradientTransformation,
    start: Params,
    floats: Any,
    others: Any,
) -> tuple[Any, Any]:
    adapted, info = _descend(loop, optimizer, start, floats, others)
    return (adapted, info), (adapted, floats, others)


def _minimum_bwd(
    loop: _ImplicitLoop, optimizer: optax.GradientTransformation, residuals: Any, cotangents: Any
) -> tuple[Params, Any, None]:
    """Differentiate the minimum by the implicit function theorem."""
    adapted, floats, others = residuals

    def along(direction: Params) -> tuple[Params, Any]:
        """Compute the second derivatives along a direction, divided by prox_weight."""
        product = second_derivatives(loop.loss_fn, adapted, floats, others, direction)
        return optax.tree.scale(1 / loop.prox_weight, product)

    def matrix(direction: Params) -> Params:
        return widen(along(narrow(direction, adapted))[0])

    to_start = narrow(loop.solve(matrix, widen(cotangents[0])), adapted)
    return to_start, optax.tree.scale(-1, along(to_start)[1]), None


# It is differentiable in start and floats. The loop and its optimizer are constants.
_minimum = jax.custom_vjp(_descend, nondiff_argnums=(0, 1))
_minimum.defvjp(_minimum_fwd, _minimum_bwd)


def _pull_to(start: Params, prox_weight: float) -> optax.GradientTransformation:
    """Return a transformation that adds the gradient of `prox_weight / 2 |params - start|^2`."""

    def update(grads: Params, state: Any, params: Params) -> tuple[Params, Any]:
        pull = lambda grad, param, begin: grad + prox_weight * (param - begin)  # noqa: E731
        return jax.tree.map(pull, grads, params, start), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _conjugate_gradient(matrix: Callable[[Params], Params], vector: Params, steps: int) -> Params:
    """Solve (I + matrix) x = vector for x by conjugate gradient."""
    product = lambda x: optax.tree.add(x, matrix(x))  # noqa: E731
    return cg(product, vector, maxiter=steps, tol=1e-12)[0]


def _neumann(matrix: Callable[[Params], Params], vector: Params, steps: int) -> Params:
    """Solve (I + matrix) x = vector for x by the sum of (-matrix)^i vector."""

    def add(carry: tuple[Params, Params], _: None) -> tuple[tuple[Params, Params], None]:
        total, term = carry
        term = optax.tree.scale(-1, matrix(term))
        return (optax.tree.add(total, term), term), None

    return jax.lax.scan(add, (vector, vector), None, length=steps)[0][0]
