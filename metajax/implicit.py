"""Implicit MAML (Rajeswaran, Finn, Kakade & Levine 2019, arXiv:1909.04630)."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import optax
from jax.scipy.sparse.linalg import cg

from metajax.adaptation import INNER, QUERY, adaptation
from metajax.inner import fold_in
from metajax.types import AdaptInfo, Batch, Key, LossFn, MetaAlgorithm, MetaInfo, Params, Task

Solver = Literal["cg", "neumann"]


def imaml(
    loss_fn: LossFn,
    inner_optimizer: optax.GradientTransformation,
    num_steps: int,
    *,
    strength: float = 1.0,
    solver: Solver = "cg",
    solver_steps: int = 5,
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

    Example:
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
    if solver not in ("cg", "neumann"):
        raise ValueError(f"solver is {solver!r}: choose cg or neumann")

    def adapt(params: Params, support: Batch, rng: Key | None) -> tuple[Params, AdaptInfo]:
        def proximal(adapted: Params, batch: Batch, rng: Key | None) -> tuple[jax.Array, Any]:
            loss, aux = loss_fn(adapted, batch, rng)
            distance = optax.tree.norm(optax.tree.sub(adapted, params), squared=True)
            return loss + strength / 2 * distance, aux

        learner = adaptation(proximal, num_steps, first_order=True)
        return learner.adapt(inner_optimizer, params, support, rng)

    def meta_grad(params: Params, task: Task, rng: Key | None) -> tuple[Params, MetaInfo]:
        adapted, info = adapt(params, task.support, rng)
        query = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, aux), grads = query(adapted, task.query, fold_in(rng, QUERY))

        def gradient(params: Params) -> Params:
            return jax.grad(lambda p: loss_fn(p, task.support, fold_in(rng, INNER))[0])(params)

        def hessian(direction: Params) -> Params:
            product = jax.jvp(gradient, (adapted,), (direction,))[1]
            return optax.tree.scale(1 / strength, product)

        solve = _conjugate_gradient if solver == "cg" else _neumann
        return solve(hessian, grads, solver_steps), MetaInfo(loss, aux, info.support_loss)

    return MetaAlgorithm(init=lambda params: params, adapt=adapt, meta_grad=meta_grad)


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
