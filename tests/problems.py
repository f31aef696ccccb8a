"""Small problems with a known answer, or with the difficulties of a large one."""

import jax
import jax.numpy as jnp
import numpy as np

import metajax

NUM_TASKS = 8


def quadratic(params, batch, rng):
    """(params - a)^T A (params - a) / 2, with gradient A (params - a)."""
    matrix, centre = batch
    return (params - centre) @ matrix @ (params - centre) / 2, {}


def quadratic_task(seed=0, size=3):
    """Symmetric positive definite matrices and centres, for support and query."""
    rng = np.random.default_rng(seed)

    def batch():
        factor = rng.normal(size=(size, size))
        return jnp.asarray(factor @ factor.T / size + np.eye(size)), jnp.asarray(
            rng.normal(size=size)
        )

    return metajax.Task(support=batch(), query=batch())


def quadratic_numbers(size=3):
    """A task, its A, a, Q and g (see `quadratic`) in NumPy, and parameters."""
    task = quadratic_task(size=size)
    (a, centre), (q, goal) = jax.device_get(task)
    return task, a, centre, q, goal, np.linspace(-1, 2, size) ** 3 + 0.3


def mlp_params(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "first": {"kernel": jnp.asarray(rng.normal(size=(2, 4))), "bias": jnp.zeros(4)},
        "second": {"kernel": jnp.asarray(rng.normal(size=(4, 1))), "bias": jnp.zeros(1)},
    }


def noise(rng, dtype):
    """A factor near 1 from the bits of the key, because jax.random.normal compiles slowly."""
    return 1 + 0.1 * jnp.sin(jax.random.key_data(rng).astype(dtype).sum())


def mlp_loss(params, batch, rng):
    """Squared error. A key scales a hidden layer at random, so that keys affect results.

    A batch may have weights for its examples, 0 for padding.
    """
    hidden = jnp.tanh(batch[0] @ params["first"]["kernel"] + params["first"]["bias"])
    return second_loss(params, hidden, batch, rng)


def second_loss(params, hidden, batch, rng):
    """The loss of `mlp_loss`, given the hidden layer."""
    _, y, *weights = batch
    if rng is not None:
        hidden = hidden * noise(rng, hidden.dtype)
    error = (hidden @ params["second"]["kernel"] + params["second"]["bias"]) - y
    weights = weights[0][:, None] if weights else jnp.ones_like(error)
    loss = jnp.sum(weights * error**2) / jnp.sum(weights)
    return loss, {"worst": jnp.max(weights * jnp.abs(error))}


def mlp_tasks(num_tasks=NUM_TASKS, seed=0):
    """Leaves [T, 6, ...]: a different slope for each task."""
    rng = np.random.default_rng(seed)
    slope = rng.normal(size=(num_tasks, 2, 1))

    def batch():
        x = rng.normal(size=(num_tasks, 6, 2))
        return jnp.asarray(x), jnp.asarray(np.sin(x @ slope))

    return metajax.Task(support=batch(), query=batch())


def mlp_streams(num_tasks, num_steps, seed=0):
    """The same with `num_steps` support batches per task: support leaves [T, K, 6, ...]."""
    tasks = [mlp_tasks(num_tasks, seed + 9 * k) for k in range(num_steps)]
    stack = lambda *leaves: jnp.stack(leaves, 1)  # noqa: E731
    return tasks[0]._replace(support=jax.tree.map(stack, *(task.support for task in tasks)))


def one_task(seed=0):
    return nth(mlp_tasks(1, seed), 0)


def nth(tasks, index):
    """One task of a batch."""
    return jax.tree.map(lambda leaf: leaf[index], tasks)


def relative_gap(left, right):
    """Largest difference over all leaves, relative to the largest value."""
    left, right = jax.device_get((left, right))
    largest = lambda x: np.max(np.abs(x), initial=0)  # noqa: E731
    gaps = jax.tree.leaves(jax.tree.map(lambda a, b: largest(a * 1.0 - b), left, right))
    # Python's max would ignore a NaN.
    return np.max(gaps) / np.max([largest(leaf) for leaf in jax.tree.leaves(right)])
