"""The outer loop, compiled for the devices there are."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from metajax.outer import (
    AlgorithmOrSchedule,
    Metrics,
    OuterState,
    at_step,
    num_tasks,
    outer_step,
)
from metajax.types import Key, Params, Task

_AXIS = "devices"


class OuterLoop(NamedTuple):
    """The outer loop: two functions.

    Attributes:
        init: `(params, rng) -> OuterState`.
        step: `(state, tasks) -> (state, Metrics)`, compiled; the leaves of tasks are [T, ...].
    """

    init: Callable[[Params, Key], OuterState]
    step: Callable[[OuterState, Task], tuple[OuterState, Metrics]]


def outer_loop(
    algorithm: AlgorithmOrSchedule,
    outer_optimizer: optax.GradientTransformation,
    *,
    chunk_size: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    donate: bool = False,
    compiler_options: Mapping[str, Any] | None = None,
) -> OuterLoop:
    """Trains an algorithm's meta-parameters over batches of tasks.

    The tasks of a step are split over the devices by `jax.pmap` when there is more than one,
    in order; the meta-gradients meet in one mean. The numbers do not depend on how many devices
    there are.

    Args:
        algorithm: from one of the constructors (`metajax.maml`, ...), or a function that gives one
            for each outer step, an int32 under trace: see `metajax.maml_plus_plus`.
        outer_optimizer: any optax optimizer.
        chunk_size: tasks under one vmap on each device; the chunks run one after the other with
            their gradients added up. By default one on a CPU and all of them elsewhere. A
            smaller chunk takes less memory.
        devices: those to use; by default all of this process.
        donate: let a step overwrite the state it is given, which saves a copy of it. The caller
            must not use that state again, nor the params that `init` was given.
        compiler_options: XLA's, as `jax.jit` takes them. For one device: `pmap` takes none.

    Example:
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
    devices = list(devices) if devices is not None else jax.local_devices()
    # Where a step leaves the state. One that comes in from elsewhere would be compiled for anew.
    home: jax.sharding.Sharding = SingleDeviceSharding(devices[0])
    if len(devices) > 1:
        home = NamedSharding(Mesh(np.array(devices), (_AXIS,)), PartitionSpec())

    def init(params: Params, rng: Key) -> OuterState:
        meta_params = at_step(algorithm, jnp.int32(0)).init(params)
        state = OuterState(jnp.int32(0), meta_params, outer_optimizer.init(meta_params), rng)
        return jax.device_put(state, home)

    donated = 0 if donate else ()
    if len(devices) == 1:
        step = jax.jit(
            outer_step(algorithm, outer_optimizer, chunk_size=chunk_size),
            donate_argnums=donated,
            compiler_options=dict(compiler_options or {}),
        )
        return OuterLoop(init, step)

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

    return OuterLoop(init, split_step)


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
