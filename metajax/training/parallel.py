"""The outer loop on one device, several devices or several processes."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from metajax.platforms import xla_options
from metajax.training.outer import (
    AlgorithmOrSchedule,
    Frozen,
    Metrics,
    OuterState,
    apply_meta_grad,
    at_step,
    initial_state,
    num_tasks,
    outer_step,
)
from metajax.training.sharding import (
    MESH_AXES,
    PARAMS,
    put_state,
    sharded_meta_grad,
    shardings,
)
from metajax.types import Key, Params, PyTree, Task

_AXIS = "devices"


class OuterLoop(NamedTuple):
    """The outer loop: three functions.

    Attributes:
        init: `(params, rng) -> OuterState`.
        step: `(state, tasks) -> (state, Metrics)`, compiled; the leaves of tasks are [T, ...].
        lower: `(state, tasks) -> jax.stages.Lowered`, the step as a program to inspect. Both may be
            `jax.ShapeDtypeStruct`s, and the devices only descriptions.

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
    frozen: Frozen = None,
) -> OuterLoop:
    """Make the outer loop, which trains an algorithm's meta-parameters on batches of tasks.

    With several devices, `jax.pmap` splits the tasks of a step over them in order, and the
    meta-gradients are averaged once. With a mesh, parameters and optimizer state are sharded over
    its axis "params". The results depend neither on the number of devices nor on the chunk size.
    With `rbg` keys, results depend on the chunk size. (They are not JAX's default.)

    With several processes (`jax.distributed.initialize`), each calls `init` with the same params
    and `step` with its own share of the tasks: those of its devices, in the order of
    `jax.devices()`. The devices then always form a mesh, `task_mesh(1)` by default.

    Args:
        algorithm: from one of the constructors (`metajax.maml`, ...), or a function of the outer
            step, a traced int32, that returns one: see `metajax.maml_plus_plus`.
        outer_optimizer: any optax optimizer.
        chunk_size: tasks under one vmap on each device; the chunks run one after the other, and
            their gradients are summed. By default one on a CPU and all of them elsewhere. A smaller
            chunk takes less memory.
        devices: the devices to use; by default all.
        donate: let a step overwrite the state passed to it, which saves a copy. The caller must
            not use that state again, nor the params passed to `init`.
        compiler_options: XLA's, as for `jax.jit`. By default none, but where JAX's default backend
            is a GPU, the pass `triton-softmax-rewriter` is left out, for faster compilation.
        mesh: from `task_mesh`, in place of devices: shards the state if its axis "params" has more
            than one device. Each device still gathers all parameters in a step, because it adapts
            all of them.
        frozen: predicate on a meta-parameter's path; true if the outer loop leaves it as it is. The
            state then has no optimizer state for it (`metajax.lora.is_base`). By default all
            floating-point meta-parameters are trained.

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
    mesh = mesh or task_mesh(1, devices)
    donated = 0 if donate else ()
    options = xla_options(quick=False) if compiler_options is None else dict(compiler_options)
    # With several processes, `pmap` would give each of them its own state.
    if jax.process_count() > 1 or _num_processes(mesh) > 1 or mesh.shape[PARAMS] > 1:
        return _sharded(algorithm, outer_optimizer, mesh, chunk_size, donated, options, frozen)
    first, *others = mesh.devices.flat
    if others:
        return _pmapped(
            algorithm, outer_optimizer, [first, *others], chunk_size, donated, options, frozen
        )
    return _one_device(algorithm, outer_optimizer, first, chunk_size, donated, options, frozen)


def all_devices() -> list[jax.Device]:
    """The devices of all processes."""
    return jax.local_devices() if jax.process_count() == 1 else jax.devices()


def task_mesh(params: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh for `outer_loop`: axis "params" shards the state, both axes split the tasks.

    Args:
        params: the number of devices that parameters and optimizer state are sharded over.
        devices: the devices of the mesh; by default all.

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
            f"a state cannot be sharded over {params} of {every.size} devices; give a divisor"
        )
    return Mesh(every.reshape(-1, params), MESH_AXES)


def _one_device(
    algorithm: AlgorithmOrSchedule,
    optimizer: optax.GradientTransformation,
    device: jax.Device,
    chunk_size: int | None,
    donated: Any,
    options: dict[str, Any],
    frozen: Frozen,
) -> OuterLoop:
    """The outer loop under `jax.jit`."""
    home = SingleDeviceSharding(device)

    def init(params: Params, rng: Key) -> OuterState:
        # Place the state where a step returns it; otherwise the second step compiles again.
        return jax.device_put(initial_state(algorithm, optimizer, params, rng, frozen), home)

    step = jax.jit(
        outer_step(algorithm, optimizer, chunk_size=chunk_size, frozen=frozen),
        donate_argnums=donated,
        compiler_options=options,
    )

    def lower(state: OuterState, tasks: Task) -> jax.stages.Lowered:
        # Tasks come from the host. With a sharding they would make it another program.
        return step.lower(_shapes(state, home), jax.eval_shape(lambda t: t, tasks))

    return OuterLoop(init, step, lower)


def _pmapped(
    algorithm: AlgorithmOrSchedule,
    optimizer: optax.GradientTransformation,
    devices: list[jax.Device],
    chunk_size: int | None,
    donated: Any,
    options: dict[str, Any],
    frozen: Frozen,
) -> OuterLoop:
    """The outer loop under `jax.pmap`: each device has the whole state and its share of tasks."""
    # Place the state where a step returns it; otherwise the second step compiles again.
    mesh = Mesh(np.array(devices), (_AXIS,))
    home, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(_AXIS))
    # Replicated on the way in and out: the state looks the same on one device and on many.
    mapped = jax.pmap(
        outer_step(algorithm, optimizer, chunk_size=chunk_size, axis_name=_AXIS, frozen=frozen),
        axis_name=_AXIS,
        in_axes=(None, 0),
        out_axes=None,
        devices=devices,
    )
    # `pmap` takes no compiler options. `jax.jit` would copy the method `lower` of `mapped` itself.
    compiled = jax.jit(
        lambda state, tasks: mapped(state, tasks),
        in_shardings=(home, split),
        out_shardings=home,
        donate_argnums=donated,
        compiler_options=options,
    )

    def init(params: Params, rng: Key) -> OuterState:
        return jax.device_put(initial_state(algorithm, optimizer, params, rng, frozen), home)

    def step(state: OuterState, tasks: Task) -> tuple[OuterState, Metrics]:
        # This copies only a state from elsewhere, such as a checkpoint.
        return compiled(jax.device_put(state, home), split_tasks(tasks, len(devices)))

    def lower(state: OuterState, tasks: Task) -> jax.stages.Lowered:
        return compiled.lower(state, jax.eval_shape(lambda t: split_tasks(t, len(devices)), tasks))

    return OuterLoop(init, step, lower)


def _sharded(
    algorithm: AlgorithmOrSchedule,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    chunk_size: int | None,
    donated: Any,
    options: dict[str, Any],
    frozen: Frozen,
) -> OuterLoop:
    """Fully sharded data parallelism (Rajbhandari et al. 2020, arXiv:1910.02054, stage 3).

    A step gathers the parameters and leaves each device its shard of the mean gradient.
    """

    def init(params: Params, rng: Key) -> OuterState:
        state = initial_state(algorithm, optimizer, params, rng, frozen)
        return put_state(state, mesh)

    @functools.partial(jax.jit, donate_argnums=donated, compiler_options=options)
    def step(state: OuterState, tasks: Task) -> tuple[OuterState, Metrics]:
        current = at_step(algorithm, state.step)
        key = jax.random.fold_in(state.rng, state.step)
        mean = sharded_meta_grad(current, state.meta_params, tasks, key, mesh, chunk_size, frozen)
        state, metrics = apply_meta_grad(optimizer, state, *mean, frozen)
        return jax.lax.with_sharding_constraint(state, shardings(state, mesh)), metrics

    def lower(state: OuterState, tasks: Task) -> jax.stages.Lowered:
        split, processes = NamedSharding(mesh, PartitionSpec(MESH_AXES)), _num_processes(mesh)
        every = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                (leaf.shape[0] * processes, *leaf.shape[1:]), leaf.dtype
            ),
            tasks,
        )
        return step.lower(_shapes(state, shardings(state, mesh)), _shapes(every, split))

    return OuterLoop(
        init, lambda state, tasks: step(put_state(state, mesh), _over_mesh(tasks, mesh)), lower
    )


def _num_processes(mesh: Mesh) -> int:
    return len({device.process_index for device in mesh.devices.flat})


def _shapes(tree: PyTree, placed: PyTree) -> PyTree:
    """Describe arrays with a sharding, or with one for each."""
    if isinstance(placed, jax.sharding.Sharding):
        placed = jax.tree.map(lambda _: placed, tree)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        *(tree, placed),
    )


def _over_mesh(tasks: Task, mesh: Mesh) -> Task:
    """Make arrays that are split over the mesh, of which this process has its own tasks."""
    split_tasks(tasks, len(mesh.local_devices))  # Checks that they can be split.
    sharding = NamedSharding(mesh, PartitionSpec(MESH_AXES))
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), tasks
    )


def split_tasks(tasks: Task, parts: int) -> Task:
    """Reshape leaves [T, ...] to [parts, T / parts, ...].

    Raises:
        ValueError: T is not a multiple of parts; the message names the nearest multiples.
    """
    total = num_tasks(tasks)
    if total % parts:
        below, above = total - total % parts, total - total % parts + parts
        near = f"{below} or {above}" if below else f"{above}"
        raise ValueError(
            f"{total} tasks per step cannot be split evenly over {parts} devices; use {near}"
        )
    return jax.tree.map(lambda leaf: leaf.reshape(parts, total // parts, *leaf.shape[1:]), tasks)
