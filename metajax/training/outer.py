"""One outer step on the mean meta-gradient of a batch of tasks."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from metajax.algorithms.checks import check_params, check_task
from metajax.dtypes import at_least_float32, is_float, narrow, widen
from metajax.platforms import target_platform
from metajax.tree import combine, partition, select
from metajax.types import Key, MetaAlgorithm, MetaInfo, PyTree, Task

# An algorithm, or a function of the outer step ([] int32, traced) that returns one: compare optax's
# learning rates and schedules.
AlgorithmOrSchedule = MetaAlgorithm | Callable[[jax.Array], MetaAlgorithm]


# Predicate on the path of a meta-parameter; true if the outer loop leaves it as it is.
Frozen: TypeAlias = Callable[[str], bool] | None


def split_trained(meta_params: PyTree, frozen: Frozen) -> tuple[PyTree, PyTree]:
    """Split meta-parameters, or their gradients, into those that the outer loop trains and others.

    Integers, keys and `frozen` parameters are not trained.
    """
    floats, others = partition(meta_params, is_float)
    if frozen is None:
        return floats, others
    kept, trained = select(floats, frozen)
    return trained, combine(kept, others)


def at_step(algorithm: AlgorithmOrSchedule, step: jax.Array) -> MetaAlgorithm:
    """The algorithm of one outer step."""
    return algorithm if isinstance(algorithm, MetaAlgorithm) else algorithm(step)


class OuterState(NamedTuple):
    """The state between two outer steps.

    Attributes:
        step: [] int32, outer steps taken.
        meta_params: what the algorithm trains.
        opt_state: the outer optimizer's.
        rng: the run's key. It never changes: step n draws from `fold_in(rng, n)`.

    Examples:
        >>> import jax, jax.numpy as jnp, metajax, optax
        >>> def loss_fn(params, batch, rng):
        ...     return jnp.sum((params - batch) ** 2) / 2, {}
        >>> outer = metajax.outer_loop(metajax.maml(loss_fn, optax.sgd(0.1), 1), optax.sgd(1.0))
        >>> state = outer.init(jnp.zeros(2), jax.random.key(0))
        >>> int(state.step), state.meta_params.tolist()
        (0, [0.0, 0.0])
    """

    step: jax.Array
    meta_params: PyTree
    opt_state: Any
    rng: Key


def initial_state(
    algorithm: AlgorithmOrSchedule,
    optimizer: optax.GradientTransformation,
    params: PyTree,
    rng: Key,
    frozen: Frozen = None,
) -> OuterState:
    """Return the state before the first outer step."""
    meta_params = check_params(at_step(algorithm, jnp.int32(0)).init(check_params(params)))
    opt_state = optimizer.init(split_trained(meta_params, frozen)[0])
    return OuterState(jnp.int32(0), meta_params, opt_state, rng)


class Metrics(NamedTuple):
    """The means over the T tasks of one outer step, and the values of each task.

    Attributes:
        query_loss: [] after adaptation.
        query_aux: the loss function's auxiliary output on the query sets.
        support_loss: [K] before each inner step.
        grad_norm: [] Euclidean norm of the mean meta-gradient.
        skipped: [] bool, whether the step was not taken because the loss or the norm is not finite:
            the inner rate is too high, or an inner Adam has no `eps_root` (see `metajax.maml`).
        tasks: the losses and the auxiliary output of each task, in their order; leaves [T, ...].

    Examples:
        >>> import jax, jax.numpy as jnp, metajax, optax
        >>> def loss_fn(params, batch, rng):
        ...     return jnp.sum((params - batch) ** 2) / 2, {}
        >>> outer = metajax.outer_loop(metajax.maml(loss_fn, optax.sgd(0.5), 1), optax.sgd(1.0))
        >>> tasks = metajax.Task(support=jnp.ones((4, 2)), query=jnp.ones((4, 2)))
        >>> _, metrics = outer.step(outer.init(jnp.zeros(2), jax.random.key(0)), tasks)
        >>> float(metrics.query_loss), bool(metrics.skipped), metrics.tasks.query_loss.shape
        (0.25, False, (4,))
    """

    query_loss: jax.Array
    query_aux: Any
    support_loss: jax.Array
    grad_norm: jax.Array
    skipped: jax.Array
    tasks: MetaInfo


def num_tasks(tasks: Task) -> int:
    """Return the number T of tasks in a batch: the leading axis of all leaves.

    Raises:
        TypeError: the batch is not a Task.
        ValueError: there are no leaves, their leading axes differ, or T is 0.
    """
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(check_task(tasks))}
    if len(sizes) != 1 or () in sizes:
        raise ValueError(f"a batch of tasks needs one leading axis on every leaf, found {sizes}")
    if sizes == {(0,)}:
        raise ValueError("tasks: the batch has no tasks (leaves [0, ...]); give at least one")
    return sizes.pop()[0]


def default_chunk_size(total: int) -> int:
    """Return the number of tasks under one vmap: all, or on a CPU one, which is faster there."""
    return 1 if target_platform() == "cpu" else total


def map_tasks(
    function: Callable[[Task, Key], tuple[PyTree, PyTree]],
    tasks: Task,
    keys: Key,
    chunk_size: int | None,
) -> tuple[PyTree, PyTree]:
    """Apply a function to T tasks. Sum its first results, and stack its second results.

    Only the results of one chunk exist at a time, so memory does not grow with the number of tasks.

    Args:
        function: `(task, key) -> (to_sum, to_stack)`, of one task.
        tasks: leaves [T, ...].
        keys: [T].
        chunk_size: tasks under one vmap, a divisor of T; the chunks run one after the other.
            None: `default_chunk_size`.

    Returns:
        The sum over the T tasks, in at least float32, and the stacked [T, ...].
    """
    total = num_tasks(tasks)
    chunk = chunk_size or default_chunk_size(total)
    if chunk < 1 or total % chunk:
        near = [size for size in range(1, total + 1) if total % size == 0]
        raise ValueError(f"chunk_size {chunk} does not divide {total} tasks; use one of {near}")

    def run_chunk(inputs: tuple[Task, Key]) -> tuple[PyTree, PyTree]:
        if chunk == 1:  # With an axis of one the products would be batched.
            squeezed = jax.tree.map(lambda leaf: leaf[0], inputs)
            to_sum, to_stack = function(*squeezed)
            return widen(to_sum), jax.tree.map(lambda leaf: leaf[None], to_stack)
        to_sum, to_stack = jax.vmap(function)(*inputs)
        return jax.tree.map(lambda leaf: leaf.sum(0), widen(to_sum)), to_stack

    if chunk == total:
        return run_chunk((tasks, keys))
    # The loop needs the shapes of the sums first. `jit` caches the trace.
    traced_once = jax.jit(run_chunk, inline=True)

    def accumulate(total_sum: PyTree, inputs: tuple[Task, Key]) -> tuple[PyTree, PyTree]:
        to_sum, to_stack = traced_once(inputs)
        return jax.tree.map(jnp.add, total_sum, to_sum), to_stack

    chunks = jax.tree.map(
        lambda leaf: leaf.reshape(total // chunk, chunk, *leaf.shape[1:]), (tasks, keys)
    )
    first = jax.tree.map(lambda leaf: leaf[0], chunks)
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(traced_once, first)[0]
    )
    total_sum, stacked = jax.lax.scan(accumulate, zeros, chunks)
    return total_sum, jax.tree.map(lambda leaf: leaf.reshape(total, *leaf.shape[2:]), stacked)


def task_keys(rng: Key, first: int | jax.Array, count: int) -> Key:
    """Return the keys [count] of the tasks from number `first`, the same on every device."""
    return jax.vmap(lambda index: jax.random.fold_in(rng, index))(first + jnp.arange(count))


def mean_meta_grad(
    algorithm: MetaAlgorithm,
    meta_params: PyTree,
    tasks: Task,
    keys: Key,
    chunk_size: int | None,
    frozen: Frozen = None,
) -> tuple[PyTree, MetaInfo]:
    """Compute the mean of the meta-gradients over T tasks, and the MetaInfo of each, [T, ...].

    Both are in at least float32. The gradient of leaves that are not floating-point is None.
    """

    def meta_grad(task: Task, key: Key) -> tuple[PyTree, MetaInfo]:
        grads, info = algorithm.meta_grad(meta_params, task, key)
        return split_trained(grads, frozen)[0], info

    def number(leaf: jax.Array) -> jax.Array:
        return leaf.astype(at_least_float32(leaf.dtype) if is_float(leaf) else float)

    grads, infos = map_tasks(meta_grad, tasks, keys, chunk_size)
    count = num_tasks(tasks)
    return jax.tree.map(lambda leaf: leaf / count, grads), jax.tree.map(number, infos)


def gather_infos(infos: MetaInfo, axis_name: str | tuple[str, ...]) -> MetaInfo:
    """Gather the MetaInfo [T / D, ...] of the tasks of each of D devices on all of them, [T, ...].

    It is a sum, which the compiler joins with the sum of the gradients.
    """
    count, own = jax.lax.axis_size(axis_name), jax.lax.axis_index(axis_name)

    def gather(leaf: jax.Array) -> jax.Array:
        placed = jnp.zeros((count, *leaf.shape), leaf.dtype).at[own].set(leaf)
        return jax.lax.psum(placed, axis_name).reshape(count * leaf.shape[0], *leaf.shape[1:])

    return jax.tree.map(gather, infos)


def global_norm(tree: PyTree) -> jax.Array:
    """Compute the Euclidean norm of a pytree of arrays, in at least float32."""
    return optax.tree.norm(widen(tree))


def apply_meta_grad(
    optimizer: optax.GradientTransformation,
    state: OuterState,
    grads: PyTree,
    infos: MetaInfo,
    frozen: Frozen = None,
) -> tuple[OuterState, Metrics]:
    """Take the outer step along a mean meta-gradient, with the MetaInfo of each task, [T, ...].

    If the gradient or its loss is not finite, only the number of the step changes. The optimizer
    sees only floating-point parameters, and gradients in their dtypes.
    """
    info = jax.tree.map(lambda leaf: leaf.mean(0), infos)
    norm = global_norm(grads)
    usable = jnp.isfinite(norm) & jnp.isfinite(info.query_loss)
    before, fixed = split_trained(state.meta_params, frozen)
    own = narrow(grads, before)

    def update(params: PyTree, opt_state: PyTree) -> tuple[PyTree, PyTree]:
        updates, opt_state = optimizer.update(own, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    # Not a select of each array, for which XLA copies parameters and state.
    after, opt_state = jax.lax.cond(usable, update, lambda *same: same, before, state.opt_state)
    meta_params = combine(after, fixed)
    means = (info.query_loss, info.query_aux, info.support_loss)
    metrics = Metrics(*means, norm, ~usable, infos)
    return OuterState(state.step + 1, meta_params, opt_state, state.rng), metrics


def outer_step(
    algorithm: AlgorithmOrSchedule,
    optimizer: optax.GradientTransformation,
    *,
    chunk_size: int | None = None,
    axis_name: str | None = None,
    frozen: Frozen = None,
) -> Callable[[OuterState, Task], tuple[OuterState, Metrics]]:
    """Make one step of the outer loop, a pure function.

    Args:
        algorithm: an algorithm, or a function of the step that returns one.
        optimizer: the outer optimizer.
        chunk_size: see `map_tasks`.
        axis_name: name of the axis over devices. Each device has an equal share of the tasks.
        frozen: see `metajax.outer_loop`.

    Returns:
        `(state, tasks) -> (state, metrics)`.
    """

    def step(state: OuterState, tasks: Task) -> tuple[OuterState, Metrics]:
        count = num_tasks(tasks)
        first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * count
        keys = task_keys(jax.random.fold_in(state.rng, state.step), first, count)
        current = at_step(algorithm, state.step)
        grads, infos = mean_meta_grad(current, state.meta_params, tasks, keys, chunk_size, frozen)
        if axis_name is not None:
            grads, infos = jax.lax.pmean(grads, axis_name), gather_infos(infos, axis_name)
        return apply_meta_grad(optimizer, state, grads, infos, frozen)

    return step
