"""The outer loop's state sharded over a mesh of devices, and the meta-gradient on that mesh."""

import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from metajax.training.outer import (
    Frozen,
    OuterState,
    gather_infos,
    mean_meta_grad,
    num_tasks,
    split_trained,
    task_keys,
)
from metajax.types import Key, MetaAlgorithm, MetaInfo, Params, Task

# The axes of a mesh: the state is sharded over the second, tasks are split over both.
MESH_AXES = TASKS, PARAMS = ("tasks", "params")


def sharded_meta_grad(
    algorithm: MetaAlgorithm,
    meta_params: Params,
    tasks: Task,
    key: Key,
    mesh: Mesh,
    chunk_size: int | None,
    frozen: Frozen,
) -> tuple[Params, MetaInfo]:
    """`mean_meta_grad` of T tasks split over a mesh; gradients are sharded like the parameters.

    Args:
        algorithm: the algorithm.
        meta_params: sharded over the mesh.
        tasks: leaves [T, ...], split over all devices of the mesh.
        key: key of the step.
        mesh: from `task_mesh`.
        chunk_size: see `map_tasks`.
        frozen: see `metajax.outer_loop`.
    """
    parts, everywhere = mesh.shape[PARAMS], PartitionSpec()
    spec, gather, mean = (
        functools.partial(function, parts=parts) for function in (_spec, _gather, _mean_shard)
    )
    trained = split_trained(meta_params, frozen)[0]

    def device_share(shards: Params, key: Key, tasks: Task) -> tuple[Params, MetaInfo]:
        count = num_tasks(tasks)
        keys = task_keys(key, jax.lax.axis_index(MESH_AXES) * count, count)
        params = jax.tree.map(gather, shards, meta_params)
        grads, infos = mean_meta_grad(algorithm, params, tasks, keys, chunk_size, frozen)
        return jax.tree.map(mean, grads, trained), gather_infos(infos, MESH_AXES)

    return jax.shard_map(
        device_share,
        mesh=mesh,
        in_specs=(jax.tree.map(spec, meta_params), everywhere, PartitionSpec(MESH_AXES)),
        out_specs=(jax.tree.map(spec, trained), everywhere),
        check_vma=False,  # With check_vma, JAX would add one all-reduce per replicated leaf.
    )(meta_params, key, tasks)


def shardings(state: OuterState, mesh: Mesh) -> Any:
    """Return the sharding of each leaf of a state."""
    parts = mesh.shape[PARAMS]
    return jax.tree.map(lambda leaf: NamedSharding(mesh, _spec(leaf, parts)), state)


def put_state(state: OuterState, mesh: Mesh) -> OuterState:
    """Shard a state over a mesh. With several processes, each passes the same state."""
    if jax.process_count() == 1:
        return jax.device_put(state, shardings(state, mesh))

    def put(leaf: jax.Array, sharding: jax.sharding.Sharding) -> jax.Array:
        if leaf.sharding == sharding:
            return leaf
        if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(
                put(jax.random.key_data(leaf), sharding), impl=jax.random.key_impl(leaf)
            )
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, state, shardings(state, mesh))


def _sharded_axis(leaf: Any, parts: int) -> int | None:
    """Return the largest axis that can be split evenly, or None."""
    axes = [axis for axis, size in enumerate(leaf.shape) if parts > 1 and size % parts == 0]
    return max(axes, key=lambda axis: leaf.shape[axis], default=None)


def _spec(leaf: Any, parts: int) -> PartitionSpec:
    """Return how a leaf of the state is split over the mesh."""
    axis = _sharded_axis(leaf, parts)
    return PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, PARAMS)


def _gather(shard: jax.Array, leaf: Any, parts: int) -> jax.Array:
    """Gather all of `leaf` from the shards of the devices."""
    axis = _sharded_axis(leaf, parts)
    if axis is None:
        return shard
    return jax.lax.all_gather(shard, PARAMS, axis=axis, tiled=True)


def _mean_shard(grad: jax.Array, leaf: Any, parts: int) -> jax.Array:
    """Average the gradients for `leaf` over all devices, and return each device's shard."""
    axis = _sharded_axis(leaf, parts)
    if axis is None:
        return jax.lax.pmean(grad, MESH_AXES)
    summed = jax.lax.psum_scatter(grad, PARAMS, scatter_dimension=axis, tiled=True)
    return jax.lax.pmean(summed / parts, TASKS)
