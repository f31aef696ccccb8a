"""Functions without a closure."""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core


def without_closure(
    function: Callable[..., Any], *example: Any
) -> tuple[Callable[..., Any], list[Any]]:
    """Trace a function, and take the arrays that JAX traces out of its closure.

    Args:
        function: `(*arguments) -> result`.
        *example: arguments, or their shapes.

    Returns:
        `(constants, *arguments) -> result`, and the constants.
    """
    traced, shapes = jax.make_jaxpr(function, return_shape=True)(*example)
    treedef, consts = jax.tree.structure(shapes), traced.consts
    # Nothing differentiates the others, such as an array in the code of a loss.
    which = [isinstance(const, jax.core.Tracer) for const in consts]

    def open_function(constants: list[Any], *arguments: Any) -> Any:
        given = iter(constants)
        filled = [next(given) if is_traced else const for is_traced, const in zip(which, consts)]
        closed = core.jaxpr_as_fun(core.ClosedJaxpr(traced.jaxpr, filled))
        return jax.tree.unflatten(treedef, closed(*jax.tree.leaves(arguments)))

    return open_function, [const for is_traced, const in zip(which, consts) if is_traced]
