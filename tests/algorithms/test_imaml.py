"""Implicit MAML: the minimum that the inner loop comes near, and the solvers' steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

import metajax

LOSS = problems.mlp_loss
SGD = optax.sgd(0.05)


@pytest.mark.parametrize(("solver", "prox_weight"), [("cg", 0.5), ("cg", 3.0), ("neumann", 30.0)])
def test_imaml_on_a_quadratic(optimized, x64, solver, prox_weight):
    """Where both the descent and the solver have converged."""
    task, a, centre, q, goal, params = problems.quadratic_numbers(6)
    algorithm = metajax.imaml(
        problems.quadratic,
        optax.sgd(1 / (prox_weight + 5)),
        500,
        prox_weight=prox_weight,
        solver=solver,
        solver_steps=40,
    )
    grads, _ = algorithm.meta_grad(jnp.asarray(params), task, None)
    inverse = np.linalg.inv(np.eye(6) + a / prox_weight)
    adapted = inverse @ (params + a @ centre / prox_weight)
    np.testing.assert_allclose(grads, inverse @ q @ (adapted - goal), rtol=1e-9)


def conjugate_gradient(matrix, vector, steps):
    """The textbook's."""
    x, residual, direction = np.zeros_like(vector), vector, vector
    for _ in range(steps):
        product = matrix @ direction
        length = residual @ residual / (direction @ product)
        x = x + length * direction
        before, residual = residual, residual - length * product
        direction = residual + residual @ residual / (before @ before) * direction
    return x


def neumann(matrix, vector, steps):
    """The sum of (I - matrix)^i vector, i from 0 to steps."""
    power = lambda i: np.linalg.matrix_power(np.eye(len(vector)) - matrix, i)  # noqa: E731
    return sum(power(i) @ vector for i in range(steps + 1))


@pytest.mark.parametrize(
    ("solve", "steps", "prox_weight", "settings"),
    [
        (conjugate_gradient, 5, 1.0, {}),  # The defaults.
        (conjugate_gradient, 2, 7.0, {"solver": "cg", "solver_steps": 2, "prox_weight": 7.0}),
        (neumann, 3, 9.0, {"solver": "neumann", "solver_steps": 3, "prox_weight": 9.0}),
    ],
)
def test_a_solver_takes_so_many_products_with_the_hessian(x64, solve, steps, prox_weight, settings):
    """Far from convergence, and with noise: the Hessian is that of the inner steps' own key."""

    def loss_fn(params, batch, rng):
        return problems.noise(rng, params.dtype) * problems.quadratic(params, batch, None)[0], {}

    task, a, centre, q, goal, params = problems.quadratic_numbers(8)
    key = jax.random.key(3)
    noise = lambda *path: problems.noise(functools.reduce(jax.random.fold_in, path, key), a.dtype)  # noqa: E731
    adapted = params - 0.1 * noise(1, 0) * a @ (params - centre)  # At the start nothing pulls.
    algorithm = metajax.imaml(loss_fn, optax.sgd(0.1), 1, **settings)
    grads, _ = algorithm.meta_grad(jnp.asarray(params), task, key)
    at_adapted = noise(2) * q @ (adapted - goal)
    expected = solve(np.eye(8) + noise(1) * a / prox_weight, np.asarray(at_adapted), steps)
    np.testing.assert_allclose(grads, expected, rtol=1e-10)


def test_imaml_shrinks_by_lambda_over_one_plus_lambda(x64):
    """Where the Hessian is the identity."""
    prox_weight = 0.7
    loss = lambda params, batch, rng: (jnp.sum((params - batch) ** 2) / 2, {})  # noqa: E731
    algorithm = metajax.imaml(loss, optax.sgd(0.4), 300, prox_weight=prox_weight)
    task = metajax.Task(support=jnp.array([2.0]), query=jnp.array([-1.0]))
    grads, _ = algorithm.meta_grad(jnp.zeros(1), task, None)
    adapted = 2.0 / (1 + prox_weight)
    np.testing.assert_allclose(grads, prox_weight / (1 + prox_weight) * (adapted + 1), rtol=1e-10)


def test_imaml_refuses_nonsense():
    with pytest.raises(ValueError, match="prox_weight is 0"):
        metajax.imaml(LOSS, SGD, 1, prox_weight=0)
    with pytest.raises(ValueError, match="solver_steps is 0; give at least 1"):
        metajax.imaml(LOSS, SGD, 1, solver_steps=0)
    metajax.imaml(LOSS, SGD, 1, solver_steps=1)
    with pytest.raises(ValueError, match="num_steps is 0 and"):
        metajax.imaml(LOSS, SGD, 0)
    with pytest.raises(ValueError, match="solver is 'lu'; give"):
        metajax.imaml(LOSS, SGD, 1, solver="lu")


def test_imaml_of_a_part_from_a_start(x64):
    """Against the minimum written out: what is fixed, and the start, move it."""
    task, prox_weight = problems.quadratic_task(), 0.8
    a, centre = task.support

    def loss_fn(params, batch, rng):
        return problems.quadratic(params["body"] * params["head"], batch, rng)

    def start(params, support, rng):
        return {**params, "head": params["head"] * support[1]}

    params = {"body": jnp.array([1.0, -0.5, 2.0]), "head": jnp.array([0.3, -1.0, 0.2])}
    algorithm = metajax.imaml(
        loss_fn,
        optax.sgd(0.05),
        2000,
        prox_weight=prox_weight,
        solver_steps=20,
        init_fn=start,
        trainable=lambda path: path == "head",
    )

    def written_out(params):
        scale = jnp.diag(params["body"])
        left = scale @ a @ scale + prox_weight * jnp.eye(3)
        right = scale @ a @ centre + prox_weight * params["head"] * centre
        return problems.quadratic(params["body"] * jnp.linalg.solve(left, right), task.query, None)[
            0
        ]

    found, info = jax.jit(algorithm.meta_grad)(params, task, None)
    assert problems.relative_gap(found, jax.grad(written_out)(params)) < 1e-9
    np.testing.assert_allclose(info.query_loss, written_out(params), rtol=1e-9)
    # The loss on the support set alone, without the pull.
    begin = loss_fn(start(params, task.support, None), task.support, None)[0]
    np.testing.assert_allclose(info.support_loss[0], begin, rtol=1e-12)
