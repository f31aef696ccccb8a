"""Checks of what users pass: parameters, tasks, and what their loss returns."""

from typing import Any

import jax
import jax.numpy as jnp

from metajax.tree import path_name
from metajax.types import Params, Task


def as_array(leaf: Any) -> Any:
    """A Python number as an array; an array as it is; None of anything else."""
    if hasattr(leaf, "dtype"):
        return leaf
    if isinstance(leaf, bool | int | float | complex):
        return jnp.asarray(leaf, jnp.asarray(leaf).dtype)  # Not weakly typed.
    return None


def check_params(params: Params) -> Params:
    """The parameters, Python numbers as arrays.

    Raises:
        TypeError: a leaf is neither an array nor a number.
    """

    def check(path: tuple[Any, ...], leaf: Any) -> Any:
        array = as_array(leaf)
        if array is None:
            where = f"leaf {path_name(path)!r}" if path else "the value"
            raise TypeError(
                f"params: {where} is of type {type(leaf).__name__}, not an array; of a module pass "
                "the arrays alone, from `eqx.partition(model, eqx.is_inexact_array)` or "
                "`nnx.split(model, nnx.Param, ...)`, and rebuild it in the loss"
            )
        return array

    return jax.tree_util.tree_map_with_path(check, params)


def check_task(task: Any) -> Task:
    """The task, or batch of tasks.

    Raises:
        TypeError: it is no Task.
    """
    if hasattr(task, "support") and hasattr(task, "query"):
        return task
    fix = "pass metajax.Task(support=..., query=...)"
    if isinstance(task, dict):
        fix = "pass metajax.Task(**tasks), with the keys support and query"
    elif isinstance(task, list | tuple) and task and isinstance(task[0], Task):
        fix = "stack them: jax.tree.map(lambda *leaves: jnp.stack(leaves), *tasks)"
    raise TypeError(f"tasks: a {type(task).__name__} is not a metajax.Task; {fix}")


def loss_and_aux(returned: Any) -> tuple[jax.Array, Any]:
    """What a loss function returned; numbers in aux as arrays.

    Raises:
        TypeError: it is not a scalar and a pytree of arrays.
    """
    if not isinstance(returned, tuple | list) or len(returned) != 2:
        kinds = jax.tree.map(lambda x: jax.typeof(x) if hasattr(x, "shape") else type(x), returned)
        raise TypeError(
            f"the loss function returned {kinds}; return (loss, aux), a scalar and any pytree of "
            "arrays, {} if there is no auxiliary output"
        )
    loss, aux = returned
    if jnp.shape(loss):
        raise TypeError(
            f"the loss function returned a loss of shape {jnp.shape(loss)}; return a scalar, for "
            "instance its mean"
        )

    def check(path: tuple[Any, ...], leaf: Any) -> Any:
        array = as_array(leaf)
        if array is None:
            raise TypeError(
                f"the loss function returned a {type(leaf).__name__} in aux, at "
                f"{path_name(path)!r}: return arrays and numbers only"
            )
        return array

    return loss, jax.tree_util.tree_map_with_path(check, aux)
