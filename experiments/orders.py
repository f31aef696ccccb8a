"""How much second derivatives change a meta-gradient."""

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

from metajax import Estimate, MetaAlgorithm
from metajax.training.evaluation import estimate
from metajax.types import Params, Task


def cosine(
    second: MetaAlgorithm, first: MetaAlgorithm, meta_params: Params, tasks: Task
) -> Estimate:
    """Return the cosine between the meta-gradients of a task in second and first order.

    Args:
        second: the algorithm in second order.
        first: the same in first order.
        meta_params: the point where the gradients are taken.
        tasks: leaves [T, ...]. The mean is over these tasks.
    """

    def gradients(algorithm: MetaAlgorithm) -> np.ndarray:
        def of(task: Task) -> jax.Array:
            return ravel_pytree(algorithm.meta_grad(meta_params, task, None)[0])[0]

        return np.asarray(jax.jit(lambda tasks: jax.lax.map(of, tasks))(tasks), np.float64)

    pair = gradients(second), gradients(first)
    products = (pair[0] * pair[1]).sum(1)
    return estimate(products / np.prod([np.linalg.norm(each, axis=1) for each in pair], axis=0))


def cosine_line(*cosines: Estimate) -> str:
    """Return a line on the cosines before and after meta-training in second order."""
    before, after = (f"{each.mean:.3f} ± {each.ci95:.3f}" for each in cosines)
    return (
        "cosine between the meta-gradients of a task in second and first order: "
        f"{before} before meta-training, {after} after it"
    )
