"""How much arithmetic a function does, counted without running it."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core


def count_flops(function: Callable, *arguments: Any) -> int:
    """The floating-point operations of a function's matrix products: 2 m n k each.

    Scans count as often as they run, which XLA's own analysis does not; of the branches of a
    conditional the dearest counts; a while loop, whose length is not known, counts once.
    Elementwise work is left out, as usual in model FLOPs.

    Args:
        function: anything that can be traced.
        arguments: arrays or `jax.ShapeDtypeStruct`s.
    """
    return count_traced_flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def count_traced_flops(jaxpr: core.Jaxpr) -> int:
    """The same of a function that has been traced."""
    return sum(map(_count_equation, jaxpr.eqns))


def _count_equation(equation: Any) -> int:
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        depth = math.prod(shape[axis] for axis in contracted)
        return 2 * math.prod(equation.outvars[0].aval.shape) * depth
    inner = [
        count_traced_flops(each) for value in equation.params.values() for each in _jaxprs(value)
    ]
    if equation.primitive.name == "cond":
        return max(inner)
    return equation.params.get("length", 1) * sum(inner)


def _jaxprs(value: Any) -> list[core.Jaxpr]:
    if isinstance(value, core.ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, core.Jaxpr):
        return [value]
    if isinstance(value, tuple | list):
        return [each for item in value for each in _jaxprs(item)]
    return []
