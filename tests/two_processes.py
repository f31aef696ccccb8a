"""One of two processes of four devices: ten outer steps of each algorithm against one device.

`python tests/two_processes.py PORT ID` prints the largest relative gap of each, as JSON.
"""

import json
import sys

import jax

PORT, ID = sys.argv[1:]
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_enable_x64", True)
jax.distributed.initialize(f"127.0.0.1:{PORT}", 2, int(ID))

import optax  # noqa: E402
import problems  # noqa: E402
from jax.experimental import multihost_utils  # noqa: E402

import metajax  # noqa: E402
from metajax.outer import OuterState, outer_step  # noqa: E402

ALGORITHMS = {
    "maml": metajax.maml(problems.mlp_loss, optax.sgd(0.1), 2),
    "reptile": metajax.reptile(problems.mlp_loss, optax.sgd(0.1), 2),
    "meta-sgd": metajax.meta_sgd(problems.mlp_loss, 0.1, 2),
    "supervised": metajax.supervised(problems.mlp_loss),
}


def gap(algorithm, shards):
    optimizer, key = optax.adam(0.01), jax.random.key(0)
    outer = metajax.outer_loop(algorithm, optimizer, mesh=metajax.task_mesh(shards))
    alone = jax.jit(outer_step(algorithm, optimizer))
    params = algorithm.init(problems.mlp_params())
    expected = OuterState(jax.numpy.int32(0), params, optimizer.init(params), key)
    state = outer.init(problems.mlp_params(), key)
    for step in range(10):
        tasks = jax.device_get(problems.mlp_tasks(seed=step))
        own = jax.tree.map(lambda leaf: leaf[4 * int(ID) : 4 * int(ID) + 4], tasks)
        state, _ = outer.step(state, own)
        expected, _ = alone(expected, tasks)
    found = multihost_utils.process_allgather(state.meta_params, tiled=True)
    return float(problems.relative_gap(found, expected.meta_params))


gaps = {
    f"{name}/{shards}": gap(algorithm, shards)
    for name, algorithm in ALGORITHMS.items()
    for shards in (1, 4)
}
print(json.dumps(gaps), flush=True)
