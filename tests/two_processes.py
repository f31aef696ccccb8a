"""One of two processes with four devices each: compare ten outer steps with one device.

`python tests/two_processes.py PORT ID` prints the largest relative
difference of each algorithm, as JSON.
"""

import json
import sys

import jax

PORT, ID = sys.argv[1:]
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_enable_x64", True)
jax.distributed.initialize(f"127.0.0.1:{PORT}", 2, int(ID))

import numpy as np  # noqa: E402
import optax  # noqa: E402
import problems  # noqa: E402
from jax.experimental import multihost_utils  # noqa: E402

import metajax  # noqa: E402
from metajax.training.outer import OuterState, outer_step  # noqa: E402

ALGORITHMS = {
    "maml": metajax.maml(problems.mlp_loss, optax.sgd(0.1), 2),
    "reptile": metajax.reptile(problems.mlp_loss, optax.sgd(0.1), 2),
    "meta-sgd": metajax.meta_sgd(problems.mlp_loss, 0.1, 2),
    "supervised": metajax.supervised(problems.mlp_loss),
}


SHARDS = (1, 4)
OPTIMIZER, KEY = optax.adam(0.01), jax.random.key(0)
TASKS = [jax.device_get(problems.mlp_tasks(seed=step)) for step in range(10)]


def trained(algorithm, shards):
    """Return the meta-parameters after ten steps on both processes, and their metrics."""
    outer = metajax.outer_loop(algorithm, OPTIMIZER, mesh=metajax.task_mesh(shards))
    state, metrics = outer.init(problems.mlp_params(), KEY), []
    for tasks in TASKS:
        own = jax.tree.map(lambda leaf: leaf[4 * int(ID) : 4 * int(ID) + 4], tasks)
        state, of_step = outer.step(state, own)
        metrics.append(jax.device_get(of_step))
    return multihost_utils.process_allgather(state.meta_params, tiled=True), metrics


def trained_alone(algorithm):
    """Return the same for one device."""
    step = jax.jit(outer_step(algorithm, OPTIMIZER))
    params = algorithm.init(problems.mlp_params())
    state, metrics = OuterState(jax.numpy.int32(0), params, OPTIMIZER.init(params), KEY), []
    for tasks in TASKS:
        state, of_step = step(state, tasks)
        metrics.append(of_step)
    return state.meta_params, metrics


found = {
    f"{name}/{shards}": trained(algorithm, shards)
    for name, algorithm in ALGORITHMS.items()
    for shards in SHARDS
}
gaps = {}
for number, (name, algorithm) in enumerate(ALGORITHMS.items()):
    if number % 2 == int(
        ID
    ):  # Each process compares half of them, because compilation takes most of the time.
        expected = trained_alone(algorithm)
        for shards in SHARDS:
            case = f"{name}/{shards}"
            # Apart, because metrics can be larger than parameters.
            apart = map(problems.relative_gap, found[case], expected)
            gaps[case] = float(np.max(list(apart)))
assert len(gaps) == len(found) / 2
# Zero for those that the other process compared.
both = multihost_utils.process_allgather(np.array([gaps.get(case, 0.0) for case in found]))
largest = np.nan_to_num(both.sum(0), nan=np.inf)  # Python's max would ignore a NaN.
print(json.dumps(dict(zip(found, largest.tolist()))), flush=True)
