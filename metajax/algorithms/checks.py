"""Checks of the user's parameters, tasks, and loss function."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metajax.tree import path_name
from metajax.types import Params, Task

_TRIED = 10  # Updates of an optimizer.


def as_array(leaf: Any) -> Any:
    """Convert a Python number to an array. Return arrays unchanged, and None for other types."""
    if hasattr(leaf, "dtype"):
        return leaf
    if isinstance(leaf, bool | int | float | complex):
        return jnp.asarray(leaf, jnp.asarray(leaf).dtype)  # Not weakly typed.
    return None


def check_params(params: Params) -> Params:
    """Return the parameters with Python numbers converted to arrays.

    Raises:
        TypeError: a leaf is neither an array nor a number.
    """

    def check(path: tuple[Any, ...], leaf: Any) -> Any:
        array = as_array(leaf)
        if array is None:
            where = f"leaf {path_name(path)!r}" if path else "the value"
            raise TypeError(
                f"params: {where} is of type {type(leaf).__name__}, not an array; for a module, "
                "pass only its arrays, from `eqx.partition(model, eqx.is_inexact_array)` or "
                "`nnx.split(model, nnx.Param, ...)`, and rebuild the module in the loss"
            )
        return array

    return jax.tree_util.tree_map_with_path(check, params)


def check_task(task: Any) -> Task:
    """Return the task, or batch of tasks.

    Raises:
        TypeError: it is not a Task.
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
    """Return the result of a loss function, with numbers in aux converted to arrays.

    Raises:
        TypeError: the result is not a scalar and a pytree of arrays.
    """
    if not isinstance(returned, tuple | list) or len(returned) != 2:
        kinds = jax.tree.map(lambda x: jax.typeof(x) if hasattr(x, "shape") else type(x), returned)
        raise TypeError(
            f"loss_fn: returned {kinds}; return (loss, aux), a scalar and any pytree of arrays "
            "({} for no auxiliary output)"
        )
    loss, aux = returned
    if jnp.shape(loss):
        raise TypeError(
            f"loss_fn: returned a loss of shape {jnp.shape(loss)}; return a scalar, for example "
            "its mean"
        )

    def check(path: tuple[Any, ...], leaf: Any) -> Any:
        array = as_array(leaf)
        if array is None:
            raise TypeError(
                f"loss_fn: returned a {type(leaf).__name__} in aux, at {path_name(path)!r}; return "
                "only arrays and numbers"
            )
        return array

    return loss, jax.tree_util.tree_map_with_path(check, aux)


def is_elementwise(optimizer: optax.GradientTransformation, num_steps: int) -> bool:
    """Try whether an optimizer gives the same updates if its parameters are laid out differently.

    It does if rows without gradient have no updates and can be left out, and if a stack of arrays
    can be split. SGD, momentum, Adam and clipping by the global norm pass. Weight decay, norms of
    single arrays, and masks do not. Neither does anything that is not from optax, because it may
    depend on the paths or the first axis of parameters.

    Args:
        optimizer: the inner optimizer. One whose rates are being traced does not pass.
        num_steps: K, the updates to try, of which at most `_TRIED` are.
    """
    rng = np.random.default_rng(0)
    # Adafactor treats arrays of at least 128 x 128 differently.
    rows, blocks = rng.normal(size=(129, 128)), rng.normal(size=(2, 128, 128))
    params = {"rows": rows, "blocks": blocks}
    steps = min(num_steps, _TRIED)
    try:
        with jax.ensure_compile_time_eval():
            return _is_from_optax(optimizer) and all(
                _same_updates(optimizer, _scaled(params, 1.0), _scaled(params, scale), steps)
                for scale in (1e-4, 1.0, 1e4)
            )
    except Exception:  # Some optimizers need parameters by certain names.
        return False


def _is_from_optax(value: Any) -> bool:
    """Whether a function, and all that it closes over, is from optax."""
    if isinstance(value, functools.partial):
        return all(map(_is_from_optax, (value.func, *value.args, *value.keywords.values())))
    if isinstance(value, tuple | list):
        return all(map(_is_from_optax, value))
    if not callable(value):
        return True
    home = (getattr(value, "__module__", None) or "").split(".")[0]
    cells = getattr(value, "__closure__", None) or ()
    own = home in ("optax", "jax", "jaxlib", "numpy", "builtins")
    return own and all(_is_from_optax(cell.cell_contents) for cell in cells)


def _scaled(params: Params, scale: float) -> Params:
    return jax.tree.map(lambda leaf: np.float32(scale * leaf), params)


def _is_mask(state: Any) -> bool:
    return isinstance(state, optax.MaskedState | optax.transforms.PartitionState)


def _same_updates(
    optimizer: optax.GradientTransformation, params: Params, grads: Params, steps: int
) -> bool:
    """Whether two updates are equal on the arrays and on the same numbers in other arrays."""
    grads["rows"][-1] = 0
    layouts = [
        (params, grads),
        tuple({"rows": tree["rows"][:-1], "blocks": [*tree["blocks"]]} for tree in (params, grads)),
    ]
    seen = []
    for own, gradient in layouts:
        state = optimizer.init(own)
        if any(map(_is_mask, jax.tree.leaves(state, is_leaf=_is_mask))):
            return False
        updates: list[Any] = []
        for _ in range(steps):
            update, state = optimizer.update(gradient, state, own)
            updates.append(update)
        seen.append(updates)
    return all(map(_agree, *seen))


def _agree(full: Params, small: Params) -> bool:
    """Whether an update is equal in both layouts, and zero where there is no gradient."""
    return not np.any(full["rows"][-1]) and all(
        np.allclose(theirs, ours, rtol=1e-5, atol=0)
        for theirs, ours in (
            (full["rows"][:-1], small["rows"]),
            (full["blocks"], np.stack(small["blocks"])),
        )
    )
