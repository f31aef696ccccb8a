"""Steps that are skipped because a loss or gradient is not finite."""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax.platforms import quick_jit
from metajax.training import distributed
from metajax.training.outer import (
    AlgorithmOrSchedule,
    OuterState,
    at_step,
    global_norm,
    num_tasks,
    task_keys,
)
from metajax.types import Key, Task


def skipped_in_a_row(rows: Sequence[dict[str, Any]]) -> int:
    """Return how many steps in a row were not finite, up to the last step."""
    steps = itertools.takewhile(lambda row: row.get("skipped"), reversed(rows))
    return sum(1 for _ in steps)


def diagnosis(
    algorithm: AlgorithmOrSchedule, state: OuterState, step: int, tasks: Task, bad: int
) -> str:
    """Return a message that names the tasks of a step that were not finite."""
    first = distributed.local_slice(num_tasks(tasks) * jax.process_count()).start
    rng, params = (
        jax.random.wrap_key_data(distributed.all_gather(jax.random.key_data(state.rng))),
        distributed.all_gather(state.meta_params),
    )
    keys = task_keys(jax.random.fold_in(rng, step), first, num_tasks(tasks))
    algorithm = at_step(algorithm, jnp.int32(step))

    def finite(task_and_key: tuple[Task, Key]) -> jax.Array:
        grads, info = algorithm.meta_grad(params, *task_and_key)
        return jnp.isfinite(info.query_loss) & jnp.isfinite(global_norm(grads))

    fine = np.asarray(quick_jit(lambda *each: jax.lax.map(finite, each))(tasks, keys))
    named = ", ".join(map(str, first + np.flatnonzero(~fine)))
    which = f"task {named}" if named else "no single task"
    return (
        f"the last {bad} steps had a non-finite loss or gradient and were skipped (in step "
        f"{step + 1}: {which} of {first} to {first + len(fine) - 1}); earlier steps are saved; use "
        "a lower --learning-rate or --inner-lr, or --dtype float32, in a new --workdir"
    )
