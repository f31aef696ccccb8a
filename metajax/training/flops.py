"""Count the arithmetic of a function without running it."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core
from jax.interpreters.partial_eval import dce_jaxpr


def count_flops(function: Callable[..., Any], *arguments: Any, while_length: float = 1) -> float:
    """Count the floating-point operations of a function's matrix products: 2 m n k each.

    The body of a scan counts once per iteration. (XLA's own analysis counts it once.) Of the
    branches of a conditional, the most expensive one counts. As in a compiler, work that no result
    needs does not count. As is usual for model FLOPs, elementwise work does not count.

    Args:
        function: any function that JAX can trace.
        arguments: arrays or `jax.ShapeDtypeStruct`s.
        while_length: mean number of iterations of a while loop, which a trace does not have; see
            `metajax.algorithms.inner_loop.mean_recomputed_steps`.
    """
    return count_traced_flops(jax.make_jaxpr(function)(*arguments).jaxpr, while_length)


def count_traced_flops(jaxpr: core.Jaxpr, while_length: float = 1) -> float:
    """Like `count_flops`, for a traced function."""
    needed, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return sum(_count_equation(equation, while_length) for equation in needed.eqns)


def _count_equation(equation: Any, while_length: float) -> float:
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        depth = math.prod(shape[axis] for axis in contracted)
        return 2 * math.prod(equation.outvars[0].aval.shape) * depth
    inner = [
        count_traced_flops(each, while_length)
        for value in equation.params.values()
        for each in _jaxprs(value)
    ]
    if equation.primitive.name == "cond":
        return max(inner)
    times = while_length if equation.primitive.name == "while" else 1
    return equation.params.get("length", times) * sum(inner)


def _jaxprs(value: Any) -> list[core.Jaxpr]:
    if isinstance(value, core.ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, core.Jaxpr):
        return [value]
    if isinstance(value, tuple | list):
        return [each for item in value for each in _jaxprs(item)]
    return []
