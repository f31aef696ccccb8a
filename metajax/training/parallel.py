"""The outer loop, compiled for the devices there are."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from metajax.dtypes import is_float
from metajax.training.outer import (
    AlgorithmOrSchedule,
    Metrics,
    OuterState,
    apply_meta_grad,
    at_step,
    initial_state,
    mean_meta_grad,
    num_tasks,
    outer_step,
    task_keys,
)
from metajax.tree import partition
from metajax.types import Key, Params, Task

_AXIS = "devices"
_TASKS, _PARAMS = "tasks", "params"


class OuterLoop(NamedTuple):
    """The outer loop: three functions.

    Attributes:
        init: `(params, rng) -> OuterState`.
        step: `(state, tasks) -> (state, Metrics)`, compiled; the leaves of tasks are [T, ...].
        lower: `(state, tasks) -> jax.stages.Lowered`, the step as a program to look at.

    Examples:
        >>> import jax, jax.numpy as jnp, metajax, optax
        >>> def loss_fn(params, batch, rng):
        ...     return jnp.sum((params - batch) ** 2) / 2, {}
        >>> outer = metajax.outer_loop(metajax.maml(loss_fn, optax.sgd(0.1), 1), optax.sgd(1.0))
        >>> state = outer.init(jnp.zeros(2), jax.random.key(0))
        >>> tasks = metajax.Task(support=jnp.ones((4, 2)), query=jnp.ones((4, 2)))
        >>> type(outer.lower(state, tasks)).__name__
        'Lowered'
    """

    init: Callable[[Params, Key], OuterState]
    step: Callable[[OuterState, Task], tuple[OuterState, Metrics]]
    lower: Callable[[OuterState, Task], jax.stages.Lowered]


def outer_loop(
    algorithm: AlgorithmOrSchedule,
    outer_optimizer: optax.GradientTransformation,
    *,
    chunk_size: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    donate: bool = False,
    compiler_options: Mapping[str, Any] | None = None,
    mesh: Mesh | None = None,
) -> OuterLoop:
    """Trains an algorithm's meta-parameters over batches of tasks.

    The tasks of a step are split over the devices by `jax.pmap` when there is more than one,
    in order; the meta-gradients meet in one mean. With a mesh, parameters and optimizer state are
    sharded over its axis "params". The numbers do not depend on how many devices there are, nor on
    the chunk size. The exception are random keys of JAX's kind `rbg`: under `vmap` they give other
    numbers, so with them results depend on the chunk size. The default kind is not affected.

    With several processes (`jax.distributed.initialize`), each calls `init` with the same params
    and `step` with its own share of the tasks: those of its devices, in the order of
    `jax.devices()`. The step is then that of a mesh, `task_mesh(1)` by default.

    Args:
        algorithm: from one of the constructors (`metajax.maml`, ...), or a function that gives one
            for each outer step, an int32 under trace: see `metajax.maml_plus_plus`.
        outer_optimizer: any optax optimizer.
        chunk_size: tasks under one vmap on each device; the chunks run one after the other with
            their gradients added up. By default one on a CPU and all of them elsewhere. A
            smaller chunk takes less memory.
        devices: those to use, of one process; by default all.
        donate: let a step overwrite the state it is given, which saves a copy of it. The caller
            must not use that state again, nor the params that `init` was given.
        compiler_options: XLA's, as `jax.jit` takes them. Not for `pmap`, which takes none.
        mesh: from `task_mesh`, in place of devices: shards the state. A step still gathers the
            parameters of a device whole, for it adapts all of them.

    Returns:
        `init(params, rng) -> OuterState`, `step(state, tasks) -> (OuterState, Metrics)` with tasks
        of leaves [T, ...], and `lower`, which compiles a step without taking it.

    Raises:
        ValueError: in a step, the devices do not divide T, or chunk_size a device's share of it.

    Examples:
        >>> import jax, jax.numpy as jnp, metajax, optax
        >>> def loss_fn(params, batch, rng):
        ...     return jnp.sum((params - batch) ** 2) / 2, {}
        >>> outer = metajax.outer_loop(metajax.maml(loss_fn, optax.sgd(0.1), 1), optax.sgd(1.0))
        >>> state = outer.init(jnp.zeros(2), jax.random.key(0))
        >>> tasks = metajax.Task(support=jnp.ones((4, 2)), query=jnp.ones((4, 2)))
        >>> state, metrics = outer.step(state, tasks)
        >>> round(float(metrics.query_loss), 2)
        0.81
    """
    donated = 0 if donate else ()
    if mesh is None and jax.process_count() > 1:
        mesh = task_mesh(1)  # pmap would leave each process a state of its own.
    if mesh is not None:
        return _sharded_loop(
            algorithm, outer_optimizer, mesh, chunk_size, donated, compiler_options
        )
    devices = list(devices) if devices is not None else all_devices()
    # Where a step leaves the state. One that comes in from elsewhere would be compiled for anew.
    home: jax.sharding.Sharding = SingleDeviceSharding(devices[0])
    if len(devices) > 1:
        home = NamedSharding(Mesh(np.array(devices), (_AXIS,)), PartitionSpec())

    def init(params: Params, rng: Key) -> OuterState:
        return jax.device_put(initial_state(algorithm, outer_optimizer, params, rng), home)

    if len(devices) == 1:
        step = jax.jit(
            outer_step(algorithm, outer_optimizer, chunk_size=chunk_size),
            donate_argnums=donated,
            compiler_options=dict(compiler_options or {}),
        )
        return OuterLoop(init, step, step.lower)

    # Replicated on the way in and out: the state looks the same on one device and on many.
    mapped = jax.pmap(
        outer_step(algorithm, outer_optimizer, chunk_size=chunk_size, axis_name=_AXIS),
        axis_name=_AXIS,
        in_axes=(None, 0),
        out_axes=None,
        devices=devices,
        donate_argnums=donated,
    )

    def split_step(state: OuterState, tasks: Task) -> tuple[OuterState, Metrics]:
        # No copy but for a state from elsewhere: a checkpoint, another number of devices.
        return mapped(jax.device_put(state, home), split_tasks(tasks, len(devices)))

    return OuterLoop(
        init, split_step, lambda state, tasks: mapped.lower(state, split_tasks(tasks, len(devices)))
    )


def all_devices() -> list[jax.Device]:
    """Those of all processes."""
    return jax.local_devices() if jax.process_count() == 1 else jax.devices()


def task_mesh(params: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh for `outer_loop`: its axis "params" shards the state, both axes split the tasks.

    Args:
        params: over how many devices parameters and optimizer state are sharded.
        devices: by default all there are.

    Raises:
        ValueError: params does not divide the number of devices.

    Examples:
        >>> import jax, metajax
        >>> mesh = metajax.task_mesh(1, jax.devices()[:1])
        >>> dict(mesh.shape)
        {'tasks': 1, 'params': 1}
    """
    every = np.array(all_devices() if devices is None else devices)
    if every.size % params:
        raise ValueError(
            f"a state cannot be sharded over {params} of {every.size} devices: give a divisor"
        )
    return Mesh(every.reshape(-1, params), (_TASKS, _PARAMS))


def _sharded_loop(
    algorithm: AlgorithmOrSchedule,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    chunk_size: int | None,
    donated: Any,
    options: Mapping[str, Any] | None,
) -> OuterLoop:
    """Fully sharded data parallelism (Rajbhandari et al. 2020, arXiv:1910.02054, stage 3).

    A step gathers the parameters, and leaves each device its shard of the gradients' mean.
    """
    axes, parts = (_TASKS, _PARAMS), mesh.shape[_PARAMS]

    def spec(leaf: Any) -> PartitionSpec:
        axis = _sharded_axis(leaf, parts)
        return PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, _PARAMS)

    def place(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: NamedSharding(mesh, spec(leaf)), tree)

    def init(params: Params, rng: Key) -> OuterState:
        state = initial_state(algorithm, optimizer, params, rng)
        return _put(state, place(state))

    @functools.partial(jax.jit, donate_argnums=donated, compiler_options=dict(options or {}))
    def step(state: OuterState, tasks: Task) -> tuple[OuterState, Metrics]:
        current, whole = at_step(algorithm, state.step), state.meta_params

        def gather(shard: jax.Array, leaf: Any) -> jax.Array:
            axis = _sharded_axis(leaf, parts)
            if axis is None:
                return shard
            return jax.lax.all_gather(shard, _PARAMS, axis=axis, tiled=True)

        def mean(grad: jax.Array, leaf: Any) -> jax.Array:
            axis = _sharded_axis(leaf, parts)
            if axis is None:
                return jax.lax.pmean(grad, axes)
            summed = jax.lax.psum_scatter(grad, _PARAMS, scatter_dimension=axis, tiled=True)
            return jax.lax.pmean(summed / parts, _TASKS)

        def share(shards: Any, key: Key, tasks: Task) -> tuple[Any, Any]:
            count = num_tasks(tasks)
            keys = task_keys(key, jax.lax.axis_index(axes) * count, count)
            params = jax.tree.map(gather, shards, whole)
            grads, info = mean_meta_grad(current, params, tasks, keys, chunk_size)
            return jax.tree.map(mean, grads, floats), jax.lax.pmean(info, axes)

        specs, everywhere = jax.tree.map(spec, whole), PartitionSpec()
        floats = partition(whole, is_float)[0]
        found = jax.shard_map(
            share,
            mesh=mesh,
            in_specs=(specs, everywhere, PartitionSpec(axes)),
            out_specs=(jax.tree.map(spec, floats), everywhere),
            check_vma=False,  # Or gradients of replicated leaves would be summed one by one.
        )(whole, jax.random.fold_in(state.rng, state.step), tasks)
        state, metrics = apply_meta_grad(optimizer, state, *found)
        return jax.lax.with_sharding_constraint(state, place(state)), metrics

    def split(tasks: Task) -> Task:
        split_tasks(tasks, len(mesh.local_devices))  # Says what is wrong.
        shares = NamedSharding(mesh, PartitionSpec(axes))
        return jax.tree.map(
            lambda leaf: jax.make_array_from_process_local_data(shares, np.asarray(leaf)), tasks
        )

    return OuterLoop(
        init,
        lambda state, tasks: step(_put(state, place(state)), split(tasks)),
        lambda state, tasks: step.lower(state, split(tasks)),
    )


def _put(state: OuterState, shardings: OuterState) -> OuterState:
    """The state where it belongs; of several processes, each has the same to begin with."""
    if jax.process_count() == 1:
        return jax.device_put(state, shardings)

    def put(leaf: jax.Array, sharding: jax.sharding.Sharding) -> jax.Array:
        if leaf.sharding == sharding:
            return leaf
        if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(
                put(jax.random.key_data(leaf), sharding), impl=jax.random.key_impl(leaf)
            )
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, state, shardings)


def _sharded_axis(leaf: Any, parts: int) -> int | None:
    """The largest axis that can be split evenly, if there is one."""
    axes = [axis for axis, size in enumerate(leaf.shape) if parts > 1 and size % parts == 0]
    return max(axes, key=lambda axis: leaf.shape[axis], default=None)


def split_tasks(tasks: Task, parts: int) -> Task:
    """Leaves [T, ...] to [parts, T / parts, ...].

    Raises:
        ValueError: T is not a multiple of parts; the nearest sizes that are get named.
    """
    total = num_tasks(tasks)
    if total % parts:
        below, above = total - total % parts, total - total % parts + parts
        near = f"{below} or {above}" if below else f"{above}"
        raise ValueError(
            f"{total} tasks a step cannot be split evenly over {parts} devices: use {near}"
        )
    return jax.tree.map(lambda leaf: leaf.reshape(parts, total // parts, *leaf.shape[1:]), tasks)
